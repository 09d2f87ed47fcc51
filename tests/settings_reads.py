"""Which settings does a run look at: a record of every field read by the program."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from biofound.settings.base import Settings

CONVERSIONS = {"source_description", "as_channel", "section", "fill"}
"""Functions of the settings package that hand values on; what else reads there only checks or prints."""


@contextmanager
def recorded_reads() -> Iterator[set[tuple[str, str]]]:
    """The (model, field) pairs read while the context is open, other than by the settings themselves.

    A test can run a command inside and compare with the keys of a shipped YAML file: what nobody reads
    has no effect.
    """
    reads: set[tuple[str, str]] = set()
    original = Settings.__getattribute__

    def recording(self: Settings, name: str) -> object:
        model = type(self)
        if not name.startswith("_") and name in model.model_fields:
            code = sys._getframe(1)
            module = code.f_globals.get("__name__", "")
            inside = module.startswith(("biofound.settings", "pydantic"))
            if not inside or code.f_code.co_name in CONVERSIONS:
                reads.add((model.__name__, name))
        return original(self, name)

    with mock.patch.object(Settings, "__getattribute__", recording):
        yield reads
