"""Windows held in arrays (`ArrayWindows`), and how a plain npz, the form other people have, is opened.

Keys of the npz: one array `x`, `windows` or `data`, of shape (N, C, T) or (N, T, C), recognised by the
number of names in `channels`. Optional: `sfreq` in Hz; `subjects` (N,); `case_ids` (N,), the recordings;
`synthetic`, True where nobody was recorded; `start_s` (N,) in seconds, to be given only when adjacent
windows join without a seam (same units, none normalised on its own). NaN samples are gaps.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biofound.data.npz import read_arrays
from biofound.data.segments import Segments, WindowInfo, checked_index, find_segments, gather
from biofound.errors import DataError
from biofound.files import sha256_of

ARRAY_KEYS = ("x", "windows", "data")


class ArrayWindows:
    """Windows of arrays in memory or mapped; see `biofound.data.windows.Windows`.

    Args:
        x: (N, C, T) numbers in physical units; NaN is a gap.
        channels: the C channel names.
        sfreq: sampling frequency in Hz.
        subjects: (N,) whose window it is.
        case_ids: (N,) the recording it was taken from; by default `name` and the row.
        start_s: (N,) start in seconds since its recording started; without it no two windows adjoin.
        quality: (N, C) in [0, 1], NaN where unknown.
        filters: channel name to its pass band as JSON.
        units: channel name to its physical unit.
        synthetic: whether nobody was recorded.
        sfreq_is_assumed: whether `sfreq` is the caller's assumption.
        fingerprint: a hex digest of the windows, or what computes it when it is asked for; by default the
            SHA-256 of `x`.
        name: what messages call these windows.

    Raises:
        ValueError: when shapes do not fit together.
    """

    def __init__(
        self,
        x: NDArray[Any],
        *,
        channels: Sequence[str],
        sfreq: float,
        subjects: ArrayLike | None = None,
        case_ids: ArrayLike | None = None,
        start_s: ArrayLike | None = None,
        quality: ArrayLike | None = None,
        filters: Mapping[str, dict[str, Any]] | None = None,
        units: Mapping[str, str] | None = None,
        synthetic: bool = False,
        sfreq_is_assumed: bool = False,
        fingerprint: str | Callable[[], str] | None = None,
        name: str = "window",
    ) -> None:
        if x.ndim != 3 or x.shape[1] != len(channels):
            raise ValueError(f"`x` must have shape (N, {len(channels)}, T), got {x.shape}")
        self._x, self.channels, self.sfreq = x, tuple(channels), float(sfreq)
        self.window_samples = int(x.shape[2])
        self.sfreq_is_assumed, self.synthetic, self.name = sfreq_is_assumed, synthetic, name
        self.filters, self.units = dict(filters or {}), dict(units or {})
        self._subjects = _per_window("subjects", subjects, x.shape[:1], np.str_)
        self._case_ids = _per_window("case_ids", case_ids, x.shape[:1], np.str_)
        self._start_s = _per_window("start_s", start_s, x.shape[:1], np.float64)
        self._quality = _per_window("quality", quality, x.shape[:2], np.float32)
        self.subjects = () if self._subjects is None else tuple(np.unique(self._subjects).tolist())
        self._fingerprint = fingerprint
        self._segments: Segments | None = None
        if self._start_s is not None:
            owner = self._subjects if self._case_ids is None else self._case_ids
            self._segments = find_segments(
                self._start_s, sfreq=self.sfreq, window_samples=self.window_samples, owner=owner
            )

    def __len__(self) -> int:
        return len(self._x)

    @cached_property
    def fingerprint(self) -> str:
        """A hex digest of what the windows hold."""
        if self._fingerprint is None:
            return hashlib.sha256(np.ascontiguousarray(self._x).data).hexdigest()
        return self._fingerprint if isinstance(self._fingerprint, str) else self._fingerprint()

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """A batch (B, C, T); see `Windows.read`. Without `start_s` a crop is the window itself."""
        rows = checked_index(index, crop, len(self))
        out = np.empty((len(rows), *self._x.shape[1:]), np.float32)
        gather(self._x, rows, out, np.arange(len(rows)), self._segments, crop)
        return out

    def segments(self) -> Segments:
        """Which of the N windows adjoin; none where starts are unknown."""
        alone = Segments(first=np.arange(len(self)), length=np.ones(len(self), np.int64))
        return self._segments or alone

    def info(self, index: NDArray[np.int64]) -> WindowInfo:
        """Case, subject, start and quality of the windows `index` (B,)."""
        rows = checked_index(index, None, len(self))
        named = np.array([f"{self.name} row {row}" for row in rows.tolist()], str)
        unknown = np.full((len(rows), len(self.channels)), np.nan, np.float32)
        return WindowInfo(
            case_id=named if self._case_ids is None else self._case_ids[rows],
            subject_id=np.full(len(rows), "") if self._subjects is None else self._subjects[rows],
            start_s=np.full(len(rows), np.nan) if self._start_s is None else self._start_s[rows],
            quality=unknown if self._quality is None else self._quality[rows],
        )


def _per_window(key: str, values: ArrayLike | None, shape: tuple[int, ...], dtype: type) -> Any:
    """`values` as an array of `shape`; None where there are none."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != shape:
        raise ValueError(f"`{key}` must have shape {shape}, got {array.shape}")
    if dtype is not np.str_:
        may_be_nan = key == "quality"
        if array.dtype.kind not in "fiu" or not (np.isfinite(array) | (may_be_nan & np.isnan(array))).all():
            raise ValueError(f"`{key}` must hold finite numbers, got {array.dtype}")
    return array.astype(dtype)


def npz_file(directory: Path, split: str) -> Path:
    """Where the plain npz of `split` is looked for."""
    return directory / f"{split}_windows.npz"


def open_npz_windows(path: Path, *, sfreq_if_unsaid: float | None = None) -> ArrayWindows:
    """Open the windows of one plain npz; mapped when uncompressed, loaded into memory when compressed.

    Args:
        path: the file.
        sfreq_if_unsaid: Hz; used where the file holds no `sfreq`.

    Raises:
        DataError: when a key is missing, shapes do not fit, or the layout is ambiguous.
    """
    arrays = _load(path)
    optional: dict[str, Any] = {
        key: arrays.get(key) for key in ("subjects", "case_ids", "start_s", "quality")
    }
    try:
        channels = _channel_names(arrays)
        return ArrayWindows(
            _windows_first(arrays, channels),
            channels=channels,
            sfreq=_sfreq(arrays, sfreq_if_unsaid),
            sfreq_is_assumed="sfreq" not in arrays,
            synthetic=_synthetic(arrays),
            fingerprint=partial(sha256_of, path),
            name=path.name,
            **optional,
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _load(path: Path) -> dict[str, NDArray[Any]]:
    arrays = read_arrays(path)
    for name, array in arrays.items():
        if array.dtype.kind == "U" and _code_points(array).max(initial=0) > sys.maxunicode:
            raise DataError(f"{path}: `{name}` should be text, and holds what is none: the file is damaged")
    return arrays


def _code_points(text: NDArray[Any]) -> NDArray[np.uint32]:
    """The characters of an array of text as numbers, which numpy does not check."""
    native = text.dtype.newbyteorder("=")
    return np.ascontiguousarray(text, native).reshape(-1).view(np.uint32)


def _channel_names(arrays: dict[str, NDArray[Any]]) -> tuple[str, ...]:
    if "channels" not in arrays:
        raise ValueError(
            f"expected the key `channels` with the channel names, found {_held(arrays)}; "
            "for example np.savez(path, x=windows, channels=['PPG', 'ECG'], sfreq=125.0)"
        )
    names = np.atleast_1d(arrays["channels"])
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise ValueError(f"`channels` must be a list of names, got {names.dtype} of shape {names.shape}")
    channels = tuple(names.astype(str).tolist())
    if len(set(channels)) < len(channels):
        raise ValueError(f"`channels` names a channel twice: {', '.join(channels)}")
    return channels


def _windows_first(arrays: dict[str, NDArray[Any]], channels: tuple[str, ...]) -> NDArray[np.generic]:
    """The one array of windows, as a view (N, C, T)."""
    keys = [key for key in ARRAY_KEYS if key in arrays]
    if len(keys) != 1:
        raise ValueError(f"expected one array named {' or '.join(ARRAY_KEYS)}, found {_held(arrays)}")
    x = arrays[keys[0]]
    if x.ndim != 3 or x.dtype.kind not in "fiu" or 0 in x.shape:
        raise ValueError(
            f"`{keys[0]}` must hold numbers of shape (windows, channels, samples) or "
            f"(windows, samples, channels), got {x.dtype} of shape {x.shape}"
        )
    fits = [axis for axis in (1, 2) if x.shape[axis] == len(channels)]
    if len(fits) != 1:
        why = "both axes fit" if fits else "neither axis fits"
        raise ValueError(
            f"`{keys[0]}` of shape {x.shape} has to have its {len(channels)} channels "
            f"({', '.join(channels)}) on axis 1 or 2, and {why}"
        )
    return x if fits == [1] else x.transpose(0, 2, 1)


def _sfreq(arrays: dict[str, NDArray[Any]], sfreq_if_unsaid: float | None) -> float:
    if "sfreq" not in arrays:
        if sfreq_if_unsaid is None:
            raise ValueError("no key `sfreq`: add the sampling frequency in Hz, such as sfreq=125.0")
        return sfreq_if_unsaid
    value = arrays["sfreq"]
    if value.size != 1 or value.dtype.kind not in "fiu" or not 0 < value.item() < np.inf:
        raise ValueError(f"`sfreq` must be one number of Hz above 0, got {value}")
    return float(value.item())


def _synthetic(arrays: dict[str, NDArray[Any]]) -> bool:
    value = arrays.get("synthetic", np.array(False))
    if value.size != 1 or value.dtype.kind != "b":
        raise ValueError(f"`synthetic` must be one True or False, got {value.dtype} {value.shape}")
    return bool(value.item())


def _held(arrays: dict[str, NDArray[Any]]) -> str:
    return ", ".join(f"`{name}` {array.shape}" for name, array in sorted(arrays.items())) or "no arrays"
