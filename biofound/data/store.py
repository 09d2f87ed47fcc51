"""How a window store lies on disk, and how it is read: one npz and one sidecar a case, one index.

```
DIR/train/index.json         what the store holds; there only when the store is whole
DIR/train/<case>.npz         x (N, C, T), mean (N, C), std (N, C), start_s (N,), quality (N, C)
DIR/train/<case>.json        how the case was made, what was dropped and why, the npz's SHA-256
```
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from biofound.data.npz import Member, find_members, map_members
from biofound.data.segments import Segments, WindowInfo, checked_index, find_segments, gather
from biofound.errors import DataError

FORMAT_VERSION = 1
INDEX_KIND = "biofound-windows"
SIDECAR_KIND = "biofound-windows-case"
INDEX_NAME = "index.json"
MEMBERS = ("x", "mean", "std", "start_s", "quality")
MAPS_OPEN = 256
"""Memory maps open at once. Each holds a file descriptor, of which a process commonly has 1,024."""


def file_stem(case_id: str) -> str:
    """The name of a case's files, without suffix: its id, with what no file may be called escaped."""
    stem = quote(case_id, safe=" ()+,=@[]")
    return "%69ndex" if stem == "index" else stem


def fingerprint_of(cases: Sequence[Mapping[str, Any]]) -> str:
    """The SHA-256 over every case's id and npz SHA-256, in the order of their ids."""
    lines = sorted(f"{case['case_id']} {case['sha256']}\n" for case in cases)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_index(directory: Path) -> dict[str, Any]:
    """The index of the store in `directory`.

    Raises:
        DataError: when it is missing, no index, or of another format version.
    """
    return _read_json(directory / INDEX_NAME, INDEX_KIND)


def read_sidecar(path: Path) -> dict[str, Any]:
    """The sidecar of one case.

    Raises:
        DataError: when it is missing, no sidecar, or of another format version.
    """
    return _read_json(path, SIDECAR_KIND)


def _read_json(path: Path, kind: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; build the store with `biofound windows`") from error
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error}); build the store again") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise DataError(f"{path}: expected a JSON object of kind '{kind}'; this file is something else")
    if content.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {content.get('format_version')!r}, expected {FORMAT_VERSION}; "
            "build the store again, or use the biofound that wrote it"
        )
    return content


@dataclass(frozen=True, slots=True)
class _OpenCase:
    """The mapped arrays of one case of N windows, and which of them adjoin."""

    x: NDArray[Any]
    start_s: NDArray[np.float64]
    quality: NDArray[np.float32]
    segments: Segments


class StoreWindows:
    """The windows of one split's store, memory-mapped case by case; never read as a whole.

    Raises:
        DataError: when the index or a file it lists is missing or does not fit.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sfreq_is_assumed = False
        index = read_index(directory)
        try:
            self._read_header(index)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{directory / INDEX_NAME}: incomplete ({error!r}); build the store again"
            ) from error
        missing = [name for name in self._files if not (directory / name).is_file()]
        if missing:
            raise DataError(
                f"{directory}: {len(missing)} of the {len(self._files)} files in {INDEX_NAME} are missing, "
                f"{missing[0]} first; run `biofound windows` again to build them"
            )
        self._refuse_short_files()
        self._layouts: dict[int, dict[str, Member]] = {}
        # an lru_cache is safe to use from a prefetching thread beside the main one
        self._case = functools.lru_cache(maxsize=MAPS_OPEN)(self._open_case)

    def _read_header(self, index: dict[str, Any]) -> None:
        self.split = str(index["split"])
        self.channels: tuple[str, ...] = tuple(index["channels"])
        self.sfreq = float(index["sfreq"])
        self.window_samples = int(index["window_samples"])
        self.filters: dict[str, dict[str, Any]] = index["filters"]
        self.units: dict[str, str] = index["units"]
        self._dtype = np.dtype(str(index["dtype"]))
        self.synthetic = bool(index["synthetic"])
        self.fingerprint = str(index["fingerprint"])
        cases = [case for case in index["cases"] if case["windows"] > 0]
        self.subjects: tuple[str, ...] = tuple(sorted({case["subject_id"] for case in cases}))
        self._case_ids = [str(case["case_id"]) for case in cases]
        self._subject_ids = [str(case["subject_id"]) for case in cases]
        self._files = [str(case["file"]) for case in cases]
        self._ends = np.cumsum([int(case["windows"]) for case in cases], dtype=np.int64)
        self._starts = np.concatenate([[0], self._ends[:-1]]) if cases else np.zeros(0, np.int64)

    def _refuse_short_files(self) -> None:
        """See at once, by their sizes, files cut short: else a run would meet them after hours."""
        window = self._dtype.itemsize * len(self.channels) * self.window_samples
        short = [
            name
            for name, windows in zip(self._files, np.diff(self._ends, prepend=0).tolist(), strict=True)
            if (self.directory / name).stat().st_size < windows * window
        ]
        if short:
            raise DataError(
                f"{self.directory}: {len(short)} of the {len(self._files)} files in {INDEX_NAME} are cut "
                f"short, {short[0]} first; run `biofound windows` again to build them"
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
        start_s = np.empty(len(index), np.float64)
        quality = np.empty((len(index), len(self.channels)), np.float32)
        for case, into, rows in self._by_case(index):
            start_s[into], quality[into] = case.start_s[rows], case.quality[rows]
        case_id, subject_id = np.array(self._case_ids, str)[number], np.array(self._subject_ids, str)[number]
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
        by_case = [self._case(number).segments for number in range(len(self._files))]
        firsts = [found.first + start for found, start in zip(by_case, self._starts, strict=True)]
        lengths = [found.length for found in by_case]
        return Segments(first=np.concatenate(firsts), length=np.concatenate(lengths))

    def _open_case(self, number: int) -> _OpenCase:
        path = self.directory / self._files[number]
        try:
            layout = self._layouts.get(number) or self._find_layout(number, path)
            arrays = map_members(path, layout)
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: case {self._case_ids[number]} has gone since the store was opened"
            ) from error
        segments = find_segments(arrays["start_s"], sfreq=self.sfreq, window_samples=self.window_samples)
        return _OpenCase(arrays["x"], arrays["start_s"], arrays["quality"], segments)

    def _find_layout(self, number: int, path: Path) -> dict[str, Member]:
        windows, channels = int(self._ends[number] - self._starts[number]), len(self.channels)
        expected = {
            "x": (windows, channels, self.window_samples),
            "start_s": (windows,),
            "quality": (windows, channels),
        }
        layout = find_members(path, tuple(expected))
        for name, shape in expected.items():
            if layout[name].shape != shape:
                raise DataError(
                    f"{path}: case {self._case_ids[number]} has `{name}` of shape {layout[name].shape}, "
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


def random_windows(directory: Path, *, count: int, seed: int) -> list[WindowSample]:
    """Draw `count` different windows of the store of one split (all, if there are fewer), in its order.

    Raises:
        DataError: when there is no store, or it cannot be read.
    """
    windows = StoreWindows(directory)
    draw = np.random.default_rng(seed).choice(len(windows), min(count, len(windows)), replace=False)
    index = np.sort(draw)
    info = windows.info(index)
    return [
        WindowSample(
            samples=samples,
            quality=quality,
            split=windows.split,
            case_id=str(case_id),
            start_s=float(start_s),
        )
        for samples, quality, case_id, start_s in zip(
            windows.read(index), info.quality, info.case_id, info.start_s, strict=True
        )
    ]
