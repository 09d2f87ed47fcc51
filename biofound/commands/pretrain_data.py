"""Training and validation windows of `biofound pretrain`: opened and checked, or the embedded cohort's."""

from pathlib import Path
from typing import Any

import numpy as np

from biofound import console
from biofound.commands.windows import show_build_progress
from biofound.core.checkpoint import DataDescription
from biofound.data.build import build_windows
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.splits import make_splits, save_splits
from biofound.data.windows import Windows, open_windows, select_channels
from biofound.errors import DataError, write_error_context
from biofound.options import ending_on_sigterm
from biofound.settings import (
    DEFAULT_STORE,
    PrepareSettings,
    PretrainSettings,
    WindowsSettings,
    resolve_channels,
)

EMBEDDED = "embedded_cohort"
FAST_SUBJECTS = 40
"""Subjects of the embedded cohort under `--fast`: fewer than the synthetic source's default, for speed."""
LOOKED_AT = 64
"""Windows that are looked at before the first step, to see that there is signal."""


def wants_embedded_cohort(settings: PretrainSettings) -> bool:
    """Whether no `data_dir` was given, and the default store is missing or empty."""
    if settings.data_dir is not None:
        return False
    return not (DEFAULT_STORE.is_dir() and any(DEFAULT_STORE.iterdir()))


def build_embedded_cohort(settings: PretrainSettings) -> None:
    """Build the embedded cohort's windows under the output directory, as `prepare` and `windows` would."""
    directory = settings.output_dir / EMBEDDED
    console.warning(
        f"no --data-dir was given and {DEFAULT_STORE} holds nothing: training on the embedded SYNTHETIC "
        f"cohort, made into {directory}. Such a model is for trying out, not for recordings of people."
    )
    channels = resolve_channels(settings.channels_yaml, "pretrain").named(settings.channels)
    windows = WindowsSettings()
    seed = PrepareSettings.model_fields["seed"].default  # --seed is the training's: the data stays the same
    source = SyntheticSource(seed=seed)
    if settings.fast:
        source = SyntheticSource(seed=seed, subjects=FAST_SUBJECTS)
    splits = make_splits(
        source.cases(channels),
        mode="full",
        seed=seed,
        source=source.describe(),
        dataset_version=source.version(),
        channels=[channel.name for channel in channels],
    )
    with write_error_context(directory, option="--output-dir"):
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
        with ending_on_sigterm():
            show_build_progress(split, results, total=len(entries))


def open_training_windows(settings: PretrainSettings, data_dir: Path) -> tuple[Windows, Windows]:
    """The train and val windows, agreeing with each other and with the settings.

    Raises:
        DataError: when they do not agree, hold no signal, or share patients.
    """
    rate = WindowsSettings().sfreq
    train, val = (open_windows(data_dir, split, sfreq_if_unsaid=rate) for split in ("train", "val"))
    for what, ours, theirs in (
        ("channels", ", ".join(train.channels), ", ".join(val.channels)),
        ("sampling rate", train.sfreq, val.sfreq),
        ("window length", train.window_samples, val.window_samples),
        ("filters", _bands(train), _bands(val)),
    ):
        if ours != theirs:
            raise DataError(
                f"{data_dir}: train and val differ in their {what}: {ours} against {theirs}; build both with "
                "the same settings"
            )
    shared = sorted(set(train.subjects) & set(val.subjects))
    if shared:
        raise DataError(
            f"{data_dir}: {len(shared)} patient(s) are in train and in val ({', '.join(shared[:5])}"
            f"{', …' if len(shared) > 5 else ''}): the validation loss would be too good; split by patient "
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


def _bands(windows: Windows) -> str:
    return ", ".join(
        f"{name} {band['low_hz']:g} to {band['high_hz']:g} Hz of order {band['order']}"
        for name, band in windows.filters.items()
    )


def _refuse_empty(where: str, windows: Windows) -> None:
    """Refuse windows, or a channel of them, without any sample: every loss over them would be 0."""
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


def describe_data(train: Windows, val: Windows, settings: PretrainSettings) -> DataDescription:
    """The description of the windows for checkpoints; what they lack is taken from the channel table."""
    filters, units = train.filters, train.units
    if not (filters and units):
        channels = resolve_channels(settings.channels_yaml, "pretrain").named(settings.channels)
        filters = {channel.name: channel.band.as_json() for channel in channels}
        units = {channel.name: channel.unit for channel in channels}
    return DataDescription(
        sfreq=train.sfreq,
        filters=filters,
        units=units,
        fingerprint=train.fingerprint,
        synthetic=train.synthetic or val.synthetic,
        subjects=train.subjects,
    )


def summarize_data(
    train: Windows, val: Windows, settings: PretrainSettings, data_dir: Path
) -> dict[str, Any]:
    """Rows about the windows for the user, with what is assumed because the windows do not say it."""
    synthetic = train.synthetic or val.synthetic
    rows = {
        "data": f"{'synthetic' if synthetic else 'recorded'} windows in {data_dir}",
        "train": f"{len(train)} windows of {_subjects(train)}",
        "validation": f"{len(val)} windows of {_subjects(val)}",
        "channels": f"{', '.join(settings.channels)} at {train.sfreq:g} Hz",
    }
    if train.sfreq_is_assumed or val.sfreq_is_assumed:
        rows["assumed rate"] = f"{train.sfreq:g} Hz: the npz has no `sfreq`"
    if not (train.filters and train.units):
        table = resolve_channels(settings.channels_yaml, "pretrain").origin
        rows["assumed filters"] = f"those of {table}: an npz does not say its filters and units"
    elif settings.channels_yaml is not None:
        rows["channel table"] = "not used: the windows say their filters and units themselves"
    if not (train.subjects and val.subjects):
        rows["not checked"] = "whether train and val share patients: the npz has no `subjects`"
    return rows


def _subjects(windows: Windows) -> str:
    return f"{len(windows.subjects)} subjects" if windows.subjects else "subjects that the file does not name"
