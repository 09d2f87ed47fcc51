"""What `biofound pretrain` puts together: windows, model and trainer, checked before the first step."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from biofound.commands.common import lookup_channels, model_config, train_config
from biofound.commands.resume import differences, refusal, run_to_resume
from biofound.commands.tensorboard import require_tensorboard, with_tensorboard
from biofound.data.windows import Windows, open_windows, select_channels
from biofound.errors import DataError, SettingsError
from biofound.files import refused_as_data_error, sweep_temporary_files, write_json
from biofound.settings import PretrainSettings, Resolved, WindowsSettings, resolve_channels
from biofound.settings.resolve import plain_values

if TYPE_CHECKING:
    import torch

    from biofound.core.checkpoint import DataDescription
    from biofound.core.distributed import Group
    from biofound.core.history import TrainingEvent
    from biofound.core.trainer import Trainer
    from biofound.figures import Example

CONFIG_NAME = "training_config.json"
RUN_FILES = ("*.pt", "training_history.json", "metrics.jsonl", CONFIG_NAME, "*.png", "tensorboard")
"""What a run leaves in its output directory."""
LONG_EPOCH = 10.0
"""Seconds. Fetching returned memory again costs about 0.1."""
EXAMPLES = 4
LOOKED_AT = 64
"""Windows that are looked at before the first step, to see that there is signal."""


@dataclass(kw_only=True)
class Pretraining:
    """A run that is ready to start, and what its figures need."""

    trainer: "Trainer"
    train: Windows
    val: Windows
    channels: tuple[str, ...]
    units: dict[str, str]
    synthetic: bool
    summary: dict[str, str]
    """What was resolved on this machine, for the user to see."""


def open_pretraining(
    resolved: Resolved[PretrainSettings],
    data_dir: Path,
    *,
    group: "Group",
    device: "torch.device",
    stop: Callable[[], bool],
) -> Pretraining:
    """Everything a run needs, checked before the first step; writes `training_config.json`.

    Raises:
        SettingsError: when a setting does not suit the windows, this machine or the run to resume.
        DataError: when the windows cannot be used, patients are shared between train and val, or the
            output directory cannot be written.
        CheckpointError: when the run to resume cannot be read.
    """
    import torch

    from biofound.core.checkpoint import load_checkpoint
    from biofound.core.devices import keep_freed_memory, resolve_precision
    from biofound.core.gpu_cache import GpuWindowCache, fits
    from biofound.core.models import build_model, parameter_count
    from biofound.core.trainer import Trainer

    settings = resolved.settings
    precision = resolve_precision("fp32" if settings.no_amp else settings.precision, device)
    if settings.tensorboard:
        require_tensorboard()
    train, val = open_training_windows(settings, data_dir)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if device.type == "cpu":
        keep_freed_memory()
    model = build_model(model_config(settings), seed=settings.seed)
    data = _description(train, val, settings)
    try:
        trainer = Trainer(
            model=model,
            train=GpuWindowCache(train, device) if fits(train, device) else train,
            val=GpuWindowCache(val, device) if fits(val, device) else val,
            data=data,
            config=train_config(settings, precision=precision),
            settings=plain_values(settings),
            output_dir=settings.output_dir,
            device=device,
            group=group,
            stop=stop,
        )
    except ValueError as problem:
        raise SettingsError(str(problem)) from problem
    summary = {
        "data": f"{'synthetic' if data.synthetic else 'recorded'} windows in {data_dir}",
        "train": f"{len(train)} windows of {_people(train)}",
        "validation": f"{len(val)} windows of {_people(val)}",
        "channels": f"{', '.join(settings.channels)} at {data.sfreq:g} Hz",
        "model": f"{parameter_count(model):,} parameters",
        "device": f"{device} in {precision}, {_processes(group.size)}{_threads(torch.get_num_threads())}",
        "output": str(settings.output_dir),
        **_assumptions(train, val, settings),
    }
    path = run_to_resume(settings)
    checkpoint = None if path is None else load_checkpoint(path)
    if checkpoint is not None:
        differing = differences(checkpoint, settings, trainer)
        if differing and not settings.force:
            raise SettingsError(refusal(path, differing))
        summary["resumed"] = f"{path}, after step {checkpoint.step} of {trainer.total_steps}"
        if differing:
            summary["forced"] = "; ".join(differing)
    group.wait()  # every rank has read the run to resume before rank 0 touches the directory
    if group.rank == 0:
        aside = _prepare_output(settings, {"settings": resolved.as_json(), "resolved": summary})
        if aside is not None:
            summary["earlier run"] = f"moved to {aside}"
    if checkpoint is not None:
        trainer.restore(checkpoint)
    return Pretraining(
        trainer=trainer,
        train=train,
        val=val,
        channels=settings.channels,
        units=data.units,
        synthetic=data.synthetic,
        summary=summary,
    )


def _description(train: Windows, val: Windows, settings: PretrainSettings) -> "DataDescription":
    """What the windows are: as their store says, else as the channel table does."""
    from biofound.core.checkpoint import DataDescription

    filters, units = train.filters, train.units
    if not (filters and units):
        channels = lookup_channels(settings.channels, settings.channels_yaml, "pretrain")
        filters = {channel.name: channel.band.as_json() for channel in channels}
        units = {channel.name: channel.unit for channel in channels}
    return DataDescription(
        sfreq=train.sfreq,
        filters=filters,
        units=units,
        fingerprint=train.fingerprint,
        synthetic=train.synthetic or val.synthetic,
    )


def _assumptions(train: Windows, val: Windows, settings: PretrainSettings) -> dict[str, str]:
    """What the windows do not say and is taken for granted, for the user to see."""
    assumed = {}
    if train.sfreq_is_assumed or val.sfreq_is_assumed:
        assumed["assumed rate"] = f"{train.sfreq:g} Hz: the npz has no `sfreq`"
    if not (train.filters and train.units):
        table = resolve_channels(settings.channels_yaml, "pretrain").origin
        assumed["assumed filters"] = f"those of {table}: an npz does not say its filters and units"
    elif settings.channels_yaml is not None:
        assumed["channel table"] = "not used: the windows say their filters and units themselves"
    if not (train.subjects and val.subjects):
        assumed["not checked"] = "whether train and val share patients: the npz has no `subjects`"
    return assumed


def open_training_windows(settings: PretrainSettings, data_dir: Path) -> tuple[Windows, Windows]:
    """The train and val windows, agreeing with each other and with the settings.

    Raises:
        DataError: when they do not.
    """
    rate = WindowsSettings().sfreq
    train, val = (open_windows(data_dir, split, sfreq_if_unsaid=rate) for split in ("train", "val"))
    for what, ours, theirs in (
        ("channels", train.channels, val.channels),
        ("sampling rate", train.sfreq, val.sfreq),
        ("window length", train.window_samples, val.window_samples),
        ("filters", _bands(train), _bands(val)),
    ):
        if ours != theirs:
            raise DataError(
                f"{data_dir}: train and val differ in their {what}: {_listed(ours)} against "
                f"{_listed(theirs)}; build both with the same settings"
            )
    shared = sorted(set(train.subjects) & set(val.subjects))
    if shared:
        raise DataError(
            f"{data_dir}: {len(shared)} patient(s) are in train and in val ({', '.join(shared[:5])}"
            f"{', …' if len(shared) > 5 else ''}): validation would measure memory; split by patient "
            "(`biofound prepare` does)"
        )
    if train.window_samples != settings.context_length:
        raise DataError(
            f"{data_dir}: its windows have {train.window_samples} samples, but context_length is "
            f"{settings.context_length}; use --context-length {train.window_samples}, or build windows of "
            f"{settings.context_length / train.sfreq:g} s"
        )
    try:
        train, val = (select_channels(windows, settings.channels) for windows in (train, val))
    except DataError as problem:
        raise DataError(f"{data_dir}: {problem}") from problem
    for name, windows in (("train", train), ("val", val)):
        _refuse_empty(f"{data_dir}: {name}", windows)
    return train, val


def _refuse_empty(where: str, windows: Windows) -> None:
    """Refuse windows, or a channel of them, in which there is nothing: every loss over it would be 0."""
    if len(windows) == 0:
        raise DataError(f"{where} holds no window")
    looked_at = np.unique(np.linspace(0, len(windows) - 1, LOOKED_AT).round().astype(np.int64))
    real = np.isfinite(windows.read(looked_at))  # (B, C, T)
    empty = [name for row, name in enumerate(windows.channels) if not real[:, row].any()]
    if empty:
        raise DataError(
            f"{where}: channel {', '.join(empty)} holds no finite sample in any of {len(looked_at)} windows "
            "looked at; gaps may be NaN, but there must be signal between them"
        )


def _bands(windows: Windows) -> list[str]:
    return [
        f"{name} {band['low_hz']:g} to {band['high_hz']:g} Hz of order {band['order']}"
        for name, band in windows.filters.items()
    ]


@contextmanager
def stop_on_signals() -> Iterator[list[signal.Signals]]:
    """The signals received: the first SIGINT or SIGTERM is noted, a second one acts as it always does."""
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(signal.Signals(number))
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def reports_of(run: Pretraining, settings: PretrainSettings) -> Iterator["TrainingEvent"]:
    """The run itself, as an iterator of its reports."""
    trainer = run.trainer
    reports = trainer.fit()
    if trainer.device.type == "cpu":
        reports = _returning_memory(reports)
    if settings.tensorboard and trainer.group.rank == 0:
        return with_tensorboard(reports, settings.output_dir / "tensorboard", begin=trainer.step)
    return reports


def _returning_memory(reports: Iterator["TrainingEvent"]) -> Iterator["TrainingEvent"]:
    """The reports; after a long epoch, of which the next step's fetching costs little, memory is returned."""
    from biofound.core.devices import return_freed_memory
    from biofound.core.history import EpochMetrics

    for report in reports:
        if isinstance(report, EpochMetrics) and report.seconds > LONG_EPOCH:
            return_freed_memory()
        yield report


def draw_figures(run: Pretraining) -> None:
    """The pictures of a run: its loss curves, and a few reconstructions."""
    from biofound.figures import draw_losses, draw_reconstructions

    trainer = run.trainer
    if trainer.epochs_done:
        draw_losses(trainer.output_dir / "loss_curves.png", trainer.history())
    if not trainer.interrupted:
        draw_reconstructions(
            trainer.output_dir / "reconstructions.png",
            examples(run),
            channels=run.channels,
            units=run.units,
            sfreq=trainer.data.sfreq,
            synthetic=run.synthetic,
        )


def examples(run: Pretraining) -> list["Example"]:
    """A few validation windows, spread over the set, with what the model makes of their hidden patches."""
    import torch

    from biofound.figures import Example

    trainer = run.trainer
    index = np.unique(np.linspace(0, len(run.val) - 1, EXAMPLES).round().astype(np.int64))
    windows, mask = run.val.read(index), trainer.validation_mask(index)
    trainer.model.eval()
    with torch.inference_mode():
        out = trainer.model(
            torch.from_numpy(windows).to(trainer.device), torch.from_numpy(mask).to(trainer.device)
        )
    shown = out.in_physical_units().cpu().numpy()
    hidden = mask.repeat(trainer.model.config.patch_size, axis=1)
    cases = run.val.info(index).case_id.tolist()
    return [
        Example(signal=windows[k], reconstruction=shown[k], hidden=hidden[k], case=case)
        for k, case in enumerate(cases)
    ]


def _prepare_output(settings: PretrainSettings, config: Mapping[str, Any]) -> Path | None:
    """Make the output directory ready, and set an earlier run in it aside; where that went."""
    directory = settings.output_dir
    with refused_as_data_error(directory, choose="--output-dir"):
        directory.mkdir(parents=True, exist_ok=True)
        sweep_temporary_files(directory)
        aside = None if settings.resume else _set_earlier_run_aside(directory)
        write_json(directory / CONFIG_NAME, config)
    return aside


def _set_earlier_run_aside(directory: Path) -> Path | None:
    """Move the files of a run that is not resumed into `earlier_<n>`: nothing is lost or mixed."""
    files = [path for pattern in RUN_FILES for path in sorted(directory.glob(pattern))]
    if not files:
        return None
    number = 1
    while (directory / f"earlier_{number}").exists():
        number += 1
    aside = directory / f"earlier_{number}"
    aside.mkdir()
    for path in files:
        path.rename(aside / path.name)
    return aside


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _processes(size: int) -> str:
    return f"{size} processes of " if size > 1 else ""


def _people(windows: Windows) -> str:
    return f"{len(windows.subjects)} subjects" if windows.subjects else "subjects that the file does not name"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
