"""Open a source by its name; and the names that settings offer, without the imports of the sources."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from biofound.data.sources import Source
from biofound.errors import SettingsError, did_you_mean

_CLASSES = {
    "synthetic": "biofound.data.sources.synthetic:SyntheticSource",
    "wfdb": "biofound.data.sources.wfdb:WfdbSource",
    "vitaldb": "biofound.data.sources.vitaldb:VitalDBSource",
    "vital": "biofound.data.sources.vitaldb:VitalFilesSource",
    "table": "biofound.data.sources.table:TableSource",
    "edf": "biofound.data.sources.edf:EdfSource",
    "butppg": "biofound.data.sources.butppg:ButppgSource",
}

SourceName = Literal["synthetic", "wfdb", "vitaldb", "vital", "table", "edf", "butppg"]
SOURCES: tuple[SourceName, ...] = get_args(SourceName)
"""The names a source can have."""

CaseSet = Literal["bis", "ppf", "rft20", "sevo", "des", "tiva", "all"]
CASE_SETS: tuple[CaseSet, ...] = get_args(CaseSet)
"""Sets of cases that the `vitaldb` package ships (`caseids_*`), and `all` for every case."""

DEFAULT_CASE_SET: CaseSet = "bis"

TimeUnit = Literal["s", "ms", "us", "ns"]
"""Units of times that are numbers."""

MIN_MINUTES, MAX_MINUTES = 0.1, 1440
"""Bounds of the length of a synthetic recording."""
MAX_SUBJECTS, MAX_CASES = 100_000, 1000
"""The most subjects of a synthetic cohort, and cases of one of them."""


def open_source(*, name: str, **description: Any) -> Source:
    """Open a source by its name and the values its constructor takes.

    Args:
        name: one of `SOURCES`.
        description: the constructor's keyword arguments, as `Source.describe` gives them.

    Raises:
        SettingsError: when the name or a value's name is unknown, or one is missing.
        DataError: when the recordings are not there.
    """
    if name not in _CLASSES:
        raise SettingsError(f"source {name!r} is unknown{did_you_mean(name, SOURCES)}")
    module, _, attribute = _CLASSES[name].partition(":")
    make = cast(Callable[..., Source], getattr(import_module(module), attribute))
    accepted = inspect.signature(make).parameters
    for key in description:
        if key not in accepted:
            raise SettingsError(f"source {name} has no setting {key!r}{did_you_mean(key, tuple(accepted))}")
        _refuse_other_kind(name, make, key, description[key])
    missing = [
        key for key, p in accepted.items() if p.default is inspect.Parameter.empty and key not in description
    ]
    if missing:
        raise SettingsError(f"source {name} needs {', '.join(missing)}")
    return make(**description)


def _refuse_other_kind(name: str, make: Callable[..., Source], key: str, value: Any) -> None:
    """Refuse a value that is not of the kind that the source takes: a split file may be damaged."""
    kind = get_type_hints(make.__init__)[key]
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Input ")
        raise SettingsError(f"source {name}, setting {key}: {problem}, got {value!r}") from error
