"""Training metrics: what a run yields, step by step and epoch by epoch, and its history as JSON."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses over a set of windows: `loss` is MSM and the other terms by their weights; MSM also by channel.

    `further` holds the terms beside MSM and STFT that have a weight, by name.
    """

    loss: float
    msm: float
    stft: float
    msm_by_channel: dict[str, float]
    further: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One optimizer step: `step` counts from 1 over the run, the losses are of its global batch.

    `windows_per_second` and `data_wait`, the share of the time spent waiting for windows, are over the
    steps since the last `StepMetrics`. `gradient_norm` is before clipping.
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
class ProbeErrors:
    """Errors of a probe of validation windows, and of a constant guess in the same folds.

    For numbers the mean absolute error, and the training folds' median as the guess; for words the balanced
    error (1 - balanced accuracy), and the most frequent word. Every subject counts equally.
    """

    target: str
    error: float
    constant_error: float


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One epoch done: `epoch` counts from 1, `seconds` include validation, `lr` is of its last step.

    `monitor` says whether the validation windows are reconstructed, beyond the losses; see
    `biofound.core.monitor.MonitorSums.summary`. `best` says that no epoch before it was as good; `probe` is
    None where none was due.
    """

    epoch: int
    train: Losses
    val: Losses
    monitor: dict[str, Any]
    lr: float
    seconds: float
    windows_per_second: float
    best: bool
    probe: ProbeErrors | None = None

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "EpochMetrics":
        """The inverse of `dataclasses.asdict`."""
        losses = {split: Losses(**row[split]) for split in ("train", "val")}
        probe = row.get("probe")
        return cls(**{**row, **losses, "probe": None if probe is None else ProbeErrors(**probe)})


@dataclass(frozen=True, kw_only=True)
class TaskLosses:
    """Losses of a task model over a set of windows.

    `error` is the mean absolute error in the label's unit, or the balanced error (1 - balanced accuracy).
    """

    loss: float
    error: float


@dataclass(frozen=True, kw_only=True)
class FinetuneStep:
    """One optimizer step of a fine-tuning; see `StepMetrics`."""

    step: int
    epoch: int
    stage: str
    loss: float
    lr: float
    gradient_norm: float
    windows_per_second: float
    data_wait: float


@dataclass(frozen=True, kw_only=True)
class FinetuneEpoch:
    """One epoch of a fine-tuning; see `EpochMetrics`. `stage` says what was trained in it."""

    epoch: int
    stage: str
    train: TaskLosses
    val: TaskLosses
    lr: float
    seconds: float
    windows_per_second: float
    best: bool

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "FinetuneEpoch":
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**row, **{split: TaskLosses(**row[split]) for split in ("train", "val")}})


@dataclass(frozen=True, kw_only=True)
class WriteFailure:
    """A file could not be written; the one written before is whole, and the run goes on."""

    path: str
    error: str


TrainingEvent = StepMetrics | EpochMetrics | FinetuneStep | FinetuneEpoch | WriteFailure
"""What a training loop yields."""


def history_json(
    epochs: Sequence[EpochMetrics], *, synthetic: bool, parent: dict[str, str] | None = None
) -> dict[str, Any]:
    """Training history: lists with one entry an epoch, such as `train_loss` and `val_msm_by_channel`.

    `val_probe` is there in a run with probes, with None for the epochs without one. `parent` is the path and
    SHA-256 of the checkpoint that the run started from, None where its weights were random.
    """
    rows = [asdict(epoch) for epoch in epochs]
    history: dict[str, Any] = {
        "synthetic": synthetic,
        "parent": parent,
        "epoch": [row["epoch"] for row in rows],
    }
    for split in ("train", "val"):
        for name in ("loss", "msm", "stft"):
            history[f"{split}_{name}"] = [row[split][name] for row in rows]
        history[f"{split}_msm_by_channel"] = _columns([row[split]["msm_by_channel"] for row in rows])
        history[f"{split}_further"] = _columns([row[split]["further"] for row in rows])
    history["val_monitor"] = _columns([row["monitor"] for row in rows])
    probes = [epoch.probe for epoch in epochs]
    if targets := {probe.target for probe in probes if probe}:
        history["val_probe"] = {
            "target": targets.pop(),
            "error": [probe and probe.error for probe in probes],
            "constant_error": [probe and probe.constant_error for probe in probes],
        }
    for name in ("lr", "seconds", "windows_per_second"):
        history[name] = [row[name] for row in rows]
    history["best_epoch"] = max((epoch.epoch for epoch in epochs if epoch.best), default=None)
    return history


def finetune_history_json(epochs: Sequence[FinetuneEpoch], *, synthetic: bool) -> dict[str, Any]:
    """Training history of a fine-tuning: lists with one entry an epoch, such as `stage` and `val_loss`."""
    rows = [asdict(epoch) for epoch in epochs]
    history: dict[str, Any] = {"synthetic": synthetic}
    for name in ("epoch", "stage", "lr", "seconds", "windows_per_second"):
        history[name] = [row[name] for row in rows]
    for split in ("train", "val"):
        for name in ("loss", "error"):
            history[f"{split}_{name}"] = [row[split][name] for row in rows]
    history["best_epoch"] = max((epoch.epoch for epoch in epochs if epoch.best), default=None)
    return history


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows of equal keys as lists by key, also inside mappings: `{"a": {"b": [...]}}`."""
    return {
        key: _columns([row[key] for row in rows]) if isinstance(value, dict) else [row[key] for row in rows]
        for key, value in (rows[0].items() if rows else ())
    }


def per_second(amount: float, seconds: float) -> float:
    """A rate; 0 where the clock has not moved, so that nothing is measured."""
    return amount / seconds if seconds > 0 else 0.0


class ThroughputMeter:
    """Windows per second, and the share of the time spent waiting for data, since the last `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start to measure anew."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._windows = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def count(self, windows: int) -> None:
        """Add windows that are done."""
        self._windows += windows

    def rate(self) -> float:
        """Windows per second."""
        return per_second(self._windows, time.perf_counter() - self._started)

    def data_wait_fraction(self) -> float:
        """The share of the time spent waiting, 0 to 1."""
        return per_second(self._waited, time.perf_counter() - self._started)
