"""Settings of the recordings that a command reads: their source, and what each source needs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import field_validator

from biofound.data.sources.populations import PopulationName
from biofound.data.sources.registry import (
    DEFAULT_CASE_SET,
    MAX_MINUTES,
    MAX_SUBJECTS,
    MIN_MINUTES,
    CaseSet,
    SourceName,
    TimeUnit,
)
from biofound.data.sources.subjects import compile_subject_pattern
from biofound.errors import SettingsError
from biofound.settings.base import VITALDB_URL, VITALDB_URL_HELP, Conflict, Derived, Settings, setting
from biofound.settings.channels import CHANNELS_YAML_HELP, Section

_FILES = ("wfdb", "vital", "table", "edf")
_ONLY_FOR = {
    "root": (*_FILES, "butppg"),
    "case_set": ("vitaldb",),
    "subjects": ("synthetic",),
    "minutes": ("synthetic",),
    "population": ("synthetic",),
    "subjects_csv": _FILES,
    "subject_pattern": _FILES,
    "subject_column": ("table",),
    "record_is_subject": _FILES,
    "sfreq": ("table",),
    "time_column": ("table",),
    "time_unit": ("table",),
    "list_tracks": (*_FILES, "vitaldb", "butppg"),
    "ignore_checksums": ("wfdb", "butppg"),
}
"""Settings that only some sources have, and which."""

_SUBJECT_RULES = ("subjects_csv", "subject_pattern", "subject_column", "record_is_subject")


class SourceSettings(Settings):
    """Base of the settings of commands that read recordings."""

    source: SourceName | None = setting(None, "Where recordings come from.", panel="Source")
    root: Path | None = setting(
        None, "Directory of the recordings (wfdb, vital, table, edf, butppg).", panel="Source"
    )
    cache_dir: Path = setting(Path("data/vitaldb"), "Directory for downloads (vitaldb).", panel="Source")
    vitaldb_url: str | None = setting(None, VITALDB_URL_HELP, panel="Source", env=VITALDB_URL)
    subjects: int | None = setting(
        None, "Number of patients in the synthetic cohort (synthetic).", panel="Source", ge=3, le=MAX_SUBJECTS
    )
    minutes: float | None = setting(
        None,
        "Length of each recording (synthetic).",
        panel="Source",
        unit="minutes",
        ge=MIN_MINUTES,
        le=MAX_MINUTES,
    )
    population: PopulationName | None = setting(
        None, "Whose hearts: rest (the default), icu or exercise (synthetic).", panel="Source"
    )
    subjects_csv: Path | None = setting(
        None, "CSV with the columns record (or file, except wfdb) and subject.", panel="Source"
    )
    subject_pattern: str | None = setting(
        None,
        "Regular expression whose first group is the patient, searched in the header comments (wfdb) or in "
        "the file's path below root (vital, table, edf).",
        panel="Source",
    )
    subject_column: str | None = setting(
        None, "Column whose one value in a file is the patient (table).", panel="Source"
    )
    record_is_subject: bool = setting(
        False, "Treat each record as a different patient (wfdb, vital, table, edf).", panel="Source"
    )
    sfreq: float | None = setting(
        None,
        "Sampling rate of all columns; needed without a column of times (table).",
        panel="Source",
        unit="Hz",
        gt=0,
        le=100_000,
    )
    time_column: str | None = setting(
        None,
        "Column of the times of the rows; by default one called time, timestamp, t or seconds (table).",
        panel="Source",
    )
    time_unit: TimeUnit | None = setting(
        None, "Unit of times that are numbers; s by default (table).", panel="Source"
    )
    ignore_checksums: bool = setting(
        False,
        "Read samples also where the header's checksum contradicts them, for data sets whose headers are "
        "known to be wrong (wfdb, butppg).",
        panel="Source",
    )
    skip_failed: bool = setting(
        False, "Leave out recordings that cannot be used, and list them, instead of failing.", panel="Source"
    )
    channels_yaml: Path | None = setting(None, CHANNELS_YAML_HELP, panel="Source")
    section: Section = setting(
        "pretrain", "Section of the channel table: cases must have all its channels.", panel="Source"
    )
    case_set: CaseSet | None = setting(
        None, f"Set of VitalDB's cases (vitaldb; {DEFAULT_CASE_SET} by default).", panel="Source"
    )
    seed: int = setting(42, "Seed of the synthetic cohort (synthetic).", panel="Source", ge=0, lt=2**32)

    @field_validator("subject_pattern")
    @classmethod
    def _is_pattern_with_group(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None:
                compile_subject_pattern(pattern)
        except SettingsError as problem:
            raise ValueError(str(problem)) from problem
        return pattern

    def conflicts(self) -> Iterator[Conflict]:
        """Yields settings of other sources, and more than one rule for who the patient is."""
        given = [name for name in _ONLY_FOR if getattr(self, name, None) not in (None, False)]
        if self.source is None:
            for name in given:
                yield Conflict((name,), f"{name} is about recordings: give source too, or leave it out")
            return
        if self.source in _ONLY_FOR["root"] and self.root is None:
            yield Conflict(
                ("root", "source"), f"source {self.source} needs root, its directory of recordings"
            )
        for name in given:
            if self.source not in _ONLY_FOR[name]:
                belongs = " and ".join(_ONLY_FOR[name])
                message = f"{name} belongs to source {belongs}, not to {self.source}: leave it out"
                yield Conflict((name, "source"), message)
        rules = tuple(n for n in given if n in _SUBJECT_RULES)
        if len(rules) > 1:
            yield Conflict(rules, f"only one rule can say who the patient is, not {' and '.join(rules)}")

    @classmethod
    def derived_defaults(cls, given: Mapping[str, Any]) -> dict[str, Derived]:
        """VitalDB's default set of cases."""
        if given.get("source") == "vitaldb" and "case_set" not in given:
            return {"case_set": Derived(DEFAULT_CASE_SET, "default for vitaldb")}
        return {}

    def source_description(self) -> dict[str, Any]:
        """The keyword arguments of `biofound.data.sources.registry.open_source` that were given."""
        given: dict[str, Any]
        if self.source == "synthetic":
            given = {"seed": self.seed, "subjects": self.subjects, "minutes": self.minutes}
            given["population"] = self.population
        elif self.source == "vitaldb":
            given = {
                "cache_dir": self.cache_dir,
                "case_set": self.case_set,
                "base_url": self.vitaldb_url,
            }
        else:
            given = {
                "root": self.root,
                "subjects_csv": self.subjects_csv,
                "subject_pattern": self.subject_pattern,
                "subject_column": self.subject_column,
                "record_is_subject": self.record_is_subject or None,
                "sfreq": self.sfreq,
                "time_column": self.time_column,
                "time_unit": self.time_unit,
                "ignore_checksums": self.ignore_checksums or None,
            }
        return {"name": self.source, **{name: value for name, value in given.items() if value is not None}}
