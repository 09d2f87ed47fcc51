"""What a run reports, step by step and epoch by epoch, and how its history is written and read again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses over a set of windows: the terms, and `loss`, their sum by weight; MSM also by channel."""

    loss: float
    msm: float
    stft: float
    msm_by_channel: dict[str, float]
    global_term: float = 0.0
    rhythm_term: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step: `step` counts from 1 over the run, the losses are of its global batch.

    `windows_per_second` and `data_wait`, the share of the time spent waiting for windows, are over the
    steps since the last report.
    """

    step: int
    epoch: int
    loss: float
    msm: float
    stft: float
    lr: float
    gradient_norm: float
    windows_per_second: float
    data_wait: float


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One epoch done: `epoch` counts from 1, `seconds` include validation, `lr` is of its last step."""

    epoch: int
    train: Losses
    val: Losses
    lr: float
    seconds: float
    windows_per_second: float
    best: bool


@dataclass(frozen=True, kw_only=True)
class WriteFailure:
    """A file could not be written; the one written before is whole. The run goes on, as it was told to."""

    path: str
    error: str


Report = StepReport | EpochReport | WriteFailure
"""What the trainer yields."""


def history_json(reports: Sequence[EpochReport], *, synthetic: bool) -> dict[str, Any]:
    """The history of a run: lists with one entry an epoch, so that each can be plotted as it is."""

    def part(name: Literal["train", "val"]) -> dict[str, Any]:
        losses: list[Losses] = [getattr(report, name) for report in reports]
        channels = losses[0].msm_by_channel if losses else {}
        return {
            "loss": [item.loss for item in losses],
            "msm": [item.msm for item in losses],
            "stft": [item.stft for item in losses],
            "msm_by_channel": {c: [item.msm_by_channel[c] for item in losses] for c in channels},
        }

    return {
        "synthetic": synthetic,
        "epoch": [report.epoch for report in reports],
        "train": part("train"),
        "val": part("val"),
        "lr": [report.lr for report in reports],
        "seconds": [report.seconds for report in reports],
        "windows_per_second": [report.windows_per_second for report in reports],
        "best_epoch": max((report.epoch for report in reports if report.best), default=None),
    }


def reports_to_json(reports: Sequence[EpochReport]) -> list[dict[str, Any]]:
    """Every report as plain JSON, for a checkpoint."""
    return [asdict(report) for report in reports]


def reports_from_json(rows: Sequence[dict[str, Any]]) -> list[EpochReport]:
    """The inverse of `reports_to_json`."""
    return [
        EpochReport(**{**row, "train": Losses(**row["train"]), "val": Losses(**row["val"])}) for row in rows
    ]
