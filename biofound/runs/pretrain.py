"""What `biofound pretrain` puts together: windows, model and trainer, checked before the first step."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from biofound.data.windows import Windows, open_windows, select_channels
from biofound.errors import DataError, SettingsError
from biofound.files import sweep_temporary_files, write_json
from biofound.runs.common import channels_named, model_config, train_config
from biofound.settings import PretrainSettings, Resolved, WindowsSettings
from biofound.settings.models import DEFAULT_STORE
from biofound.settings.resolve import plain

if TYPE_CHECKING:
    from biofound.core.trainer import Trainer
    from biofound.data.build import CaseResult
    from biofound.figures import Example

CONFIG_NAME = "training_config.json"
EMBEDDED = "embedded_cohort"
FAST_SUBJECTS = 40
"""Subjects of the embedded cohort under `--fast`: fewer than the synthetic source's own, to take minutes."""
EXAMPLES = 4


def wants_embedded_cohort(resolved: Resolved[PretrainSettings]) -> bool:
    """Whether nobody said where windows are, and the default place holds nothing."""
    if resolved.settings.data_dir is not None:
        return False
    return not (DEFAULT_STORE.is_dir() and any(DEFAULT_STORE.iterdir()))


def build_embedded_cohort(settings: PretrainSettings) -> Iterator[tuple[str, int, Iterator["CaseResult"]]]:
    """Build the embedded cohort's windows under the output directory, as `prepare` and `windows` would.

    Yields:
        For each split its name, its number of cases, and the results to take one by one.
    """
    from biofound.data.build import build_windows
    from biofound.data.sources.synthetic import SyntheticSource
    from biofound.data.splits import make_splits, save_splits

    channels = channels_named(settings.channels, settings.channels_yaml, "pretrain")
    windows = WindowsSettings()
    source = SyntheticSource(seed=settings.seed, **({"subjects": FAST_SUBJECTS} if settings.fast else {}))
    splits = make_splits(
        source.cases(channels),
        mode="full",
        seed=settings.seed,
        source=source.describe(),
        dataset_version=source.version(),
        channels=[channel.name for channel in channels],
    )
    directory = settings.output_dir / EMBEDDED
    save_splits(directory / "splits_full.json", splits)
    for split in ("train", "val"):
        entries = splits.of(split)
        results = build_windows(
            source=source,
            entries=entries,
            split=split,
            channels=channels,
            sfreq=windows.sfreq,
            window_seconds=settings.context_length / windows.sfreq,
            max_gap_seconds=windows.max_gap_seconds,
            dtype=windows.dtype,
            outdir=directory,
        )
        yield split, len(entries), results


@dataclass(kw_only=True)
class Pretraining:
    """A run that is ready to start, and what its figures need."""

    trainer: "Trainer"
    train: Windows
    val: Windows
    channels: tuple[str, ...]
    units: dict[str, str]
    synthetic: bool
    facts: dict[str, str]
    """What was resolved on this machine, for the user to see."""


def open_pretraining(
    resolved: Resolved[PretrainSettings], data_dir: Path, *, stop: Callable[[], bool]
) -> Pretraining:
    """Everything a run needs, checked before the first step; writes `training_config.json`.

    Raises:
        SettingsError: when a setting does not suit the windows or this machine.
        DataError: when the windows cannot be used, or patients are shared between train and val.
        OSError: when the output directory cannot be written.
    """
    import torch

    from biofound.core.checkpoint import DataDescription
    from biofound.core.devices import resolve_device, resolve_precision
    from biofound.core.models import build_model, parameter_count
    from biofound.core.trainer import Trainer

    settings = resolved.settings
    device = resolve_device(settings.device)
    precision = resolve_precision("fp32" if settings.no_amp else settings.precision, device)
    train, val = open_training_windows(settings, data_dir)
    channels = channels_named(settings.channels, settings.channels_yaml, "pretrain")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    model = build_model(model_config(settings), seed=settings.seed)
    data = DataDescription(
        sfreq=train.sfreq,
        filters=train.filters or {channel.name: channel.band.as_json() for channel in channels},
        units={channel.name: channel.unit for channel in channels},
        fingerprint=train.fingerprint,
        synthetic=train.synthetic or val.synthetic,
    )
    values = {name: plain(getattr(settings, name)) for name in type(settings).model_fields}
    try:
        trainer = Trainer(
            model=model,
            train=train,
            val=val,
            data=data,
            config=train_config(settings, precision=precision),
            settings=values,
            output_dir=settings.output_dir,
            device=device,
            stop=stop,
        )
    except ValueError as problem:
        raise SettingsError(str(problem)) from problem
    facts = {
        "data": f"{'synthetic' if data.synthetic else 'recorded'} windows in {data_dir}",
        "train": f"{len(train)} windows of {_people(train)}",
        "validation": f"{len(val)} windows of {_people(val)}",
        "channels": f"{', '.join(settings.channels)} at {data.sfreq:g} Hz",
        "model": f"{parameter_count(model):,} parameters",
        "device": f"{device} in {precision}, {torch.get_num_threads()} threads",
        "output": str(settings.output_dir),
    }
    _prepare_output(settings.output_dir, {"settings": resolved.as_json(), "resolved": facts})
    return Pretraining(
        trainer=trainer,
        train=train,
        val=val,
        channels=settings.channels,
        units=data.units,
        synthetic=data.synthetic,
        facts=facts,
    )


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
        ("filters", train.filters, val.filters),
    ):
        if ours != theirs:
            raise DataError(
                f"{data_dir}: train and val differ in their {what}: {_listed(ours)} against "
                f"{_listed(theirs)}; build both with the same settings"
            )
    shared = sorted(set(train.subjects) & set(val.subjects))
    if shared:
        raise DataError(
            f"{data_dir}: {len(shared)} patients are in train and in val ({', '.join(shared[:5])}"
            f"{', …' if len(shared) > 5 else ''}): validation would measure memory; split by patient "
            "(`biofound prepare` does)"
        )
    if train.window_samples != settings.context_length:
        raise DataError(
            f"{data_dir}: its windows have {train.window_samples} samples, but context_length is "
            f"{settings.context_length}; use --context-length {train.window_samples}, or build windows of "
            f"{settings.context_length / train.sfreq:g} s"
        )
    for name, windows in (("train", train), ("val", val)):
        if len(windows) == 0:
            raise DataError(f"{data_dir}: {name} holds no window")
    return select_channels(train, settings.channels), select_channels(val, settings.channels)


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
    hidden = mask.repeat(trainer.model.config.patch_length, axis=1)
    return [
        Example(signal=windows[k], reconstruction=shown[k], hidden=hidden[k], case=run.val.case_of(int(i)))
        for k, i in enumerate(index)
    ]


def _prepare_output(directory: Path, config: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    sweep_temporary_files(directory)
    write_json(directory / CONFIG_NAME, config)


def _people(windows: Windows) -> str:
    return f"{len(windows.subjects)} subjects" if windows.subjects else "subjects that the file does not name"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
