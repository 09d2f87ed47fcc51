"""Which run is resumed, and whether these settings continue it or make another run of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from biofound.settings import PretrainSettings
from biofound.settings.resolve import plain_values

if TYPE_CHECKING:
    from biofound.core.checkpoint import Checkpoint
    from biofound.core.trainer import Trainer

FREE_ON_RESUME = frozenset(
    {
        *("config", "data_dir", "channels_yaml", "output_dir", "tensorboard"),
        *("fast", "device", "precision", "no_amp", "compile", "threads"),
        *("resume", "resume_from", "force"),
        *("log_interval", "save_interval", "checkpoint_minutes", "on_write_error"),
    }
)
"""Settings that may differ: they say where and how to compute, not what. Data is judged by its content."""


def run_to_resume(settings: PretrainSettings) -> Path | None:
    """The checkpoint to go on from; None where the run begins, also with `resume` in an empty directory."""
    from biofound.core.trainer import LAST

    if settings.resume_from is not None:
        return settings.resume_from
    path = settings.output_dir / LAST
    return path if settings.resume and path.is_file() else None


def differences(checkpoint: "Checkpoint", settings: PretrainSettings, trainer: "Trainer") -> list[str]:
    """What differs between a run and the settings to resume it with, in words."""
    found = []
    for name, now in plain_values(settings).items():
        if name in FREE_ON_RESUME:
            continue
        before = checkpoint.settings.get(name)
        if before == now or (name == "epochs" and _only_grows(checkpoint, before, now, trainer)):
            continue
        found.append(f"{name} was {before} and is {now}{_consequence(name, checkpoint, before, trainer)}")
    ours, theirs = trainer.data, checkpoint.data
    if ours.fingerprint != theirs.fingerprint:
        found.append(
            f"the training windows were those of fingerprint {theirs.fingerprint[:12]} "
            f"and are those of {ours.fingerprint[:12]}"
        )
    if (ours.filters, ours.sfreq) != (theirs.filters, theirs.sfreq):
        found.append("the filters or the sampling rate of the windows are others")
    return found


def refusal(path: Path | None, differing: list[str]) -> str:
    """Why a run is not resumed."""
    return (
        f"{path}: these settings do not continue that run, they would make another one of it:\n"
        + "\n".join(f"  {line}" for line in differing)
        + "\nGive the settings it was begun with, choose another --output-dir, or insist with --force"
    )


def _only_grows(checkpoint: "Checkpoint", before: Any, now: Any, trainer: "Trainer") -> bool:
    """More epochs change nothing of the learning rates used so far while the run is still warming up."""
    warm = trainer.config.warmup_epochs * trainer.steps_per_epoch
    return isinstance(before, int) and now > before and checkpoint.step <= warm


def _consequence(name: str, checkpoint: "Checkpoint", before: Any, trainer: "Trainer") -> str:
    if name != "epochs" or not isinstance(before, int):
        return ""
    from biofound.core.optimizer import learning_rate

    warm = trainer.config.warmup_epochs * trainer.steps_per_epoch
    rates = [
        learning_rate(
            checkpoint.step,
            base=trainer.config.lr,
            warmup_steps=warm,
            total_steps=epochs * trainer.steps_per_epoch,
        )
        for epochs in (before, trainer.config.epochs)
    ]
    return (
        f" (the cosine reaches 0 at the last epoch: the learning rate would jump from {rates[0]:.2e} to "
        f"{rates[1]:.2e}; epochs may grow only during warm-up, up to step {warm})"
    )
