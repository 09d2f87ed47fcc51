"""Windows and labels of `biofound finetune`: of which subjects, in which splits or folds; without torch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.commands.probe_data import JoinedWindows, LabelRequest, read_labels, refuse_differences
from biofound.core.scores import ScoredTask
from biofound.data.description import DataDescription
from biofound.data.integrity import splits_in
from biofound.data.splits import SPLITS
from biofound.data.windows import Windows, gate_of, open_windows, select_channels
from biofound.errors import DataError
from biofound.settings import FinetuneSettings, ResolvedChannels, WindowsSettings

LOOKED_AT = 256
"""Windows that are read at once to see whether there is signal."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The labelled windows to train on, to stop early by, and to test on, as indices."""

    name: str
    repeat: int
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FinetuneData:
    """The N windows with a label, of all splits, their labels, and the folds to train and test in."""

    windows: JoinedWindows
    task: ScoredTask
    cases: NDArray[np.str_]
    """(N,)."""
    folds: Sequence[Fold]
    subsets: Sequence[tuple[str, ...]]
    """The channels of each model."""
    unlabelled: int
    unlabelled_cases: tuple[str, ...]
    """Cases of which no window has a label."""

    @property
    def synthetic(self) -> bool:
        """Whether no person was recorded."""
        return all(part.synthetic for part in self.windows.parts)

    def fingerprint(self, rows: NDArray[np.int64]) -> str:
        """A digest of these windows and of their labels."""
        digest = hashlib.sha256(" ".join(part.fingerprint for part in self.windows.parts).encode())
        digest.update(self.windows.rows[rows].astype("<i8").tobytes())
        digest.update("\0".join(map(str, self.task.values[rows].tolist())).encode())
        return digest.hexdigest()


def open_finetune_data(settings: FinetuneSettings) -> FinetuneData:
    """The labelled windows under `data_dir`, in the splits that they are in or in folds.

    Raises:
        DataError: when windows or labels cannot be used, or what is to be told apart is not there.
        SettingsError: when the labels asked for are not to be had from these windows.
    """
    where, found = str(settings.data_dir), splits_in(settings.data_dir)
    absent = [split for split in SPLITS if split not in found]
    if absent and settings.folds is None:
        raise DataError(
            f"{where}: no windows for split {', '.join(map(repr, absent))}; fine-tuning trains on train, "
            "stops early by val and is scored on test: build all three, or cross-validate over what there is "
            "(--folds)"
        )
    rate = WindowsSettings().sfreq
    opened = {split: open_windows(settings.data_dir, split, sfreq_if_unsaid=rate) for split in found}
    parts = list(opened.values())
    refuse_differences(parts, where)
    subsets = settings.channels or (JoinedWindows(parts=parts, rows=np.arange(0)).channels,)
    for subset in subsets:
        for part in parts:
            select_channels(part, subset)  # says which channel is not there
    classes = settings.task == "classification"
    wanted = LabelRequest(
        labels=settings.labels, target=settings.target, classes=classes, root=settings.labels_root
    )
    labels, subjects = read_labels(wanted, parts, where=where)
    if labels.numeric == classes:
        kind = "numbers" if labels.numeric else f"words, such as {labels.values[labels.known][0]!r}"
        raise DataError(
            f"{where}: the labels {settings.target} are {kind}, but --task is {settings.task}; give the "
            "other task, or other labels"
        )
    known = np.flatnonzero(labels.known)
    cases = np.concatenate([part.info(np.arange(len(part))).case_id for part in parts])
    split = np.repeat(found, [len(part) for part in parts])[known]
    values = labels.values[known] if labels.numeric else labels.values[known].astype(np.str_)
    task = ScoredTask(target=settings.target, values=values, subjects=subjects[known])
    windows = JoinedWindows(parts=parts, rows=known)
    for subset in subsets:
        _refuse_empty(windows.of_channels(subset), cases[known], where)
    if settings.folds is None:
        folds = [_fold_of_splits(split, task.subjects, where)]
    else:
        folds = _cross_validation(settings, task.subjects)
    for fold in folds:
        _refuse_one_class(task, fold)
    return FinetuneData(
        windows=windows,
        task=task,
        cases=cases[known],
        folds=folds,
        subsets=subsets,
        unlabelled=labels.missing,
        unlabelled_cases=tuple(sorted(set(cases.tolist()) - set(cases[known].tolist()))),
    )


def _fold_of_splits(split: NDArray[np.str_], subjects: NDArray[np.str_], where: str) -> Fold:
    """The splits as one fold, once no subject is in two of them and each has labelled windows."""
    rows = {name: np.flatnonzero(split == name) for name in SPLITS}
    empty = [name for name in SPLITS if not len(rows[name])]
    if empty:
        raise DataError(f"{where}: no window of {', '.join(empty)} has a label; label some of each split")
    refuse_shared_subjects({name: subjects[mine] for name, mine in rows.items()}, where)
    return Fold(name="", repeat=0, **rows)


def refuse_shared_subjects(subjects: Mapping[str, NDArray[np.str_]], where: str) -> None:
    """Refuse sets of windows of which two have a subject in common.

    Raises:
        DataError: which names the subjects.
    """
    names = list(subjects)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            shared = sorted(set(subjects[name].tolist()) & set(subjects[other].tolist()))
            if shared:
                some = f"{', '.join(shared[:5])}{', …' if len(shared) > 5 else ''}"
                raise DataError(
                    f"{where}: {len(shared)} patient(s) are in {name} and in {other} ({some}): the scores "
                    "would be too good; split by patient (`biofound prepare` does)"
                )


def _cross_validation(settings: FinetuneSettings, subjects: NDArray[np.str_]) -> list[Fold]:
    """Folds that no subject crosses; of the training subjects one inner fold is for early stopping."""
    from biofound.core.probe import subject_folds  # scikit-learn

    assert settings.folds is not None
    people = len(np.unique(subjects))
    if people < settings.folds or people - -(-people // settings.folds) < 3:
        raise DataError(
            f"--folds {settings.folds}: {people} subjects have labels; each fold needs 1 to test on, and "
            "3 others to train on and to stop early by: label more subjects, or use fewer folds"
        )
    found = []
    dealt = subject_folds(subjects, folds=settings.folds, repeats=settings.repeats, seed=settings.seed)
    for repeat, folds in enumerate(dealt):
        for number, fold in enumerate(folds):
            inner = subject_folds(
                subjects[fold.train],
                folds=min(settings.folds, len(np.unique(subjects[fold.train]))),
                repeats=1,
                seed=settings.seed + repeat,
            )[0][0]
            rows = {"train": fold.train[inner.train], "val": fold.train[inner.test], "test": fold.test}
            name = f"fold_{number + 1}" if settings.repeats == 1 else f"fold_{repeat + 1}_{number + 1}"
            refuse_shared_subjects({part: subjects[mine] for part, mine in rows.items()}, name)
            found.append(Fold(name=name, repeat=repeat, **rows))
    return found


def _refuse_one_class(task: ScoredTask, fold: Fold) -> None:
    """Refuse training windows that are all alike, or lack a class that others have."""
    where = f"in {fold.name} the training windows" if fold.name else "the training windows"
    advice = "use fewer folds, or more subjects with it" if fold.name else "split otherwise, or leave it out"
    there = task.values[fold.train]
    if len(np.unique(there)) < 2:
        raise DataError(
            f"{where} all have {task.target} {there[0]!s}: there is nothing to tell apart; "
            "label windows of other classes, or use another target"
        )
    if not task.numeric:
        absent = sorted(set(task.values.tolist()) - set(there.tolist()))
        if absent:
            raise DataError(
                f"{where} have no {task.target} {', '.join(map(repr, absent))}, which others have; {advice}"
            )


def _refuse_empty(windows: JoinedWindows, cases: NDArray[np.str_], where: str) -> None:
    """Refuse a labelled window in which no channel has a finite sample."""
    empty: set[str] = set()
    for start in range(0, len(windows), LOOKED_AT):
        index = np.arange(start, min(start + LOOKED_AT, len(windows)))
        real = np.isfinite(windows.read(index)).any(axis=(1, 2))
        empty |= set(cases[index[~real]].tolist())
    if empty:
        some = f"{', '.join(sorted(empty)[:5])}{', …' if len(empty) > 5 else ''}"
        raise DataError(
            f"{where}: {len(empty)} recording(s) have labelled windows without a sample of any of "
            f"{', '.join(windows.channels)} ({some}); leave their labels out, or use other channels"
        )


def describe_rows(
    data: FinetuneData,
    rows: NDArray[np.int64],
    channels: Sequence[str],
    *,
    absent: Sequence[str] = (),
    parent: DataDescription,
    table: ResolvedChannels,
) -> DataDescription:
    """The description of windows for a task model's file.

    What the windows do not say of a channel is taken from the checkpoint, else from the channel table; of an
    absent one, from the checkpoint.

    Raises:
        SettingsError: when the table lacks a channel that it is needed for.
    """
    parts: Sequence[Windows] = [select_channels(part, channels) for part in data.windows.parts]
    gate = next((found for part in parts if (found := gate_of(part)) is not None), None)
    filters, units, thresholds = {}, {}, {}
    for name in (*channels, *absent):
        said = [part for part in parts if name in part.filters and name in part.units]
        if said:
            filters[name], units[name] = said[0].filters[name], said[0].units[name]
        elif name in parent.filters:
            filters[name], units[name] = parent.filters[name], parent.units[name]
        else:
            channel = table.named([name])[0]
            filters[name], units[name] = channel.band.as_json(), channel.unit
        if gate is not None and name not in absent:
            thresholds[name] = gate.quality_thresholds[name]
        elif name in parent.quality_thresholds:
            thresholds[name] = parent.quality_thresholds[name]
        else:
            thresholds[name] = table.named([name])[0].quality_threshold
    return DataDescription(
        sfreq=parts[0].sfreq,
        filters=filters,
        units=units,
        quality_thresholds=thresholds,
        max_gap_seconds=parent.max_gap_seconds if gate is None else gate.max_gap_seconds,
        fingerprint=data.fingerprint(rows),
        synthetic=data.synthetic,
        subjects=tuple(np.unique(data.task.subjects[rows]).tolist()),
    )


def summary_rows(data: FinetuneData, settings: FinetuneSettings) -> dict[str, Any]:
    """Rows about windows and labels for the user."""
    task, kind = data.task, "synthetic" if data.synthetic else "recorded"
    rows = {"data": f"{kind} windows in {settings.data_dir}"}
    if settings.folds is None:
        for name in SPLITS:
            mine = getattr(data.folds[0], name)
            rows[name] = f"{len(mine)} windows of {len(np.unique(task.subjects[mine]))} subjects"
    else:
        people = len(np.unique(task.subjects))
        rows["folds"] = (
            f"{settings.folds} x {settings.repeats} of {len(task.values)} windows, {people} subjects"
        )
    if data.unlabelled:
        rows["no label"] = f"{data.unlabelled} windows, which are left out"
        if data.unlabelled_cases:
            some = f"{', '.join(data.unlabelled_cases[:5])}{', …' if len(data.unlabelled_cases) > 5 else ''}"
            rows["no label"] += f"; all of {len(data.unlabelled_cases)} recording(s): {some}"
    return rows
