"""Sources of recordings: the protocol that each implements, whatever its file format."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.errors import DataError

_Seen = TypeVar("_Seen")

_Found = TypeVar("_Found")

SHOWN = 50
"""Recordings listed in one message."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recording session as its source lists it, before any sample is read.

    `subject_id` is None where the source does not know who was recorded: the split then refuses, unless
    told to treat each record as a different subject. `tracks` are the raw names available.
    `duration_s` are seconds of signal; None where the source knows it only after reading.
    """

    case_id: str
    subject_id: str | None
    tracks: tuple[str, ...]
    duration_s: float | None


@dataclass(frozen=True, kw_only=True)
class ListedTrack:
    """A track of a recording as a source lists it.

    `sfreq` is in Hz, None for single values and text. `duration_s` are seconds of signal, without gaps where
    the source knows them; None where it knows it only after reading.
    """

    name: str
    sfreq: float | None
    unit: str
    duration_s: float | None


@dataclass(frozen=True, kw_only=True)
class TrackList:
    """The tracks of a source's recordings by id; `refused` are those that cannot be read, with the reason."""

    tracks: Mapping[str, tuple[ListedTrack, ...]]
    refused: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One channel at its native rate: `samples` (T,) float32 in physical units, NaN in gaps.

    `sfreq` in Hz is the rate at which the samples were taken; `header_sfreq` the one that the recording's
    header says, where that may be another. `overlapping_samples` contradict samples that were recorded for
    the same time, and replaced them. `doubtful_samples` may have been recorded earlier than where they stand:
    nothing tells whether their packet is stamped with its start or its end. `track` is the raw name, where
    the source says it.
    """

    samples: NDArray[np.float32]
    sfreq: float
    unit: str
    header_sfreq: float | None = None
    overlapping_samples: int = 0
    doubtful_samples: int = 0
    track: str = ""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The channels asked for of one case, all starting at the same instant.

    `signals` maps channel *name* to its signal; rates may differ, the start does not. Channels that are
    not required may be missing.
    """

    case_id: str
    signals: Mapping[str, Signal]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All recordings of a source by id: `cases`, sorted, and those that are none.

    `left_out` are the recordings that lack channels, each with the names of these; `refused` those that
    cannot be used, each with the reason. `repaired` are cases whose headers had signals and samples
    transposed, each with the names of these headers.
    """

    cases: list[Case]
    left_out: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]
    repaired: Mapping[str, str] = field(default_factory=dict)

    def usable(self, *, skip_failed: bool = False) -> list[Case]:
        """The cases, if no recording was refused; with `skip_failed` whatever was refused.

        Raises:
            DataError: when recordings were refused and must not be skipped, or nothing else is there.
        """
        if self.refused and not (skip_failed and self.cases):
            number = len(self.cases) + len(self.left_out) + len(self.refused)
            reasons = list(self.refused.values())
            shown = "\n".join(f"  {reason}" for reason in reasons[:SHOWN])
            more = f"\n  and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
            advice = "correct these" if skip_failed else "correct these, or leave them out with --skip-failed"
            raise DataError(f"{len(reasons)} of {number} recordings cannot be used; {advice}:\n{shown}{more}")
        return self.cases


def survey_recordings(
    case_ids: Iterable[str], look: Callable[[str], Case | tuple[str, ...] | None]
) -> Survey:
    """Look at every recording, also after one that cannot be used.

    Args:
        case_ids: the ids of the recordings.
        look: gives a recording's case, or the names of the channels that it lacks, or None for what is no
            recording of its own; raises `DataError` or `OSError` for one that cannot be used.
    """
    seen: dict[str, Case | tuple[str, ...] | None] = {}
    refused = _look_at_all(case_ids, look, seen)
    return Survey(
        cases=[found for found in seen.values() if isinstance(found, Case)],
        left_out={case_id: found for case_id, found in seen.items() if isinstance(found, tuple)},
        refused=refused,
    )


def _look_at_all(
    case_ids: Iterable[str], look: Callable[[str], _Seen], seen: dict[str, _Seen]
) -> dict[str, str]:
    """Put into `seen` what `look` gives of each recording; returns why it gives nothing of the others."""
    refused: dict[str, str] = {}
    for case_id in sorted(case_ids):
        try:
            seen[case_id] = look(case_id)
        except UNREADABLE as error:
            refused[case_id] = why_unreadable(case_id, error)
    return refused


UNREADABLE = (DataError, OSError, MemoryError)
"""What comes of a recording that cannot be used, and is its own fault; see `why_unreadable`."""


def why_unreadable(case_id: str, error: DataError | OSError | MemoryError) -> str:
    """One of `UNREADABLE` in words, which name the recording."""
    match error:
        case OSError():
            reason = f"{error.filename or 'its file'} cannot be read ({error.strerror or error})"
        case MemoryError():
            reason = "out of memory; give fewer workers, or more memory"
        case _:
            return str(error)
    return f"case {case_id}: {reason}"


class AbsentChannelError(DataError):
    """A recording lacks a channel, or holds nothing but gaps of it."""


def missing_channels(channels: Sequence[Channel], has: Callable[[Channel], bool]) -> tuple[str, ...]:
    """The channels for whose lack a recording is left out: required ones; all, where it has none at all."""
    missing = [channel for channel in channels if not has(channel)]
    has_none = len(missing) == len(channels)
    return tuple(channel.name for channel in missing if channel.required or has_none)


def present_channels(channels: Iterable[Channel], find: Callable[[Channel], _Found]) -> dict[str, _Found]:
    """What `find` gives of each channel, by name, without those that are not required and absent.

    Raises:
        AbsentChannelError: from `find`, for a required channel, or where all are absent.
    """
    found: dict[str, _Found] = {}
    absent: AbsentChannelError | None = None
    for channel in channels:
        try:
            found[channel.name] = find(channel)
        except AbsentChannelError as error:
            if channel.required:
                raise
            absent = error
    if absent is not None and not found:
        raise absent
    return found


class Source(Protocol):
    """A source of recordings. All methods raise `DataError` with the case and channel named.

    A source is picklable, and small when pickled: each worker of a build gets a copy.
    """

    name: str
    """`synthetic`, `wfdb`, ...; see `registry.SourceName`."""

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Plain JSON that opens this very source again (`open_source(**description)`)."""
        ...

    def version(self) -> str:
        """The data set's version, which changes when the recordings change."""
        ...

    def survey(self, channels: Sequence[Channel]) -> Survey:
        """All recordings: cases that have all required `channels`, those that lack one, and those refused."""
        ...

    def cases(self, channels: Sequence[Channel]) -> list[Case]:
        """The cases that have all required `channels`, sorted by id; refused recordings are an error."""
        return self.survey(channels).usable()

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        """The samples of one case. A channel that is missing, or NaN throughout, is an error.

        One that is not required is then left out of `Recording.signals`, unless all are missing.
        """
        ...

    def fingerprint(self, case_id: str) -> str:
        """A hex digest that changes when what `read` would give changes (SHA-256 of the source files)."""
        ...


@runtime_checkable
class FetchingSource(Source, Protocol):
    """A source whose recordings can be downloaded before they are read."""

    def fetch(self, case_id: str) -> Path:
        """Download one case unless it is in the cache; safe from several threads and processes at once."""
        ...


@runtime_checkable
class RetryingSource(FetchingSource, Protocol):
    """A source that says when a download has failed and is tried again."""

    on_retry: Callable[[str], None] | None
    """Told, in words, why and until when."""


@runtime_checkable
class ListingSource(Source, Protocol):
    """A source that lists the tracks of its recordings."""

    def tracks(self) -> TrackList:
        """The tracks of every recording, whether it has the channels or not."""
        ...


def list_recordings(case_ids: Iterable[str], look: Callable[[str], tuple[ListedTrack, ...]]) -> TrackList:
    """List the tracks that `look` gives of each recording, also after one that cannot be read."""
    tracks: dict[str, tuple[ListedTrack, ...]] = {}
    return TrackList(tracks=tracks, refused=_look_at_all(case_ids, look, tracks))
