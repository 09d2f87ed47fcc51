"""Window stores on disk: one npz and one sidecar a case, one index, and how they are read.

```
DIR/train/index.json         what the store holds; there only when the store is whole
DIR/train/<case>.npz         x (N, C, T), mean (N, C), std (N, C), start_s (N,), quality (N, C)
DIR/train/<case>.json        how the case was made, what was dropped and why, the npz's SHA-256
```
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from biofound.data.channels import DType, MotionGate, PassBand
from biofound.data.npz import Member, find_members, map_members
from biofound.data.segments import Segments, WindowInfo, checked_index, find_segments, gather
from biofound.data.splits import UNKNOWN, NamedSource, SourceDescription, SplitName
from biofound.errors import DataError
from biofound.files import JsonFile, SealedFile, StrictModel, read_json_as

INDEX_NAME = "index.json"
MEMBERS = ("x", "mean", "std", "start_s", "quality")
MAPS_OPEN = 256
"""Memory maps open at once. Each holds a file descriptor, of which a process commonly has 1,024."""

NOTABLE_BRIDGED = 1e-3
"""Share of a channel's samples that are bridged, above which a summary names the recording."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of windows, cases or bytes: one that a float64 holds exactly."""

Counts = dict[str, dict[str, Count]]
"""Windows by reason and channel, or by channel and reason."""


class StoreHeader(StrictModel):
    """How all windows of a store were made: what its index and every sidecar say."""

    biofound_version: str
    settings_sha256: str
    channels: tuple[str, ...]
    optional_channels: tuple[str, ...]
    units: dict[str, str]
    filters: dict[str, PassBand]
    quality_thresholds: dict[str, float]
    sfreq: Annotated[float, Field(gt=0)]
    window_samples: Annotated[int, Field(ge=2, le=2**31)]
    max_gap_seconds: float
    dtype: DType
    motion_gate: MotionGate = "off"

    @model_validator(mode="after")
    def _describe_every_channel(self) -> Self:
        if not self.channels or len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels must be different names, got {', '.join(self.channels) or 'none'}")
        if not set(self.optional_channels) <= set(self.channels):
            raise ValueError(f"optional_channels must be among {', '.join(self.channels)}")
        for key in ("units", "filters", "quality_thresholds"):
            if getattr(self, key).keys() != set(self.channels):
                raise ValueError(f"{key} must have the keys {', '.join(self.channels)}")
        return self

    def hours_of(self, windows: int) -> float:
        """The length of so many windows in hours."""
        return windows * self.window_samples / self.sfreq / 3600


class Timing(StrictModel):
    """What a channel's recording says about its own time, at its native rate.

    Attributes:
        track: raw name of the track, or "" where the source does not say it.
        samples: number of samples, gaps included.
        header_sfreq: sampling rate in Hz by the recording's header.
        sfreq: the rate in Hz at which the samples were taken; another where the clock drifted steadily.
        bridged_samples: missing samples in place of which stands a straight line.
        overlapping_samples: samples that contradicted others recorded for the same time, and replaced them.
        doubtful_samples: samples that may have been recorded earlier, as nothing tells whether their packet,
            a long one at the track's end, is stamped with its start or its end.
    """

    track: str
    samples: int
    header_sfreq: float
    sfreq: float
    bridged_samples: int
    overlapping_samples: int
    doubtful_samples: int

    @property
    def is_notable(self) -> bool:
        """Whether the rate is not the header's, or samples are bridged (many), doubtful or contradicted."""
        return (
            self.sfreq != self.header_sfreq
            or self.overlapping_samples > 0
            or self.doubtful_samples > 0
            or self.bridged_samples > NOTABLE_BRIDGED * self.samples
        )


class CaseHeader(StoreHeader, JsonFile):
    """How the windows of one case were made. A case whose sidecar says the same is up to date."""

    kind: Literal["biofound-windows-case"] = "biofound-windows-case"
    format_version: Literal[5] = 5
    case_id: str
    subject_id: str
    source: str
    source_fingerprint: str


class Sidecar(CaseHeader, SealedFile):
    """What stands beside the npz of a case: how it was made, and what it holds.

    `dropped` is reason to channel to windows; each dropped window counts once, so that `windows` and these
    add up to `candidates`. `rejected` is channel to reason to windows, each channel by itself. `timing` is by
    channel.
    """

    file: str
    npz_sha256: str
    npz_bytes: Count
    candidates: Count
    windows: Count
    hours: float
    dropped: Counts
    rejected: Counts
    timing: dict[str, Timing]


class IndexedCase(StrictModel):
    """One case as the index lists it; `sha256` is that of `file`, its npz."""

    case_id: str
    subject_id: str
    file: str
    windows: Count
    sha256: str


class Totals(StrictModel):
    """Sums over a store's cases; cases without any kept window count too, unknown subjects do not."""

    cases: Count
    subjects: Count
    candidates: Count
    windows: Count
    hours: float


class StoreIndex(StoreHeader, SealedFile):
    """The index of one split's store; `dropped` and `rejected` are the sums of the sidecars'."""

    kind: Literal["biofound-windows"] = "biofound-windows"
    format_version: Literal[4] = 4
    split: SplitName
    synthetic: bool
    source: NamedSource
    dataset_version: str
    cases: tuple[IndexedCase, ...]
    failed_cases: tuple[str, ...]
    totals: Totals
    dropped: Counts
    rejected: Counts
    fingerprint: str


def make_index(
    sidecars: Sequence[Sidecar],
    *,
    header: StoreHeader,
    split: SplitName,
    source: SourceDescription,
    dataset_version: str,
    failed_cases: Sequence[str],
) -> StoreIndex:
    """The index of a store that holds these cases."""
    cases = tuple(
        IndexedCase(
            case_id=sidecar.case_id,
            subject_id=sidecar.subject_id,
            file=sidecar.file,
            windows=sidecar.windows,
            sha256=sidecar.npz_sha256,
        )
        for sidecar in sorted(sidecars, key=lambda sidecar: sidecar.case_id)
    )
    windows = sum(sidecar.windows for sidecar in sidecars)
    return StoreIndex.seal(
        **{name: getattr(header, name) for name in StoreHeader.model_fields},
        split=split,
        synthetic=source["name"] == "synthetic",
        source=source,
        dataset_version=dataset_version,
        cases=cases,
        failed_cases=tuple(failed_cases),
        totals=Totals(
            cases=len(sidecars),
            subjects=len({sidecar.subject_id for sidecar in sidecars} - {UNKNOWN}),
            candidates=sum(sidecar.candidates for sidecar in sidecars),
            windows=windows,
            hours=header.hours_of(windows),
        ),
        dropped=sum_counts(sidecar.dropped for sidecar in sidecars),
        rejected=sum_counts(sidecar.rejected for sidecar in sidecars),
        fingerprint=fingerprint_of(cases),
    )


def sum_counts(counts: Iterable[Counts]) -> Counts:
    """Add up counts key by key."""
    sums: Counts = {}
    for one in counts:
        for outer, row in one.items():
            sum_row = sums.setdefault(outer, {})
            for inner, count in row.items():
                sum_row[inner] = sum_row.get(inner, 0) + count
    return sums


def total(counts: Counts) -> int:
    """The number of windows in all of `counts`."""
    return sum(sum(row.values()) for row in counts.values())


def file_stem(case_id: str) -> str:
    """The name of a case's files without suffix: its id, percent-encoded where a file name needs it."""
    stem = quote(case_id, safe=" ()+,=@[]")
    return "%69ndex" if stem == "index" else stem


def fingerprint_of(cases: Iterable[IndexedCase]) -> str:
    """The SHA-256 over every case's id and npz SHA-256, in the order of their ids."""
    lines = sorted(f"{case.case_id} {case.sha256}\n" for case in cases)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_index(directory: Path) -> StoreIndex:
    """The index of the store in `directory`.

    Raises:
        DataError: when it is missing, no index, of another format version, or damaged.
    """
    return read_json_as(directory / INDEX_NAME, StoreIndex, hint="build the store with `biofound windows`")


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar of one case.

    Raises:
        DataError: when it is missing, no sidecar, of another format version, or damaged.
    """
    return read_json_as(path, Sidecar, hint="build the store again with `biofound windows`")


@dataclass(frozen=True, slots=True)
class _OpenCase:
    """The mapped arrays of one case of N windows, and which of them adjoin."""

    x: NDArray[Any]
    start_s: NDArray[np.float64]
    quality: NDArray[np.float32]
    segments: Segments


class StoreWindows:
    """The windows of one split's store, memory-mapped case by case; never read as a whole.

    Args:
        directory: the store.
        index: what to take for its index, where that is not on disk.

    Raises:
        DataError: when the index or a file it lists is missing or does not fit.
    """

    def __init__(self, directory: Path, index: StoreIndex | None = None) -> None:
        self.directory, self.index = directory, index or read_index(directory)
        index = self.index
        self.channels, self.sfreq, self.window_samples = index.channels, index.sfreq, index.window_samples
        self.filters = {name: band.as_json() for name, band in index.filters.items()}
        self.units, self.synthetic, self.fingerprint = index.units, index.synthetic, index.fingerprint
        self.sfreq_is_assumed = False
        self._cases = [case for case in index.cases if case.windows > 0]
        self.subjects = tuple(sorted({case.subject_id for case in self._cases} - {UNKNOWN}))
        windows = np.array([case.windows for case in self._cases], np.int64)
        self._ends = np.cumsum(windows)
        self._starts = self._ends - windows
        missing = [case.file for case in self._cases if not (directory / case.file).is_file()]
        if missing:
            raise DataError(
                f"{directory}: {len(missing)} of the {len(self._cases)} files in {INDEX_NAME} are missing, "
                f"{missing[0]} first; run `biofound windows` again to build them"
            )
        self._refuse_short_files()
        self._layouts: dict[int, dict[str, Member]] = {}
        # an lru_cache is safe to use from a prefetching thread beside the main one
        self._case = functools.lru_cache(maxsize=MAPS_OPEN)(self._open_case)

    def _refuse_short_files(self) -> None:
        """Refuse truncated files at once, by their sizes: else a training would meet them after hours."""
        window_bytes = np.dtype(self.index.dtype).itemsize * len(self.channels) * self.window_samples
        short = [
            case.file
            for case in self._cases
            if (self.directory / case.file).stat().st_size < case.windows * window_bytes
        ]
        if short:
            raise DataError(
                f"{self.directory}: {len(short)} of the {len(self._cases)} files in {INDEX_NAME} are "
                f"truncated, {short[0]} first; run `biofound windows` again to build them"
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A batch (B, C, T); see `Windows.read`."""
        index = checked_index(index, crop, len(self))
        out = np.empty((len(index), len(self.channels), self.window_samples), np.float32)
        for case, into, rows in self._by_case(index):
            gather(case.x, rows, out, into, case.segments, None if crop is None else crop[into])
        return out

    def info(self, index: NDArray[np.int64]) -> WindowInfo:
        """Case, subject, start and quality of the windows `index` (B,)."""
        index = checked_index(index, None, len(self))
        number = self._case_number(index)
        case_id, subject_id = (
            np.array([getattr(case, name) for case in self._cases], str)[number]
            for name in ("case_id", "subject_id")
        )
        start_s = np.empty(len(index), np.float64)
        quality = np.empty((len(index), len(self.channels)), np.float32)
        for case, into, rows in self._by_case(index):
            start_s[into], quality[into] = case.start_s[rows], case.quality[rows]
        return WindowInfo(case_id=case_id, subject_id=subject_id, start_s=start_s, quality=quality)

    def _case_number(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._ends, index, side="right")

    def _by_case(
        self, index: NDArray[np.int64]
    ) -> Iterator[tuple[_OpenCase, NDArray[np.int64], NDArray[np.int64]]]:
        """Each case that `index` (B,) touches: the case, the positions in `index`, and its rows there."""
        number = self._case_number(index)
        by_case = np.argsort(number, kind="stable")
        bounds = np.flatnonzero(np.diff(number[by_case])) + 1
        for into in np.split(by_case, bounds) if len(index) else ():
            case = int(number[into[0]])
            yield self._case(case), into, index[into] - self._starts[case]

    def segments(self) -> Segments:
        """Which of the N windows adjoin."""
        by_case = [self._case(number).segments for number in range(len(self._cases))]
        firsts = [found.first + start for found, start in zip(by_case, self._starts, strict=True)]
        lengths = [found.length for found in by_case]
        return Segments(first=np.concatenate(firsts), length=np.concatenate(lengths))

    def _open_case(self, number: int) -> _OpenCase:
        path = self.directory / self._cases[number].file
        try:
            layout = self._layouts.get(number) or self._find_layout(number, path)
            arrays = map_members(path, layout)
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: case {self._cases[number].case_id} has been removed since the store was opened"
            ) from error
        segments = find_segments(arrays["start_s"], sfreq=self.sfreq, window_samples=self.window_samples)
        return _OpenCase(arrays["x"], arrays["start_s"], arrays["quality"], segments)

    def _find_layout(self, number: int, path: Path) -> dict[str, Member]:
        windows, channels = self._cases[number].windows, len(self.channels)
        expected = {
            "x": (windows, channels, self.window_samples),
            "start_s": (windows,),
            "quality": (windows, channels),
        }
        layout = find_members(path, tuple(expected))
        for name, shape in expected.items():
            if layout[name].shape != shape:
                raise DataError(
                    f"{path}: case {self._cases[number].case_id} has `{name}` of shape {layout[name].shape}, "
                    f"{INDEX_NAME} says {shape}; run `biofound windows` again"
                )
        self._layouts[number] = layout
        return layout


@dataclass(frozen=True, kw_only=True)
class WindowSample:
    """One window of a store: `samples` (C, T) in physical units, `quality` (C,), and where it was taken."""

    samples: NDArray[np.float32]
    quality: NDArray[np.float32]
    split: str
    case_id: str
    start_s: float


def random_windows(windows: StoreWindows, *, count: int, seed: int) -> list[WindowSample]:
    """Draw `count` different windows of the store of one split (all, if there are fewer), in its order.

    Raises:
        DataError: when a file of the store cannot be read.
    """
    draw = np.random.default_rng(seed).choice(len(windows), min(count, len(windows)), replace=False)
    index = np.sort(draw)
    info = windows.info(index)
    return [
        WindowSample(
            samples=samples,
            quality=quality,
            split=windows.index.split,
            case_id=str(case_id),
            start_s=float(start_s),
        )
        for samples, quality, case_id, start_s in zip(
            windows.read(index), info.quality, info.case_id, info.start_s, strict=True
        )
    ]
