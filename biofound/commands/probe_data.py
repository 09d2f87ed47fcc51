"""Windows and labels of `biofound probe`: all splits of a directory, read by batch, with their labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biofound import console
from biofound.data.description import DataDescription
from biofound.data.integrity import splits_in
from biofound.data.labels import (
    WindowLabels,
    WindowTimes,
    labels_from_annotations,
    labels_from_butppg,
    labels_from_csv,
    labels_from_numerics,
)
from biofound.data.mixture import MixedWindows, Part
from biofound.data.sources import Source
from biofound.data.sources.registry import open_source
from biofound.data.splits import UNKNOWN
from biofound.data.windows import Windows, open_windows, select_channels, source_of
from biofound.errors import DataError, SettingsError
from biofound.settings import ProbeSettings, WindowsSettings
from biofound.settings.probe import ANNOTATIONS, NUMERICS

if TYPE_CHECKING:
    from biofound.core.checkpoint import Checkpoint, Parent
    from biofound.core.task import TaskCheckpoint

_READERS: Mapping[tuple[str, str], Callable[..., WindowLabels]] = {
    ("wfdb", NUMERICS): labels_from_numerics,
    ("wfdb", ANNOTATIONS): labels_from_annotations,
    ("butppg", ANNOTATIONS): labels_from_butppg,
}
"""How the labels beside recordings are read, by their source and the word that asks for them."""


@dataclass(frozen=True, kw_only=True)
class JoinedWindows:
    """Rows of several sets of windows, one set after the other, read by batch.

    `rows` (N,) counts through all sets.
    """

    parts: Sequence[Windows]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """A batch (B, C, T) of the windows `index` (B,)."""
        return self._all.read(self.rows[index])

    @cached_property
    def _all(self) -> MixedWindows:
        """All windows of the sets, which have the same channels (`of_channels`)."""
        return MixedWindows([Part(name=f"set {k}", windows=part) for k, part in enumerate(self.parts)])

    def of_channels(self, channels: Sequence[str], *, absent: Sequence[str] = ()) -> "JoinedWindows":
        """The same windows with these channels, in this order.

        What is `absent`, or not all of them have, is a gap in all.
        """
        absent = [name for name in channels if name in absent or name not in self.channels]
        return replace(self, parts=[select_channels(part, channels, absent=absent) for part in self.parts])

    @property
    def channels(self) -> tuple[str, ...]:
        """The channel names that all windows have, in the order of the first."""
        first, *others = (part.channels for part in self.parts)
        return tuple(name for name in first if all(name in other for other in others))

    @property
    def sfreq(self) -> float:
        """Hz."""
        return self.parts[0].sfreq

    def followed_by(self, other: "JoinedWindows") -> "JoinedWindows":
        """These windows, then those.

        Raises:
            DataError: when their length or rate differs, or they have no channel in common.
        """
        joined = JoinedWindows(
            parts=[*self.parts, *other.parts],
            rows=np.concatenate([self.rows, other.rows + sum(map(len, self.parts))]),
        )
        refuse_differences(joined.parts, "data_dir and test_data_dir")
        return joined


def refuse_differences(parts: Sequence[Windows], where: str) -> None:
    """Refuse sets of windows that cannot be read as one.

    Raises:
        DataError: when their length or rate differs, or they have no channel in common.
    """
    shapes = {(part.window_samples, part.sfreq) for part in parts}
    if len(shapes) > 1:
        shown = ", ".join(f"{samples} samples at {sfreq:g} Hz" for samples, sfreq in sorted(shapes))
        raise DataError(f"{where}: windows differ: {shown}; build all with the same settings")
    if not set.intersection(*(set(part.channels) for part in parts)):
        shown = "; ".join(sorted({", ".join(part.channels) for part in parts}))
        raise DataError(f"{where}: windows have no channel in common: {shown}")


@dataclass(frozen=True, kw_only=True)
class LabelledWindows:
    """The N windows with a label: `values` (N,), numbers or words, and `subjects` (N,)."""

    windows: JoinedWindows
    values: NDArray[Any]
    subjects: NDArray[np.str_]
    unlabelled: int


def open_labelled(settings: ProbeSettings, data_dir: Path) -> LabelledWindows:
    """The windows of all splits under `data_dir` that have a label.

    Raises:
        DataError: when windows or labels cannot be used, or no window has a label.
        SettingsError: when the labels asked for are not to be had from these windows.
    """
    rate = WindowsSettings().sfreq
    parts = [open_windows(data_dir, split, sfreq_if_unsaid=rate) for split in splits_in(data_dir)]
    refuse_differences(parts, str(data_dir))
    wanted = LabelRequest(
        labels=settings.labels,
        target=settings.target,
        classes=settings.classes,
        root=settings.labels_root,
    )
    labels, subjects = read_labels(wanted, parts, where=str(data_dir))
    known = np.flatnonzero(labels.known)
    return LabelledWindows(
        windows=JoinedWindows(parts=parts, rows=known),
        values=labels.values[known],
        subjects=subjects[known],
        unlabelled=labels.missing,
    )


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """The labels of windows that are asked for: a CSV's, or the recordings' own.

    `root` says where the recordings are now, `classes` that a CSV's numbers are names of classes; `option` is
    the command line's for `labels`, for messages.
    """

    labels: str
    target: str
    classes: bool = False
    root: Path | None = None
    option: str = "--labels"


def read_labels(
    wanted: LabelRequest, parts: Sequence[Windows], *, where: str
) -> tuple[WindowLabels, NDArray[np.str_]]:
    """The labels of all windows of the parts, in their order, and whose they are (N,).

    Raises:
        DataError: when windows or labels cannot be used, or no window has a label.
        SettingsError: when the labels asked for are not to be had from these windows.
    """
    infos = [part.info(np.arange(len(part))) for part in parts]
    subjects = np.concatenate([info.subject_id for info in infos])
    times = WindowTimes(
        case_id=np.concatenate([info.case_id for info in infos]),
        start_s=np.concatenate([info.start_s for info in infos]),
        window_seconds=parts[0].window_samples / parts[0].sfreq,
    )
    nameless, timeless = (subjects == UNKNOWN).sum(), (~np.isfinite(times.start_s)).sum()
    if nameless or timeless:
        raise DataError(
            f"{where}: of its {len(subjects)} windows {nameless} do not say whose they are, and "
            f"{timeless} not when they start. Recordings of unknown patients are for pretraining alone, as "
            "no fold could keep a patient out; a plain npz needs `subjects`, `case_ids` and `start_s`"
        )
    if wanted.labels in (NUMERICS, ANNOTATIONS):
        labels = _from_recordings(wanted, parts, times, where=where)
    else:
        words = True if wanted.classes else None
        labels = labels_from_csv(Path(wanted.labels), wanted.target, windows=times, words=words)
    if labels.known.any() and labels.outside:
        console.warning(labels.outside)
    if not labels.known.any():
        raise DataError(
            f"{where}: none of its {len(subjects)} windows has a label {wanted.target}; labels must "
            "overlap windows in time: seconds count from the start of the case's recording"
        )
    return labels, subjects


def _from_recordings(
    wanted: LabelRequest, parts: Sequence[Windows], times: WindowTimes, *, where: str
) -> WindowLabels:
    """The labels that lie beside the recordings; windows of other sources have none."""
    descriptions = [source_of(part) for part in parts]
    distinct = [one for k, one in enumerate(descriptions) if one not in descriptions[:k]]
    recorded = [one for one in distinct if (one.get("name"), wanted.labels) in _READERS]
    if not recorded:
        names = ", ".join(one.get("name", "a plain npz") for one in distinct)
        known = " or ".join(source for source, labels in _READERS if labels == wanted.labels)
        raise SettingsError(
            f"{wanted.option} {wanted.labels}: expected a window store built from source {known}, got "
            f"{where}, built from {names}; give a CSV of labels"
        )
    if wanted.root is not None and len(recorded) > 1:
        raise SettingsError(
            f"{wanted.option}-root: names one directory, but the windows were built from {len(recorded)}; "
            "give a CSV of labels, or put the recordings back where they were"
        )
    number = np.repeat([distinct.index(one) for one in descriptions], [len(part) for part in parts])
    values: NDArray[Any] | None = None
    for description in recorded:
        mine = np.flatnonzero(number == distinct.index(description))
        own = replace(times, case_id=times.case_id[mine], start_s=times.start_s[mine])
        read = _READERS[description["name"], wanted.labels]
        found = read(_open_recordings(wanted, description), wanted.target, windows=own)
        if values is None:
            values = np.full(len(number), np.nan if found.numeric else None, found.values.dtype)
        if values.dtype != found.values.dtype:
            raise DataError(f"{where}: {wanted.target} is a number in some recordings and a word in others")
        values[mine] = found.values
    assert values is not None  # there are recordings
    return WindowLabels(target=wanted.target, values=values)


def _open_recordings(wanted: LabelRequest, description: Mapping[str, Any]) -> Source:
    moved = {} if wanted.root is None else {"root": str(wanted.root)}
    try:
        return open_source(**{**description, **moved})
    except DataError as problem:
        raise DataError(f"{problem}; say with {wanted.option}-root where the recordings are now") from problem


def check_fit(name: str, checkpoint: "Checkpoint | TaskCheckpoint", parts: Sequence[Windows]) -> None:
    """Refuse windows that are not of the kind that a model was trained on.

    Raises:
        DataError: when length, rate, filters or units differ, or they lack a channel that it needs.
    """
    model, data = checkpoint.model, checkpoint.data
    for part in parts:
        if (part.sfreq, part.window_samples) != (data.sfreq, model.context_length):
            raise DataError(
                f"{name}: takes {', '.join(model.channels)}, {model.context_length} samples at "
                f"{data.sfreq:g} Hz; the windows hold {', '.join(part.channels)}, {part.window_samples} "
                f"samples at {part.sfreq:g} Hz: build windows as for its training"
            )
        absent = absent_channels(name, checkpoint, part.channels)
        for what, ours, theirs in (("filter", part.filters, data.filters), ("unit", part.units, data.units)):
            for channel in model.channels:
                if channel not in absent and channel in ours and ours[channel] != theirs[channel]:
                    raise DataError(
                        f"{name}: was trained on windows whose {what} of {channel} is {theirs[channel]}; "
                        f"these have {ours[channel]}: build windows with the same channel table"
                    )


def seen_in_pretraining(checkpoint: "Checkpoint", parts: Sequence[Windows]) -> tuple[str, ...] | None:
    """On whom a checkpoint and all its ancestors were pretrained; None where one of them does not tell.

    Args:
        checkpoint: the checkpoint.
        parts: windows that are scored: a training's fingerprint may be one of theirs.
    """
    from biofound.core.probe import pretraining_subjects  # scikit-learn

    trainings: list[DataDescription | Parent] = [checkpoint.data, *checkpoint.ancestors()]
    stores = {part.fingerprint: part.subjects for part in parts}
    seen = [
        pretraining_subjects(
            fingerprint=training.fingerprint,
            subjects=training.subjects,
            synthetic=training.synthetic,
            stores=stores,
        )
        for training in trainings
    ]
    known = [subjects for subjects in seen if subjects is not None]
    return tuple(sorted(set().union(*known))) if len(known) == len(seen) else None


def absent_channels(
    name: str, checkpoint: "Checkpoint | TaskCheckpoint", available: Sequence[str]
) -> tuple[str, ...]:
    """`Checkpoint.absent_channels`, with the checkpoint's name before its messages."""
    try:
        return checkpoint.absent_channels(available)
    except DataError as problem:
        raise DataError(f"{name}: {problem}") from problem
