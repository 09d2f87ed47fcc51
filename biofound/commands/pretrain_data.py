"""Training and validation windows of `biofound pretrain`: opened and checked, or the embedded cohort's."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biofound import console
from biofound.commands.windows import show_build_progress
from biofound.core.checkpoint import DataDescription
from biofound.data.build import build_windows
from biofound.data.integrity import splits_in
from biofound.data.mixture import MixedWindows, Part, require_alike
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.splits import SplitName, make_splits, save_splits
from biofound.data.stream import SyntheticStream
from biofound.data.windows import StoreWindows, Windows, open_windows, select_channels
from biofound.errors import DataError, SettingsError, write_error_context
from biofound.options import ending_on_sigterm
from biofound.settings import (
    DEFAULT_STORE,
    PrepareSettings,
    PretrainSettings,
    WindowsSettings,
    resolve_channels,
)

STREAM = "synthetic:"
"""What the name of a synthetic stream begins with."""
STREAM_VAL_WINDOWS = 510
"""Windows of a synthetic stream that are validated on: of 85 virtual subjects."""
EMBEDDED = "embedded_cohort"
FAST_SUBJECTS = 40
"""Subjects of the embedded cohort under `--fast`: fewer than the synthetic source's default, for speed."""
LOOKED_AT = 64
"""Windows that are looked at before the first step, to see that there is signal."""


def wants_embedded_cohort(settings: PretrainSettings) -> bool:
    """Whether no `data_dir` was given, and the default store is missing or empty."""
    if settings.data_dir:
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


def open_training_windows(settings: PretrainSettings, data_dir: Sequence[str]) -> tuple[Windows, Windows]:
    """The train and val windows of all of `data_dir`, agreeing with each other and with the settings.

    Several stores are one set of windows; a synthetic stream adds to train, and is validated on where no
    store has a val split.

    Raises:
        DataError: when they do not agree, hold no signal, or share patients.
        SettingsError: when a population is unknown, or the rate term has no synthetic window.
    """
    streams = [spec for spec in data_dir if spec.startswith(STREAM)]
    stores = [Path(spec) for spec in data_dir if not spec.startswith(STREAM)]
    opened: dict[SplitName, list[Part]] = {"train": [], "val": []}
    for path in stores:
        for split, parts in opened.items():
            if split == "val" and len(data_dir) > 1 and split not in splits_in(path):
                continue  # a corpus for pretraining alone
            parts.append(Part(name=f"{path} ({split})", windows=_open_store(path, split, settings)))
    stored = sum(len(part.windows) for part in opened["train"])
    opened["train"] += [_open_stream(spec, settings, stored=stored) for spec in streams]
    if not opened["val"]:
        if not streams:
            raise DataError(
                f"{', '.join(data_dir)}: no windows for split 'val'; add a store that has some: a corpus for "
                "pretraining alone cannot be validated on"
            )
        opened["val"] = [_open_stream(streams[0], settings, stored=None)]
    _refuse_shared_patients(opened)
    if settings.rate_weight and not streams:
        raise SettingsError(
            "rate_weight: the rate term learns from synthetic windows; add --data-dir synthetic:icu, or "
            "leave it out"
        )
    train, val = (
        parts[0].windows if len(parts) == 1 and not parts[0].name.startswith(STREAM) else MixedWindows(parts)
        for parts in opened.values()
    )
    require_alike("train", train, "val", val)
    return train, val


def _open_store(path: Path, split: SplitName, settings: PretrainSettings) -> Windows:
    """The windows of one split of a store, with the channels asked for."""
    windows = open_windows(path, split, sfreq_if_unsaid=WindowsSettings().sfreq)
    if windows.window_samples != settings.context_length:
        raise DataError(
            f"{path}: its windows have {windows.window_samples} samples, but context_length is "
            f"{settings.context_length}; use --context-length {windows.window_samples}, or build windows of "
            f"{settings.context_length / windows.sfreq:g} s"
        )
    if split == "val" and isinstance(windows, StoreWindows) and windows.subjects_unknown:
        raise DataError(
            f"{path}: the patients of val are unknown, so they may be in train too; use these windows for "
            "pretraining alone (`biofound prepare --fractions 1,0,0`)"
        )
    try:
        windows = select_channels(windows, settings.channels)
    except DataError as problem:
        raise DataError(f"{path}: {problem}") from problem
    _refuse_empty(f"{path}: {split}", windows)
    return windows


def _open_stream(spec: str, settings: PretrainSettings, *, stored: int | None) -> Part:
    """The stream `synthetic:<population>[:<weight>]`; with `stored` None its validation windows."""
    population, _, weight = spec.removeprefix(STREAM).partition(":")
    channels = resolve_channels(settings.channels_yaml, "pretrain").named(settings.channels)
    sfreq = WindowsSettings().sfreq
    seconds = settings.context_length / sfreq
    try:
        share = float(weight or 1)
    except ValueError as problem:
        raise SettingsError(f"--data-dir {spec}: expected a number of windows, got {weight!r}") from problem
    if not 0 < share < math.inf:
        raise SettingsError(f"--data-dir {spec}: expected a number of windows above 0, got {weight!r}")
    windows = STREAM_VAL_WINDOWS
    if stored is not None:
        windows = round(share * (stored or settings.stream_hours * 3600 / seconds))
    stream = SyntheticStream(
        population=population,
        channels=channels,
        hours=max(windows, 1) * seconds / 3600,
        seed=settings.seed,
        split="val" if stored is None else "train",
        sfreq=sfreq,
        window_seconds=seconds,
    )
    return Part(name=spec, windows=stream)


def _refuse_shared_patients(opened: Mapping[SplitName, Sequence[Part]]) -> None:
    for one, other in itertools.product(opened["train"], opened["val"]):
        shared = sorted(set(one.windows.subjects) & set(other.windows.subjects))
        if shared:
            raise DataError(
                f"{one.name} and {other.name}: {len(shared)} patient(s) are in train and in val "
                f"({', '.join(shared[:5])}{', …' if len(shared) > 5 else ''}): the validation loss would be "
                "too good; split by patient (`biofound prepare` does)"
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


def describe_data(train: Windows, settings: PretrainSettings) -> DataDescription:
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
        synthetic=train.synthetic,
        subjects=train.subjects,
    )


def summarize_data(
    train: Windows,
    val: Windows,
    settings: PretrainSettings,
    data_dir: Sequence[str],
) -> dict[str, Any]:
    """Rows about the windows for the user, with what is assumed because the windows do not say it."""
    kind = "synthetic" if train.synthetic and val.synthetic else "recorded"
    if isinstance(train, MixedWindows) and 0 < train.synthetic_share < 1:
        kind = f"recorded and ({train.synthetic_share:.0%} of an epoch) synthetic"
    rows = {
        "data": f"{kind} windows in {', '.join(data_dir)}",
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
    if not (train.subjects and val.subjects) and not (train.synthetic and val.synthetic):
        rows["not checked"] = "whether train and val share patients: some windows do not name their subjects"
    return rows


def _subjects(windows: Windows) -> str:
    if windows.synthetic and isinstance(windows, MixedWindows):
        return "new virtual subjects in each epoch"
    return f"{len(windows.subjects)} subjects" if windows.subjects else "subjects that the file does not name"
