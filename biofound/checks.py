"""Result of one check of `biofound verify`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """One property: its name, whether it held, and what was measured."""

    name: str
    passed: bool
    measured: str
