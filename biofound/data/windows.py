"""The `Windows` protocol: what training needs of windows, and how they are opened.

Two forms on disk: a store that `biofound windows` built (`StoreWindows`), and one plain npz a split
(`ArrayWindows`, which holds arrays in memory too). `build.py` builds a store, `integrity.py` checks one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from biofound.data.npz_windows import ARRAY_KEYS, ArrayWindows, npz_file, open_npz_windows
from biofound.data.segments import Segments, WindowInfo
from biofound.data.store import INDEX_NAME, StoreIndex, StoreWindows
from biofound.errors import DataError, did_you_mean

__all__ = [
    "ArrayWindows",
    "Gate",
    "Segments",
    "StoreWindows",
    "WindowInfo",
    "Windows",
    "gate_of",
    "open_windows",
    "select_channels",
    "source_of",
]


class Windows(Protocol):
    """N windows of C channels and T samples, read by batch."""

    @property
    def channels(self) -> tuple[str, ...]:
        """The C channel names, in the order of the arrays."""

    @property
    def sfreq(self) -> float:
        """Sampling frequency in Hz."""

    @property
    def window_samples(self) -> int:
        """T, the samples in a window."""

    @property
    def filters(self) -> dict[str, dict[str, Any]]:
        """Channel name to its pass band as JSON; empty where the file does not say."""

    @property
    def units(self) -> dict[str, str]:
        """Channel name to its physical unit; empty where the file does not say."""

    @property
    def sfreq_is_assumed(self) -> bool:
        """True when the file does not say its sampling frequency, and `sfreq` is what the caller gave."""

    @property
    def synthetic(self) -> bool:
        """True when the signal was made by the synthetic source."""

    @property
    def fingerprint(self) -> str:
        """A hex digest of what the windows hold."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """Who was recorded: unique and sorted; empty where the file does not say."""

    def __len__(self) -> int:
        """N."""

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A batch (B, C, T) of the windows `index` (B,), in physical units, NaN only in gaps.

        With `crop` (B,), each u in [0, 1), window j of a segment of n adjacent windows gives the T samples
        from sample floor((j + u) * ((n - 1) * T + 1) / n) of that segment.
        """

    def info(self, index: NDArray[np.int64]) -> WindowInfo:
        """Case, subject, start and quality of the windows `index` (B,)."""

    def segments(self) -> Segments:
        """Which of the N windows adjoin."""


def open_windows(path: Path, split: str, *, sfreq_if_unsaid: float | None = None) -> Windows:
    """Open the windows of `split` under `path`: the store `path/split`, else `path/{split}_windows.npz`.

    Args:
        path: the data directory.
        split: `train`, `val` or `test`.
        sfreq_if_unsaid: Hz; used only for a plain npz that does not hold its own `sfreq`.

    Raises:
        DataError: when neither is there, or what is there cannot be used.
    """
    if (path / split / INDEX_NAME).is_file():
        return StoreWindows(path / split)
    if npz_file(path, split).is_file():
        return open_npz_windows(npz_file(path, split), sfreq_if_unsaid=sfreq_if_unsaid)
    raise DataError(_nothing_found(path, split))


def _nothing_found(path: Path, split: str) -> str:
    if not path.is_dir():
        found = "not a directory" if path.exists() else "no such directory"
        return f"{path}: {found}; expected the one that `biofound windows --outdir` wrote"
    if (path / INDEX_NAME).is_file():
        return f"{path}: this is the store of one split; give the directory that holds it, {path.parent}"
    if (path / split).is_dir() and any((path / split).iterdir()):
        return (
            f"{path / split}: holds no {INDEX_NAME}, so its build did not finish; run `biofound windows` "
            "again with the same options to resume it"
        )
    return (
        f"{path}: no windows for split '{split}'. Expected a store {split}/{INDEX_NAME} (from `biofound "
        f"windows`), or {npz_file(path, split).name} with an array {' or '.join(ARRAY_KEYS)} of shape "
        "(windows, channels, samples) or (windows, samples, channels), and `channels` with their names"
    )


def select_channels(windows: Windows, channels: Sequence[str], *, absent: Sequence[str] = ()) -> Windows:
    """The same windows with these channels, in this order; those that are `absent` are gaps, NaN throughout.

    Raises:
        DataError: when the windows lack another one.
    """
    if tuple(channels) == windows.channels and not absent:
        return windows
    lacking = [name for name in channels if name not in (*windows.channels, *absent)]
    if lacking:
        raise DataError(
            f"these windows hold {', '.join(windows.channels)}, but not {', '.join(lacking)}; "
            f"ask for other channels, or build windows with them{did_you_mean(lacking[0], windows.channels)}"
        )
    return _SelectedChannels(windows, tuple(channels), absent=absent)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What windows had to be to be kept: quality (0 to 1) by channel; longest gap in seconds."""

    quality_thresholds: Mapping[str, float]
    max_gap_seconds: float


def gate_of(windows: Windows) -> Gate | None:
    """The gate that a store's windows passed; None for windows that are no store."""
    index = _index_of(windows)
    if index is None:
        return None
    thresholds = {name: index.quality_thresholds[name] for name in windows.channels}
    return Gate(quality_thresholds=thresholds, max_gap_seconds=index.max_gap_seconds)


def source_of(windows: Windows) -> dict[str, Any]:
    """The source that a store was built from, for `open_source`; empty for windows that are no store."""
    index = _index_of(windows)
    return {} if index is None else dict(index.source)


def _index_of(windows: Windows) -> StoreIndex | None:
    """The index of the store that windows are of, all its channels or some; None where there is no store."""
    while isinstance(windows, _SelectedChannels):
        windows = windows.unselected
    return windows.index if isinstance(windows, StoreWindows) else None


class _SelectedChannels:
    """Windows of which only some channels are read, or all in another order, or as if they lacked some."""

    def __init__(self, windows: Windows, channels: tuple[str, ...], *, absent: Sequence[str]) -> None:
        self.unselected, self.channels = windows, channels
        self._rows = {
            row: windows.channels.index(name) for row, name in enumerate(channels) if name not in absent
        }
        self.sfreq, self.window_samples = windows.sfreq, windows.window_samples
        self.sfreq_is_assumed = windows.sfreq_is_assumed
        self.filters = {name: band for name, band in windows.filters.items() if name in channels}
        self.units = {name: unit for name, unit in windows.units.items() if name in channels}
        self.synthetic, self.subjects = windows.synthetic, windows.subjects

    @property
    def fingerprint(self) -> str:
        """That of all channels."""
        return self.unselected.fingerprint

    def __len__(self) -> int:
        return len(self.unselected)

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A batch (B, C, T); see `Windows.read`."""
        return self._selected(self.unselected.read(index, crop))

    def info(self, index: NDArray[np.int64]) -> WindowInfo:
        """Case, subject, start and quality of the windows `index` (B,)."""
        info = self.unselected.info(index)
        return replace(info, quality=self._selected(info.quality))

    def segments(self) -> Segments:
        """Which of the windows adjoin."""
        return self.unselected.segments()

    def _selected(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows of the channels, from (B, channels of the unselected windows, ...)."""
        if len(self._rows) == len(self.channels):
            return values[:, list(self._rows.values())]
        out = np.full((len(values), len(self.channels), *values.shape[2:]), np.nan, np.float32)
        out[:, list(self._rows)] = values[:, list(self._rows.values())]
        return out
