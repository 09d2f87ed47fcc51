"""A run's numbers as TensorBoard events, for those who watch many runs; an extra."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from biofound.errors import SettingsError

if TYPE_CHECKING:
    from biofound.core.history import TrainingEvent


def require_tensorboard() -> None:
    """Raise SettingsError when the extra is not installed."""
    if find_spec("tensorboard") is None:
        raise SettingsError(
            "tensorboard: the package is not installed; install biofound[tensorboard], or leave "
            "--tensorboard out: metrics.jsonl holds the same numbers"
        )


def with_tensorboard(
    reports: Iterator["TrainingEvent"], directory: Path, *, begin: int
) -> Iterator["TrainingEvent"]:
    """The same reports, each also written as events; events of steps after `begin` are taken again."""
    from torch.utils.tensorboard import SummaryWriter

    from biofound.core.history import EpochMetrics, StepMetrics

    with SummaryWriter(str(directory), purge_step=begin + 1) as writer:
        for report in reports:
            if isinstance(report, StepMetrics):
                for name in ("loss", "msm", "stft", "lr", "gradient_norm", "windows_per_second", "data_wait"):
                    writer.add_scalar(f"step/{name}", getattr(report, name), report.step)
            elif isinstance(report, EpochMetrics):
                for part, losses in (("train", report.train), ("val", report.val)):
                    for name in ("loss", "msm", "stft"):
                        writer.add_scalar(f"{part}/{name}", getattr(losses, name), report.epoch)
            yield report
