"""Sources of recordings: the protocol that each implements, whatever its file format."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.errors import DataError


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
    the same time, and replaced them. `track` is the raw name, where the source says it.
    """

    samples: NDArray[np.float32]
    sfreq: float
    unit: str
    header_sfreq: float | None = None
    overlapping_samples: int = 0
    track: str = ""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The channels asked for of one case, all starting at the same instant.

    `signals` maps channel *name* to its signal; rates may differ, the start does not.
    """

    case_id: str
    signals: Mapping[str, Signal]


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

    def cases(self, channels: Sequence[Channel]) -> list[Case]:
        """The cases that have all `channels`, sorted by case id."""
        ...

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        """The samples of one case. A channel that is missing, or NaN throughout, is an error."""
        ...

    def fingerprint(self, case_id: str) -> str:
        """A hex digest that changes when what `read` would give changes (SHA-256 of the source files)."""
        ...


@runtime_checkable
class FetchingSource(Source, Protocol):
    """A source whose recordings can be downloaded before they are read."""

    on_retry: Callable[[str], None] | None
    """Told, in words, when a download has failed and is tried again."""

    def fetch(self, case_id: str) -> Path:
        """Download one case unless it is in the cache; safe from several threads and processes at once."""
        ...


@runtime_checkable
class SelectiveSource(Source, Protocol):
    """A source that lists the recordings that lack a channel."""

    def left_out(self, channels: Sequence[Channel]) -> Mapping[str, tuple[str, ...]]:
        """The recordings that are no cases, by id, each with the channels it lacks."""
        ...


@runtime_checkable
class ListingSource(Source, Protocol):
    """A source that lists the tracks of its recordings."""

    def tracks(self) -> TrackList:
        """The tracks of every recording, whether it has the channels or not."""
        ...


def list_recordings(case_ids: Iterable[str], look: Callable[[str], tuple[ListedTrack, ...]]) -> TrackList:
    """List the tracks that `look` gives of each recording, also after one that cannot be read."""
    tracks, refused = {}, {}
    for case_id in sorted(case_ids):
        try:
            tracks[case_id] = look(case_id)
        except DataError as error:
            refused[case_id] = str(error)
    return TrackList(tracks=tracks, refused=refused)
