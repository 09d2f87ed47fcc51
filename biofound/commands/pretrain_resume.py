"""Resume rules of `biofound pretrain`: which run is resumed, and which settings may then differ."""

from pathlib import Path
from typing import Any

from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.optimizer import learning_rate
from biofound.core.run_files import BEST, LAST
from biofound.core.trainer import Trainer
from biofound.errors import CheckpointError, SettingsError
from biofound.settings import PretrainSettings
from biofound.settings.resolve import plain_values

FREE_ON_RESUME = frozenset(
    {
        *("config", "data_dir", "channels_yaml", "output_dir", "tensorboard"),
        *("fast", "device", "precision", "no_amp", "compile", "threads"),
        *("resume", "resume_from", "init_from", "force", "probe_labels_root"),
        *("log_interval", "save_interval", "checkpoint_minutes", "on_write_error"),
    }
)
"""Settings that may differ: they say where and how to compute, not what. Data is compared by fingerprint."""


def checkpoint_to_resume(settings: PretrainSettings) -> Path | None:
    """The checkpoint to resume from; None where the run starts, also with `resume` in an empty directory."""
    if settings.resume_from is not None:
        return settings.resume_from
    path = settings.output_dir / LAST
    return path if settings.resume and path.is_file() else None


def differences(
    path: Path, checkpoint: Checkpoint, settings: PretrainSettings, trainer: Trainer
) -> list[str]:
    """The differences between a run and the settings to resume it with, in words.

    Raises:
        SettingsError: when there are any, and `force` is off.
    """
    found = []
    for name, now in plain_values(settings).items():
        if name in FREE_ON_RESUME:
            continue
        off = 0.0 if name.endswith("_weight") else None  # of a loss term that is younger than the run
        before = checkpoint.settings.get(name, off)
        if before == now or (name == "epochs" and _only_grows(checkpoint, before, now, trainer)):
            continue
        found.append(f"{name} was {before} and is {now}{_consequence(name, checkpoint, before, trainer)}")
    ours, theirs = trainer.data, checkpoint.data
    if ours.fingerprint != theirs.fingerprint:
        found.append(
            f"the fingerprint of the training windows was {theirs.fingerprint[:12]} and is "
            f"{ours.fingerprint[:12]}"
        )
    before = checkpoint.resume["fingerprints"].get("probe") if checkpoint.resume is not None else None
    if trainer.probe is not None and before not in (None, trainer.probe.fingerprint):
        found.append("the labels of the probe, or the validation windows that have one, differ")
    if (ours.filters, ours.sfreq) != (theirs.filters, theirs.sfreq):
        found.append("the filters or the sampling rate of the windows differ")
    if found and not settings.force:
        listed = "\n".join(f"  {line}" for line in found)
        raise SettingsError(
            f"{path}: this run cannot be resumed with settings that change its result:\n{listed}\n"
            "Use the settings it was started with, choose another --output-dir, or resume with --force"
        )
    return found


def best_to_carry(path: Path, checkpoint: Checkpoint, trainer: Trainer) -> Checkpoint | None:
    """The best model so far of a run that is resumed into another place, which shall have it too.

    It is `checkpoint` itself, where that was the best epoch, or `best_model.pt` beside its file. None where
    that is another run's, or missing: then the best of the epochs to come counts.

    Raises:
        SettingsError: when nothing is left of the run.
    """
    if trainer.step >= trainer.total_steps:
        raise SettingsError(
            f"--resume-from {path}: this run is finished, all its {trainer.total_steps} steps are done; "
            "leave --resume-from out to start another, or train it longer with more --epochs and --force"
        )
    between_epochs = trainer.step == trainer.epoch * trainer.steps_per_epoch
    if trainer.epochs_done and trainer.epochs_done[-1].best and between_epochs:
        return checkpoint
    try:
        beside = load_checkpoint(path.with_name(BEST))
    except CheckpointError:
        return None
    same_run = beside.data.fingerprint == checkpoint.data.fingerprint
    return beside if same_run and beside.best_val_loss == checkpoint.best_val_loss else None


def _only_grows(checkpoint: Checkpoint, before: Any, now: Any, trainer: Trainer) -> bool:
    """More epochs change no learning rate used so far while the run is still warming up."""
    warm = trainer.config.warmup_epochs * trainer.steps_per_epoch
    return isinstance(before, int) and now > before and checkpoint.step <= warm


def _consequence(name: str, checkpoint: Checkpoint, before: Any, trainer: Trainer) -> str:
    if name != "epochs" or not isinstance(before, int):
        return ""
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
