"""Mixed windows: several stores and synthetic streams as one set of windows, renewed from epoch to epoch.

A store gives the same windows in every epoch; a stream gives new ones: window i of epoch e is its window
`i + e * len(stream)`. So everything follows from index and epoch, on any number of processes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.segments import Segments, WindowInfo, checked_index
from biofound.data.stream import SyntheticStream
from biofound.data.windows import Windows
from biofound.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Part:
    """Windows with the name they have in tables, messages and checkpoints."""

    name: str
    windows: Windows


class MixedWindows:
    """The windows of several parts, one part after the other; see `Windows`, whose contract it meets.

    `read`, `info` and `heart_rate` take the epoch too, counted from 0; without it they give those of the
    first.

    Args:
        parts: at least one; they agree in channels, sampling frequency and length.

    Raises:
        DataError: when they do not agree.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        first = parts[0].windows
        for part in parts[1:]:
            for what in ("channels", "sfreq", "window_samples"):
                ours, theirs = getattr(first, what), getattr(part.windows, what)
                if ours != theirs:
                    raise DataError(
                        f"{parts[0].name} and {part.name} differ in {what}: {ours} against {theirs}; build "
                        "both with the same settings"
                    )
        self.channels, self.sfreq, self.window_samples = first.channels, first.sfreq, first.window_samples
        every = [part.windows for part in parts]
        self.filters: dict[str, dict[str, Any]] = next((w.filters for w in every if w.filters), {})
        self.units: dict[str, str] = next((w.units for w in every if w.units), {})
        self.sfreq_is_assumed = any(windows.sfreq_is_assumed for windows in every)
        self.synthetic = all(windows.synthetic for windows in every)
        self.subjects = tuple(sorted({subject for windows in every for subject in windows.subjects}))
        self.changes_by_epoch = any(isinstance(windows, SyntheticStream) for windows in every)
        self._ends = np.cumsum([len(windows) for windows in every])

    @property
    def fingerprint(self) -> str:
        """A digest of the parts' fingerprints, in their order."""
        return hashlib.sha256(" ".join(part.windows.fingerprint for part in self.parts).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(
        self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None, epoch: int = 0
    ) -> NDArray[np.float32]:
        """A batch (B, C, T) of the windows `index` (B,) in an epoch; see `Windows.read`."""
        index = checked_index(index, crop, len(self))
        out = np.empty((len(index), len(self.channels), self.window_samples), np.float32)
        for windows, into, rows in self._by_part(index, epoch):
            out[into] = windows.read(rows, None if crop is None else crop[into])
        return out

    def heart_rate(
        self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None, epoch: int = 0
    ) -> NDArray[np.float32]:
        """The true heart rates (B,), in beats a minute, of what `read` gives; NaN where none is known."""
        index = checked_index(index, crop, len(self))
        out = np.full(len(index), np.nan, np.float32)
        for windows, into, rows in self._by_part(index, epoch):
            if isinstance(windows, SyntheticStream):
                out[into] = windows.heart_rate(rows, None if crop is None else crop[into])
        return out

    def info(self, index: NDArray[np.int64], epoch: int = 0) -> WindowInfo:
        """Case, subject, start and quality of the windows `index` (B,) in an epoch."""
        index = checked_index(index, None, len(self))
        found = [(into, windows.info(rows)) for windows, into, rows in self._by_part(index, epoch)]
        order = np.argsort(np.concatenate([np.empty(0, np.int64), *(into for into, _ in found)]))
        none = self.parts[0].windows.info(index[:0])

        def joined(value: Callable[[WindowInfo], NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate([value(none), *(value(info) for _, info in found)])[order]

        return WindowInfo(
            case_id=joined(lambda info: info.case_id),
            subject_id=joined(lambda info: info.subject_id),
            start_s=joined(lambda info: info.start_s),
            quality=joined(lambda info: info.quality),
        )

    def segments(self) -> Segments:
        """Which of the windows adjoin: as in their parts."""
        found = [part.windows.segments() for part in self.parts]
        starts = (end - len(part.windows) for end, part in zip(self._ends.tolist(), self.parts, strict=True))
        return Segments(
            first=np.concatenate([one.first + start for one, start in zip(found, starts, strict=True)]),
            length=np.concatenate([one.length for one in found]),
        )

    def _by_part(
        self, index: NDArray[np.int64], epoch: int
    ) -> Iterator[tuple[Windows, NDArray[np.int64], NDArray[np.int64]]]:
        """Each part that `index` (B,) touches: its windows, the positions in `index`, and its own indices."""
        number = np.searchsorted(self._ends, index, side="right")
        for part in np.unique(number).tolist():
            windows, into = self.parts[part].windows, np.flatnonzero(number == part)
            rows = index[into] - (self._ends[part] - len(windows))
            if isinstance(windows, SyntheticStream):
                rows = rows + epoch * len(windows)
            yield windows, into, rows


def changes_by_epoch(windows: Windows) -> bool:
    """Whether windows are others in every epoch, so that none should be kept."""
    return isinstance(windows, MixedWindows) and windows.changes_by_epoch
