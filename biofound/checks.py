"""What is a check: one property that was measured, and whether it held."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of one check of `biofound verify`: its name, whether it held, and what was measured."""

    name: str
    passed: bool
    measured: str
