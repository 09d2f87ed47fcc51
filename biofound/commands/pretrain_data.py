"""Training and validation windows of `biofound pretrain`: opened and checked, or the embedded cohort's."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from biofound import console
from biofound.data.description import DataDescription
from biofound.data.integrity import is_begun, splits_in
from biofound.data.mixture import MixedWindows, Part, changes_by_epoch
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.splits import make_splits, save_splits
from biofound.data.stream import SyntheticStream
from biofound.data.windows import (
    Gate,
    StoreWindows,
    Windows,
    gate_of,
    open_windows,
    select_channels,
)
from biofound.errors import DataError, write_error_context
from biofound.files import path_from_text, path_to_text
from biofound.options import ending_on_sigterm
from biofound.settings import (
    DEFAULT_STORE,
    PrepareSettings,
    PretrainSettings,
    WindowsSettings,
    resolve_channels,
)
from biofound.settings.resolve import option_name, plain, shown

DATA_SEED: int = PrepareSettings.model_fields["seed"].default
"""Seed of generated data: `--seed` is the training's, and the data stays the same."""
EMBEDDED = "embedded_cohort"
FAST_SUBJECTS = 40
"""Subjects of the embedded cohort under `--fast`: fewer than the synthetic source's default, for speed."""
VALIDATION_HOURS = 1.0
"""Synthetic signal to validate on, where no directory has windows for that."""
LOOKED_AT = 64
"""Windows that are looked at before the first step, to see that there is signal."""


def wants_embedded_cohort(settings: PretrainSettings) -> bool:
    """Whether no `data_dir` was given, and the default store is missing or empty."""
    if settings.data_dir:
        return False
    return not (DEFAULT_STORE.is_dir() and any(DEFAULT_STORE.iterdir()))


def build_embedded_cohort(settings: PretrainSettings) -> None:
    """Build the embedded cohort's windows under the output directory, as `prepare` and `windows` would."""
    from biofound.commands.windows import show_build_progress  # matplotlib takes a while
    from biofound.data.build import build_windows

    directory = settings.output_dir / EMBEDDED
    console.warning(
        f"no --data-dir was given and {DEFAULT_STORE} holds nothing: training on the embedded SYNTHETIC "
        f"cohort, made into {directory}. Such a model is for trying out, not for recordings of people."
    )
    channels = resolve_channels(settings.channels_yaml, "pretrain").named(settings.channels)
    windows = WindowsSettings()
    source = SyntheticSource(seed=DATA_SEED)
    if settings.fast:
        source = SyntheticSource(seed=DATA_SEED, subjects=FAST_SUBJECTS)
    splits = make_splits(
        source.cases(channels),
        mode="full",
        seed=DATA_SEED,
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
            overwrite=True,  # what was generated can be generated again
        )
        with ending_on_sigterm():
            show_build_progress(split, results, total=len(entries))


def open_training_windows(settings: PretrainSettings, data_dirs: Sequence[str]) -> tuple[Windows, Windows]:
    """The train and val windows of all directories and streams, agreeing with each other and the settings.

    Raises:
        DataError: when they do not agree, hold no signal, or share patients, or one kind is missing.
    """
    streams = settings.streams()
    stores = [_open_store(settings, path_from_text(name)) for name in data_dirs if name not in streams]
    train = [part for found in stores if (part := found.get("train"))]
    val = [part for found in stores if (part := found.get("val"))]
    recorded = sum(len(part.windows) for part in train)
    validate_on_streams = not val
    _refuse_disagreement(settings, train + val)
    sfreq = (train + val)[0].windows.sfreq if train + val else WindowsSettings().sfreq
    hours_recorded, hours_alone = recorded * settings.context_length / sfreq / 3600, settings.hours_per_epoch
    for text, (population, weight) in streams.items():
        hours = weight * hours_recorded if recorded else hours_alone
        train.append(_stream(settings, text, population, sfreq=sfreq, hours=hours, split="train"))
        if validate_on_streams:
            val.append(_stream(settings, text, population, sfreq=sfreq, hours=VALIDATION_HOURS, split="val"))
    for split, parts in (("train", train), ("val", val)):
        if not parts:
            raise DataError(
                f"{', '.join(data_dirs)}: no windows for split {split!r}; "
                + ("add a --data-dir that has some" if len(data_dirs) > 1 else "expected train and val")
            )
    _refuse_shared_patients(train, val)
    for name, parts in (("train", train), ("val", val)):
        for part in parts:
            _refuse_empty(f"{part.name}: {name}", part.windows)
    return _together(train), _together(val)


def _open_store(settings: PretrainSettings, directory: Path) -> dict[str, Part]:
    """The train and val windows under one directory, those that are there, with the channels asked for."""
    rate = WindowsSettings().sfreq
    found = {}
    whole = splits_in(directory)
    for split in ("train", "val"):
        if split not in whole and not is_begun(directory / split):
            continue
        windows = open_windows(directory, split, sfreq_if_unsaid=rate)
        if split == "val" and isinstance(windows, StoreWindows) and len(windows) and not windows.subjects:
            raise DataError(
                f"{directory}: nobody says who was recorded in its validation windows, so they may be of "
                "patients in the training; prepare it with --fractions 1,0,0, and add a --data-dir to "
                "validate on"
            )
        found[split] = windows
    if len(found) == 2:
        _refuse_difference(f"{directory}: train and val", found["train"], found["val"])
    for windows in found.values():
        if windows.window_samples != settings.context_length:
            changed = settings.options_for(windows.window_samples)
            use = " ".join(f"{option_name(name)} {shown(plain(value))}" for name, value in changed.items())
            raise DataError(
                f"{directory}: its windows have {windows.window_samples} samples, but context_length is "
                f"{settings.context_length}; {f'use {use}, or ' if use else ''}build windows of "
                f"{settings.context_length / windows.sfreq:g} s"
            )
    try:
        return {
            split: Part(name=path_to_text(directory), windows=select_channels(windows, settings.channels))
            for split, windows in found.items()
        }
    except DataError as problem:
        raise DataError(f"{directory}: {problem}") from problem


def _stream(
    settings: PretrainSettings, name: str, population: str, *, sfreq: float, hours: float, split: str
) -> Part:
    windows = SyntheticStream(
        population=population,
        channels=resolve_channels(settings.channels_yaml, "pretrain").named(settings.channels),
        hours=hours,
        seed=DATA_SEED,
        split=split,
        sfreq=sfreq,
        window_seconds=settings.context_length / sfreq,
    )
    return Part(name=name, windows=windows)


def _together(parts: list[Part]) -> Windows:
    single = parts[0].windows
    return single if len(parts) == 1 and not isinstance(single, SyntheticStream) else MixedWindows(parts)


def _refuse_difference(which: str, ours: Windows, theirs: Windows) -> None:
    for what, one, other in (
        ("channels", ", ".join(ours.channels), ", ".join(theirs.channels)),
        ("sampling rate", ours.sfreq, theirs.sfreq),
        ("window length", ours.window_samples, theirs.window_samples),
        ("filters", _bands(ours.filters), _bands(theirs.filters)),
    ):
        if one != other and one and other:  # an npz may not say its filters
            raise DataError(
                f"{which} differ in their {what}: {one} against {other}; build both with the same settings"
            )


def _refuse_disagreement(settings: PretrainSettings, parts: list[Part]) -> None:
    """Refuse stores that differ in rate or filters, or, with a stream, in filters from the channel table."""
    if not parts:
        return
    table = resolve_channels(settings.channels_yaml, "pretrain")
    for part in parts[1:]:
        if part.name != parts[0].name:
            _refuse_difference(f"{parts[0].name} and {part.name}", parts[0].windows, part.windows)
    filters = parts[0].windows.filters
    if settings.streams() and filters:
        own = _bands({c.name: c.band.as_json() for c in table.named(settings.channels)})
        if own != _bands(filters):
            raise DataError(
                f"{parts[0].name} and the synthetic stream differ in their filters: {_bands(filters)} "
                f"against {own} of {table.origin}; give the table that the store was built with "
                "(--channels-yaml)"
            )


def _refuse_shared_patients(train: list[Part], val: list[Part]) -> None:
    """Refuse a patient who is in any train and any val windows, of whichever directory."""
    for ours, theirs in product(train, val):
        shared = sorted(set(ours.windows.subjects) & set(theirs.windows.subjects))
        if shared:
            some = f"{', '.join(shared[:5])}{', …' if len(shared) > 5 else ''}"
            where = (
                f"{ours.name}: {len(shared)} patient(s) are in train and in val ({some})"
                if ours.name == theirs.name
                else f"{len(shared)} patient(s) are in train of {ours.name} and in val of {theirs.name} "
                f"({some})"
            )
            raise DataError(
                f"{where}: the validation loss would be too good; split by patient (`biofound prepare` does)"
            )


def _bands(filters: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{name} {band['low_hz']:g} to {band['high_hz']:g} Hz of order {band['order']}"
        for name, band in sorted(filters.items())
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
    gate = next((found for part in parts_of(train, name="") if (found := gate_of(part.windows))), None)
    if gate is None:
        channels = resolve_channels(settings.channels_yaml, "pretrain").named(settings.channels)
        thresholds = {channel.name: channel.quality_threshold for channel in channels}
        gate = Gate(quality_thresholds=thresholds, max_gap_seconds=WindowsSettings().max_gap_seconds)
    parts = train.parts if isinstance(train, MixedWindows) else ()
    return DataDescription(
        sfreq=train.sfreq,
        filters=filters,
        units=units,
        quality_thresholds=dict(gate.quality_thresholds),
        max_gap_seconds=gate.max_gap_seconds,
        fingerprint=train.fingerprint,
        synthetic=train.synthetic and val.synthetic,
        subjects=train.subjects,
        parts=[
            {"name": part.name, "windows": len(part.windows), "synthetic": part.windows.synthetic}
            for part in parts
        ],
    )


def summarize_data(
    train: Windows, val: Windows, settings: PretrainSettings, data_dirs: Sequence[str]
) -> dict[str, Any]:
    """Rows about the windows for the user, with what is assumed because the windows do not say it."""
    synthetic = train.synthetic and val.synthetic
    data = describe_data(train, val, settings)
    kind = "synthetic" if synthetic else "recorded" if data.synthetic_share == 0 else "recorded and synthetic"
    rows = {
        "data": f"{kind} windows in {', '.join(data_dirs)}",
        "train": f"{len(train)} windows of {_subjects(train)}",
        "validation": f"{len(val)} windows of {_subjects(val)}",
        "channels": f"{', '.join(settings.channels)} at {train.sfreq:g} Hz",
    }
    if len(data.parts) > 1:
        each = "; ".join(f"{part['windows']} of {part['name']}" for part in data.parts)
        rows["train"] += f" ({each}: {data.synthetic_share:.0%} synthetic)"
    if changes_by_epoch(train):
        rows["new in every epoch"] = "the synthetic windows; nothing of them is written to disk"
    if changes_by_epoch(val):
        rows["validation"] += ", synthetic and the same in every epoch: no recording was given for it"
    if train.sfreq_is_assumed or val.sfreq_is_assumed:
        rows["assumed rate"] = f"{train.sfreq:g} Hz: the npz has no `sfreq`"
    if not (train.filters and train.units):
        table = resolve_channels(settings.channels_yaml, "pretrain").origin
        rows["assumed filters"] = f"those of {table}: an npz does not say its filters and units"
    elif settings.channels_yaml is not None and not changes_by_epoch(train):
        rows["channel table"] = "not used: the windows say their filters and units themselves"
    unknown = [
        part.name
        for split, windows in (("train", train), ("val", val))
        for part in parts_of(windows, name=split)
        if not part.windows.subjects
    ]
    if unknown:
        rows["not checked"] = f"whether train and val share patients: {', '.join(unknown)} names no patients"
    return rows


def record_data(
    train: Windows, val: Windows, data_dirs: Sequence[str], *, streams: Mapping[str, Any]
) -> dict[str, Any]:
    """What was trained and validated on, for `training_config.json`: directories, hours, people, digests."""
    directories = [
        name if name in streams else path_to_text(path_from_text(name).absolute()) for name in data_dirs
    ]

    def facts(part: Part) -> dict[str, Any]:
        windows = part.windows
        return {
            "name": part.name,
            "windows": len(windows),
            "hours": len(windows) * windows.window_samples / windows.sfreq / 3600,
            "subjects": len(windows.subjects) or None,  # None: nobody says who was recorded
            "synthetic": windows.synthetic,
            "fingerprint": windows.fingerprint,
        }

    name = ", ".join(data_dirs)
    return {
        "directories": directories,
        **{
            split: [facts(part) for part in parts_of(windows, name=name)]
            for split, windows in (("train", train), ("val", val))
        },
    }


def parts_of(windows: Windows, *, name: str) -> tuple[Part, ...]:
    """The parts of mixed windows; of others the windows themselves, under that name."""
    return windows.parts if isinstance(windows, MixedWindows) else (Part(name=name, windows=windows),)


def _subjects(windows: Windows) -> str:
    return f"{len(windows.subjects)} subjects" if windows.subjects else "subjects that the file does not name"
