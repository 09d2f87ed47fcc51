"""Segments of adjacent windows, random crops inside them, and what is known of each window.

Windows are taken one after the other from a filtered recording, so two neighbours join without a seam.
A segment is a row of such neighbours; a training crop starts anywhere inside it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Segments:
    """For each of N windows: `first` (N,), the row where its segment starts, and `length` (N,) in windows."""

    first: NDArray[np.int64]
    length: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WindowInfo:
    """Case, subject, start and quality of B windows, as `Windows.info` gives them.

    Attributes:
        case_id: (B,) text, the recording; where windows name none, their array or file, and the row.
        subject_id: (B,) text, who was recorded; '' where unknown.
        start_s: (B,) float64 seconds since the recording's start; NaN where unknown.
        quality: (B, C) float32 in [0, 1]; NaN where unknown.
    """

    case_id: NDArray[np.str_]
    subject_id: NDArray[np.str_]
    start_s: NDArray[np.float64]
    quality: NDArray[np.float32]


def checked_index(
    index: NDArray[np.int64], crop: NDArray[np.float64] | None, windows: int
) -> NDArray[np.int64]:
    """`index` as int64 (B,), once it lies in [0, windows) and `crop` fits it.

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


def find_segments(
    start_s: NDArray[np.float64],
    *,
    sfreq: float,
    window_samples: int,
    owner: NDArray[Any] | None = None,
) -> Segments:
    """Group rows into segments: neighbours start exactly one window apart (to the nearest sample).

    Args:
        start_s: (N,) start of each window in seconds since its recording started.
        sfreq: sampling frequency in Hz.
        window_samples: T, the samples in a window.
        owner: (N,) whose window it is; neighbours of different owners never join. None: all of one.
    """
    rows = len(start_s)
    starts = np.rint(start_s * sfreq).astype(np.int64)
    joined = np.diff(starts) == window_samples
    if owner is not None:
        joined &= owner[1:] == owner[:-1]
    heads = np.concatenate([np.zeros(min(rows, 1), np.int64), np.flatnonzero(~joined) + 1])
    lengths = np.diff(heads, append=rows)
    return Segments(first=np.repeat(heads, lengths), length=np.repeat(lengths, lengths))


def crop_offsets(
    position: NDArray[np.int64], length: NDArray[np.int64], crop: NDArray[np.float64], window_samples: int
) -> NDArray[np.int64]:
    """The sample of the segment at which each crop starts: floor((j + u) * ((n - 1) * T + 1) / n).

    The (n - 1) * T + 1 possible starts are divided into n equal ranges, and window j draws from range j:
    every start is equally likely, and no two windows of a segment draw from the same range.

    Args:
        position: (B,) j, the window's position in its segment.
        length: (B,) n, the windows in its segment.
        crop: (B,) u in [0, 1).
        window_samples: T.
    """
    last = (length - 1) * window_samples
    offsets = np.floor((position + crop) * (last + 1) / length).astype(np.int64)
    # (j + u) may round up to n when u is the float just below 1
    return np.minimum(offsets, last)


def gather(
    windows: NDArray[Any],
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
    into: NDArray[np.int64],
    segments: Segments | None = None,
    crop: NDArray[np.float64] | None = None,
) -> None:
    """Copy `rows` of `windows` (N, C, T) to `out[into]` (B, C, T), as stored or cropped."""
    if crop is None or segments is None:
        out[into] = windows[rows]
        return
    window_samples = windows.shape[2]
    first = segments.first[rows]
    offsets = crop_offsets(rows - first, segments.length[rows], crop, window_samples)
    skipped, starts = np.divmod(offsets, window_samples)
    for target, row, start in zip(into.tolist(), (first + skipped).tolist(), starts.tolist(), strict=True):
        head = window_samples - start
        out[target, :, :head] = windows[row, :, start:]
        if start:
            out[target, :, head:] = windows[row + 1, :, :start]
