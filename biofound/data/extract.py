"""How one recording becomes the windows of one case: conditioned, judged, cut on one grid for all channels.

Windows are joint: one is kept only when every channel is good over the same seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.data.conditioning import condition
from biofound.data.quality import Reason, assess
from biofound.data.sources import Recording
from biofound.errors import DataError

DTYPES = ("float16", "float32")
FLOAT16_MAX_ERROR = 0.01
"""The largest rounding error, as a part of a window's standard deviation, that float16 may bring."""

Counts = dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class CaseWindows:
    """N kept windows of C channels and T samples, and what became of the others.

    Attributes:
        x: (N, C, T) float16 or float32, physical units after filtering.
        mean: (N, C) float32 mean of `x` over each window.
        std: (N, C) float32 standard deviation of `x` over each window.
        start_s: (N,) float64 seconds from the recording's start, ascending multiples of the window length.
        quality: (N, C) float32 in [0, 1].
        candidates: the windows on the grid; N of them were kept.
        dropped: reason to channel to the windows dropped for it. Each dropped window counts once, under
            the first test that any channel fails and the first channel that fails it: the counts and N
            add up to `candidates`.
        rejected: channel to reason to the windows that this channel alone would have dropped.
    """

    x: NDArray[Any]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    start_s: NDArray[np.float64]
    quality: NDArray[np.float32]
    candidates: int
    dropped: Counts
    rejected: Counts


def extract_windows(
    recording: Recording,
    channels: Sequence[Channel],
    *,
    sfreq: float,
    window_samples: int,
    max_gap_seconds: float,
    dtype: str,
) -> CaseWindows:
    """Condition a whole recording, judge its windows, and keep those in which every channel is good.

    Args:
        recording: the channels at their native rates.
        channels: the C channels wanted, in order.
        sfreq: sampling rate of the windows in Hz.
        window_samples: T; windows follow one another without overlap from the recording's start.
        max_gap_seconds: longest gap that is bridged.
        dtype: `float16` or `float32`.

    Raises:
        DataError: when a channel cannot be conditioned, or its values do not fit `dtype`.
    """
    conditioned = condition(recording, channels, sfreq=sfreq, max_gap_seconds=max_gap_seconds)
    verdicts = [
        assess(
            recording.signals[channel.name],
            conditioned.samples[row],
            conditioned.invalid[row],
            channel=channel,
            sfreq=sfreq,
            window_samples=window_samples,
        )
        for row, channel in enumerate(channels)
    ]
    names = [channel.name for channel in channels]
    reasons = np.stack([verdict.reason for verdict in verdicts], axis=1)
    kept = np.flatnonzero((reasons == Reason.KEPT).all(axis=1))
    count = len(reasons)
    grid = conditioned.samples[:, : count * window_samples].reshape(len(channels), count, window_samples)
    x = _as_dtype(grid[:, kept].transpose(1, 0, 2), dtype, names, recording.case_id)
    values = x.astype(np.float32)
    return CaseWindows(
        x=x,
        mean=values.mean(axis=2, dtype=np.float64).astype(np.float32),
        std=values.std(axis=2, dtype=np.float64).astype(np.float32),
        start_s=kept * window_samples / sfreq,
        quality=np.stack([verdict.quality for verdict in verdicts], axis=1)[kept].astype(np.float32),
        candidates=count,
        dropped=count_dropped(reasons, names),
        rejected=count_rejected(reasons, names),
    )


def count_dropped(reasons: NDArray[np.uint8], channels: Sequence[str]) -> Counts:
    """Count each dropped window once: reason to channel to number, from `reasons` (N, C)."""
    failing = np.where(reasons == Reason.KEPT, np.iinfo(np.uint8).max, reasons)
    bad = (reasons != Reason.KEPT).any(axis=1)
    first_reason, first_channel = failing.min(axis=1)[bad], failing.argmin(axis=1)[bad]
    found: Counts = {}
    for reason in Reason:
        counts = np.bincount(first_channel[first_reason == reason], minlength=len(channels))
        if counts.any():
            found[reason.name.lower()] = _nonzero(channels, counts)
    return found


def count_rejected(reasons: NDArray[np.uint8], channels: Sequence[str]) -> Counts:
    """Count for each channel by itself: channel to reason to number, from `reasons` (N, C)."""
    names = [reason.name.lower() for reason in Reason]
    found: Counts = {}
    for column, channel in enumerate(channels):
        counts = np.bincount(reasons[:, column], minlength=len(names))
        counts[Reason.KEPT] = 0
        found[channel] = _nonzero(names, counts)
    return found


def _nonzero(names: Sequence[str], counts: NDArray[np.int64]) -> dict[str, int]:
    return {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}


def _as_dtype(x: NDArray[np.float32], dtype: str, channels: Sequence[str], case_id: str) -> NDArray[Any]:
    """`x` (N, C, T) in `dtype`, after seeing that float16 neither overflows nor rounds away the signal."""
    if dtype != "float16" or not len(x):
        return np.ascontiguousarray(x, dtype=dtype)
    with np.errstate(over="ignore"):
        small = np.ascontiguousarray(x, dtype=np.float16)
    for row, channel in enumerate(channels):
        largest = float(np.abs(x[:, row]).max())
        if not np.isfinite(small[:, row]).all():
            raise DataError(
                f"case {case_id}, channel {channel}: values reach {largest:g}, float16 ends at 65504; "
                "set dtype to float32, or give the channel a larger unit"
            )
        error = np.sqrt(np.square(x[:, row] - small[:, row].astype(np.float32)).mean(axis=1))
        spread = x[:, row].std(axis=1)
        if (error > FLOAT16_MAX_ERROR * spread).any():
            raise DataError(
                f"case {case_id}, channel {channel}: float16 would round away more than "
                f"{FLOAT16_MAX_ERROR:.0%} of a window's signal (largest value {largest:g}); "
                "set dtype to float32, or give the channel a smaller unit"
            )
    return small
