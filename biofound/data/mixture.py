"""Mixture of windows: several stores and synthetic streams as one set of windows for training.

Stored windows are the same in every epoch; a synthetic stream gives new ones in each, without end.
"""

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biofound.data.segments import Segments, WindowInfo
from biofound.data.stream import SyntheticStream
from biofound.data.windows import Windows
from biofound.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Part:
    """One set of windows in a mixture, and its name for messages."""

    name: str
    windows: Windows


class MixedWindows:
    """The windows of all parts, one part after the other; see `Windows`.

    Raises:
        DataError: when the parts differ in channels, rate, length or filters.
    """

    sfreq_is_assumed = False

    def __init__(self, parts: Sequence[Part]) -> None:
        first = parts[0].windows
        for part in parts[1:]:
            require_alike(parts[0].name, first, part.name, part.windows)
        self.parts, self.epoch = tuple(parts), 0
        self.channels, self.sfreq, self.window_samples = first.channels, first.sfreq, first.window_samples
        self.filters, self.units = first.filters, first.units
        self.synthetic = all(part.windows.synthetic for part in parts)
        self.subjects = tuple(
            sorted({subject for part in parts if not _is_stream(part) for subject in part.windows.subjects})
        )
        sizes = [len(part.windows) for part in parts]
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes

    @property
    def fingerprint(self) -> str:
        """A digest of the parts' fingerprints, in their order."""
        lines = [f"{part.windows.fingerprint}\n" for part in self.parts]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def synthetic_share(self) -> float:
        """The share of synthetic windows in an epoch."""
        return sum(len(part.windows) for part in self.parts if part.windows.synthetic) / len(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def at_epoch(self, epoch: int) -> "MixedWindows":
        """The windows of another epoch: those of streams are new ones."""
        other = copy(self)
        other.epoch = epoch
        return other

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A batch (B, C, T); see `Windows.read`."""
        out = np.empty((len(index), len(self.channels), self.window_samples), np.float32)
        for part, rows, own in self._by_part(index):
            out[rows] = part.windows.read(own, None if crop is None else crop[rows])
        return out

    def heart_rate(
        self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None
    ) -> NDArray[np.float32]:
        """The true heart rate (B,) in beats a minute of the windows that `read` gives; NaN where unknown."""
        rates = np.full(len(index), np.nan, np.float32)
        for part, rows, own in self._by_part(index):
            if isinstance(part.windows, SyntheticStream):
                rates[rows] = part.windows.truth(own, None if crop is None else crop[rows]).heart_rate
        return rates

    def info(self, index: NDArray[np.int64]) -> WindowInfo:
        """Case, subject, start and quality of the windows `index` (B,)."""
        rows, found = [], []
        for part, own_rows, own in self._by_part(index):
            rows.append(own_rows)
            found.append(part.windows.info(own))
        order = np.argsort(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
        joined = {
            name: np.concatenate([getattr(info, name) for info in found])[order]
            for name in ("case_id", "subject_id", "start_s", "quality")
        }
        return WindowInfo(**joined)

    def segments(self) -> Segments:
        """Which of the windows adjoin."""
        found = [part.windows.segments() for part in self.parts]
        first = [one.first + start for one, start in zip(found, self._starts, strict=True)]
        return Segments(first=np.concatenate(first), length=np.concatenate([one.length for one in found]))

    def _by_part(self, index: NDArray[np.int64]) -> list[tuple[Part, NDArray[np.int64], NDArray[np.int64]]]:
        """Each part that `index` (B,) touches: the part, the positions in `index`, and its own indices."""
        index = np.asarray(index, np.int64)
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(
                f"index reaches from {index.min()} to {index.max()}, there are {len(self)} windows"
            )
        number = np.searchsorted(self._ends, index, side="right")
        touched = []
        for k, part in enumerate(self.parts):
            rows = np.flatnonzero(number == k)
            if len(rows):
                own = index[rows] - self._starts[k]
                touched.append(
                    (part, rows, own + self.epoch * len(part.windows) if _is_stream(part) else own)
                )
        return touched


def _is_stream(part: Part) -> bool:
    return isinstance(part.windows, SyntheticStream)


def require_alike(name: str, windows: Windows, other_name: str, other: Windows) -> None:
    """Refuse two sets of windows that cannot be one.

    Raises:
        DataError: when they differ in channels, rate, length or filters.
    """
    for what, ours, theirs in (
        ("channels", ", ".join(windows.channels), ", ".join(other.channels)),
        ("sampling rate", windows.sfreq, other.sfreq),
        ("window length", windows.window_samples, other.window_samples),
        ("filters", bands_text(windows), bands_text(other)),
    ):
        if ours != theirs:
            raise DataError(
                f"{name} and {other_name} differ in their {what}: {ours} against {theirs}; build both with "
                "the same settings"
            )


def bands_text(windows: Windows) -> str:
    """The pass bands of windows in words."""
    return ", ".join(
        f"{name} {band['low_hz']:g} to {band['high_hz']:g} Hz of order {band['order']}"
        for name, band in sorted(windows.filters.items())
    )
