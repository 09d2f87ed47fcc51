"""How windows are read from one plain npz a split, the form other people have them in.

Keys: one array `x`, `windows` or `data`, of shape (N, C, T) or (N, T, C), told apart by the number of
names in `channels`. Optional: `sfreq` in Hz; `subjects` (N,); `synthetic`, True where nobody was recorded;
`start_s` (N,) in seconds, to be given only when adjacent windows join without a seam (same units, none
normalised on its own). NaN samples are gaps.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.npz import find_members, map_members, member_names
from biofound.data.segments import Segments, find_segments, gather
from biofound.data.store import checked_index
from biofound.errors import DataError
from biofound.files import sha256_of

ARRAY_KEYS = ("x", "windows", "data")


def npz_file(directory: Path, split: str) -> Path:
    """Where the plain form of `split` is looked for."""
    return directory / f"{split}_windows.npz"


class NpzWindows:
    """The windows of one plain npz; mapped when uncompressed, loaded into memory when compressed.

    Raises:
        DataError: when a key is missing, shapes do not fit, or the layout cannot be told.
    """

    filters: dict[str, dict[str, Any]]
    units: dict[str, str]

    def __init__(self, path: Path, *, sfreq_if_unsaid: float | None = None) -> None:
        self.path = path
        arrays = _load(path)
        self.channels = _channel_names(arrays, path)
        self._x = _windows_first(arrays, self.channels, path)
        self.window_samples = int(self._x.shape[2])
        self.sfreq = _sfreq(arrays, sfreq_if_unsaid, path)
        self.sfreq_is_assumed = "sfreq" not in arrays
        self.synthetic = _synthetic(arrays, path)
        self.filters, self.units = {}, {}
        owners = _per_window(arrays, "subjects", len(self._x), path)
        self._subject_of_row = None if owners is None else owners.astype(str)
        self.subjects: tuple[str, ...] = (
            () if owners is None else tuple(np.unique(owners.astype(str)).tolist())
        )
        self._segments = self._find_stretches(_per_window(arrays, "start_s", len(self._x), path))

    def _find_stretches(self, start_s: NDArray[Any] | None) -> Segments | None:
        if start_s is None:
            return None
        if start_s.dtype.kind not in "fiu" or not np.isfinite(start_s).all():
            raise DataError(f"{self.path}: `start_s` must hold finite seconds, one for each window")
        return find_segments(
            start_s.astype(np.float64),
            sfreq=self.sfreq,
            window_samples=self.window_samples,
            owner=self._subject_of_row,
        )

    def __len__(self) -> int:
        return len(self._x)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the file, in hex."""
        return sha256_of(self.path)

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A batch (B, C, T); see `Windows.read`. Without `start_s` a crop is the window itself."""
        rows = checked_index(index, crop, len(self))
        out = np.empty((len(rows), *self._x.shape[1:]), np.float32)
        gather(self._x, rows, out, np.arange(len(rows)), self._segments, crop)
        return out

    def segments(self) -> Segments:
        """Which of the N windows adjoin; none where the file does not say."""
        alone = Segments(first=np.arange(len(self)), length=np.ones(len(self), np.int64))
        return self._segments or alone

    def case_of(self, index: int) -> str:
        """The file, row and, where known, subject of window `index`."""
        subject = "" if self._subject_of_row is None else f", subject {self._subject_of_row[index]}"
        return f"{self.path.name} row {index}{subject}"


def _load(path: Path) -> dict[str, NDArray[Any]]:
    compressed = member_names(path)
    mapped = map_members(
        path, find_members(path, [name for name, packed in compressed.items() if not packed])
    )
    packed = [name for name, is_packed in compressed.items() if is_packed]
    if not packed:
        return mapped
    try:
        with np.load(path, allow_pickle=False) as archive:
            return mapped | {name: archive[name] for name in packed}
    except ValueError as error:
        raise DataError(
            f"{path}: {error}; save text as an array of strings, not of Python objects"
        ) from error


def _channel_names(arrays: dict[str, NDArray[Any]], path: Path) -> tuple[str, ...]:
    if "channels" not in arrays:
        raise DataError(
            f"{path}: expected the key `channels` with the channel names, found {_held(arrays)}; "
            "for example np.savez(path, x=windows, channels=['PPG', 'ECG'], sfreq=125.0)"
        )
    names = np.atleast_1d(arrays["channels"])
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(
            f"{path}: `channels` must be a list of names, got {names.dtype} of shape {names.shape}"
        )
    channels = tuple(names.astype(str).tolist())
    if len(set(channels)) < len(channels):
        raise DataError(f"{path}: `channels` names a channel twice: {', '.join(channels)}")
    return channels


def _windows_first(
    arrays: dict[str, NDArray[Any]], channels: tuple[str, ...], path: Path
) -> NDArray[np.generic]:
    """The one array of windows, as a view (N, C, T)."""
    keys = [key for key in ARRAY_KEYS if key in arrays]
    if len(keys) != 1:
        raise DataError(f"{path}: expected one array named {' or '.join(ARRAY_KEYS)}, found {_held(arrays)}")
    x = arrays[keys[0]]
    if x.ndim != 3 or x.dtype.kind not in "fiu" or 0 in x.shape:
        raise DataError(
            f"{path}: `{keys[0]}` must hold numbers of shape (windows, channels, samples) or "
            f"(windows, samples, channels), got {x.dtype} of shape {x.shape}"
        )
    fits = [axis for axis in (1, 2) if x.shape[axis] == len(channels)]
    if len(fits) != 1:
        why = "both axes fit" if fits else "neither axis fits"
        raise DataError(
            f"{path}: `{keys[0]}` of shape {x.shape} has to have its {len(channels)} channels "
            f"({', '.join(channels)}) on axis 1 or 2, and {why}"
        )
    return x if fits == [1] else x.transpose(0, 2, 1)


def _sfreq(arrays: dict[str, NDArray[Any]], sfreq_if_unsaid: float | None, path: Path) -> float:
    if "sfreq" not in arrays:
        if sfreq_if_unsaid is None:
            raise DataError(f"{path}: no key `sfreq`: add the sampling frequency in Hz, such as sfreq=125.0")
        return sfreq_if_unsaid
    value = arrays["sfreq"]
    if (
        value.size != 1
        or value.dtype.kind not in "fiu"
        or not np.isfinite(value).all()
        or not value.item() > 0
    ):
        raise DataError(f"{path}: `sfreq` must be one number of Hz above 0, got {value}")
    return float(value.item())


def _synthetic(arrays: dict[str, NDArray[Any]], path: Path) -> bool:
    value = arrays.get("synthetic", np.array(False))
    if value.size != 1 or value.dtype.kind != "b":
        raise DataError(f"{path}: `synthetic` must be one True or False, got {value.dtype} {value.shape}")
    return bool(value.item())


def _per_window(arrays: dict[str, NDArray[Any]], key: str, windows: int, path: Path) -> NDArray[Any] | None:
    values = arrays.get(key)
    if values is not None and values.shape != (windows,):
        raise DataError(
            f"{path}: `{key}` must have one entry for each of {windows} windows, got {values.shape}"
        )
    return values


def _held(arrays: dict[str, NDArray[Any]]) -> str:
    return ", ".join(f"`{name}` {array.shape}" for name, array in sorted(arrays.items())) or "no arrays"
