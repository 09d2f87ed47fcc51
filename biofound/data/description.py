"""What a model's file says of its training data: enough to make windows of new recordings alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """Description of the training data, in plain JSON: enough to condition new recordings alike.

    `filters` maps channel name to its pass band (`low_hz`, `high_hz`, `order`), `units` to its physical
    unit, `quality_thresholds` to the quality (0 to 1) from which on a window was kept; gaps of at most
    `max_gap_seconds` were bridged. `fingerprint` identifies the training windows, `subjects` are those in
    them (sorted; empty where the windows do not say). `synthetic` says that no person was recorded.
    `parts` lists what several stores and streams gave: `name`, `windows` an epoch, `synthetic`; it is empty
    for a single store.
    """

    sfreq: float
    filters: dict[str, dict[str, Any]]
    units: dict[str, str]
    quality_thresholds: dict[str, float]
    max_gap_seconds: float
    fingerprint: str
    synthetic: bool
    subjects: tuple[str, ...] = ()
    parts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def synthetic_share(self) -> float:
        """The share of the training windows of an epoch that are synthetic."""
        windows = sum(part["windows"] for part in self.parts)
        if not windows:
            return float(self.synthetic)
        return float(sum(part["windows"] for part in self.parts if part["synthetic"]) / windows)


def data_content(data: DataDescription) -> dict[str, Any]:
    """What a file holds of its training data, by its names there."""
    return {
        "sfreq": data.sfreq,
        "filters": data.filters,
        "units": data.units,
        "quality_thresholds": data.quality_thresholds,
        "max_gap_seconds": data.max_gap_seconds,
        "data_fingerprint": data.fingerprint,
        "synthetic": data.synthetic,
        "subjects": list(data.subjects),
        "synthetic_share": data.synthetic_share,
        "data_parts": data.parts,
    }


def data_of_content(content: Mapping[str, Any]) -> DataDescription:
    """The inverse of `data_content`; a missing key is a KeyError."""
    return DataDescription(
        sfreq=content["sfreq"],
        filters=content["filters"],
        units=content["units"],
        quality_thresholds=content["quality_thresholds"],
        max_gap_seconds=content["max_gap_seconds"],
        fingerprint=content["data_fingerprint"],
        synthetic=content["synthetic"],
        subjects=tuple(content["subjects"]),
        parts=content["data_parts"],
    )
