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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from biofound.data.npz import Member, find_members, map_members
from biofound.data.segments import Segments, find_segments, gather
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
    """One mapped case: its windows (N, C, T) and their stretches."""

    x: NDArray[Any]
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

    def case_of(self, index: int) -> str:
        """The id of the case that window `index` was cut from."""
        return self._case_ids[int(np.searchsorted(self._ends, index, side="right"))]

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A batch (B, C, T); see `Windows.read`."""
        index = checked_index(index, crop, len(self))
        out = np.empty((len(index), len(self.channels), self.window_samples), np.float32)
        case = np.searchsorted(self._ends, index, side="right")
        by_case = np.argsort(case, kind="stable")
        cuts = np.flatnonzero(np.diff(case[by_case])) + 1
        for into in np.split(by_case, cuts) if len(index) else ():
            number = int(case[into[0]])
            opened = self._case(number)
            rows = index[into] - self._starts[number]
            gather(opened.x, rows, out, into, opened.segments, None if crop is None else crop[into])
        return out

    def segments(self) -> Segments:
        """Which of the N windows adjoin."""
        parts = [self._case(number).segments for number in range(len(self._files))]
        firsts = [part.first + start for part, start in zip(parts, self._starts, strict=True)]
        return Segments(first=np.concatenate(firsts), length=np.concatenate([part.length for part in parts]))

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
        return _OpenCase(x=arrays["x"], segments=segments)

    def _find_layout(self, number: int, path: Path) -> dict[str, Member]:
        layout = find_members(path, ["x", "start_s"])
        windows = int(self._ends[number] - self._starts[number])
        expected = (windows, len(self.channels), self.window_samples)
        if layout["x"].shape != expected or layout["start_s"].shape != (windows,):
            raise DataError(
                f"{path}: case {self._case_ids[number]} has windows of shape {layout['x'].shape}, "
                f"{INDEX_NAME} says {expected}; run `biofound windows` again"
            )
        self._layouts[number] = layout
        return layout


def checked_index(
    index: NDArray[np.int64], crop: NDArray[np.float64] | None, windows: int
) -> NDArray[np.int64]:
    """`index` as int64 (B,), after seeing that it lies in [0, windows) and `crop` fits it.

    Raises:
        IndexError: when a window is asked for that is not there.
        ValueError: when `crop` has another length, or values outside [0, 1).
    """
    index = np.asarray(index, dtype=np.int64)
    if index.ndim != 1:
        raise ValueError(f"index must be one-dimensional, got shape {index.shape}")
    if len(index) and (index.min() < 0 or index.max() >= windows):
        raise IndexError(f"index reaches from {index.min()} to {index.max()}, there are {windows} windows")
    if crop is not None and crop.shape != index.shape:
        raise ValueError(f"crop has shape {crop.shape}, index {index.shape}")
    if crop is not None and not np.all((crop >= 0) & (crop < 1)):
        raise ValueError(f"crop must lie in [0, 1), got {crop.min()} to {crop.max()}")
    return index
