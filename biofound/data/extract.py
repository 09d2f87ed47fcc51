"""Extract the windows of one case from its recording: filter, assess quality, take the good windows.

Windows are joint: one is kept only when every required channel is good over the same seconds (where none is
required, any). A channel that is not required, and is missing or bad there, is NaN in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel, MotionGate
from biofound.data.conditioning import Conditioned, condition
from biofound.data.motion import assess_motion
from biofound.data.quality import Reason, assess
from biofound.data.sources import Recording, Signal
from biofound.data.store import Counts, Timing
from biofound.errors import DataError

FLOAT16_MAX_ERROR = 0.01
"""The largest rounding error, as a part of a window's standard deviation, that float16 may bring."""


@dataclass(frozen=True, kw_only=True)
class CaseWindows:
    """N kept windows of C channels and T samples, and why the others were dropped.

    Attributes:
        x: (N, C, T) float16 or float32, physical units after filtering; a channel that is not required may
            be NaN throughout a window, and so are then its `mean`, `std` and `quality`.
        mean: (N, C) float32 mean of `x` over each window.
        std: (N, C) float32 standard deviation of `x` over each window.
        start_s: (N,) float64 seconds from the recording's start, ascending multiples of the window length.
        quality: (N, C) float32 in [0, 1].
        candidates: the number of windows in the recording; N of them were kept.
        dropped: windows by reason and channel. Each dropped window counts once, under the first test that
            any required channel fails and the first channel that fails it: the counts and N add up to
            `candidates`.
        rejected: windows that each channel alone would have dropped, by channel and reason; for channels that
            are not required, in which they are missing or bad.
        timing: rates, bridged and contradicting samples of the recording, by channel.
    """

    x: NDArray[Any]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    start_s: NDArray[np.float64]
    quality: NDArray[np.float32]
    candidates: int
    dropped: Counts
    rejected: Counts
    timing: dict[str, Timing]


def extract_windows(
    recording: Recording,
    channels: Sequence[Channel],
    *,
    sfreq: float,
    window_samples: int,
    max_gap_seconds: float,
    dtype: str,
    motion_gate: MotionGate = "off",
) -> CaseWindows:
    """Filter a whole recording, assess its windows, and keep those in which every required channel is good.

    Args:
        recording: the channels at their native rates.
        channels: the C channels wanted, in order.
        sfreq: sampling rate of the windows in Hz.
        window_samples: T; windows follow one another without overlap from the recording's start.
        max_gap_seconds: longest gap that is bridged.
        dtype: `float16` or `float32`.
        motion_gate: whether windows are dropped whose PPG is motion; see `MotionGate`.

    Raises:
        DataError: when a channel cannot be conditioned, or its values do not fit `dtype`.
    """
    conditioned, reasons, quality = assess_windows(
        recording,
        channels,
        sfreq=sfreq,
        window_samples=window_samples,
        max_gap_seconds=max_gap_seconds,
        motion_gate=motion_gate,
    )
    names = [channel.name for channel in channels]
    good = reasons == Reason.KEPT
    deciding, deciding_names = deciding_reasons(reasons, channels)
    is_kept = (deciding == Reason.KEPT).all(axis=1)
    kept, observed = np.flatnonzero(is_kept), good[is_kept]
    count = len(reasons)
    grid = conditioned.samples[:, : count * window_samples].reshape(len(channels), count, window_samples)
    windows = grid[:, kept].transpose(1, 0, 2)
    if not observed.all():
        windows = np.where(observed[:, :, None], windows, np.float32(np.nan))
    x = _as_dtype(windows, dtype, names, recording.case_id)
    values = x.astype(np.float32)
    return CaseWindows(
        x=x,
        mean=values.mean(axis=2, dtype=np.float64).astype(np.float32),
        std=values.std(axis=2, dtype=np.float64).astype(np.float32),
        start_s=kept * window_samples / sfreq,
        quality=np.where(observed, quality[kept], np.nan).astype(np.float32),
        candidates=count,
        dropped=count_dropped(deciding, deciding_names),
        rejected=count_rejected(reasons, names),
        timing={
            name: _timing(recording.signals[name], bridged)
            for name, bridged in zip(names, conditioned.bridged_samples, strict=True)
            if name in recording.signals
        },
    )


def assess_windows(
    recording: Recording,
    channels: Sequence[Channel],
    *,
    sfreq: float,
    window_samples: int,
    max_gap_seconds: float,
    motion_gate: MotionGate,
) -> tuple[Conditioned, NDArray[np.uint8], NDArray[np.float32]]:
    """Filter a recording and assess its N windows; arguments as in `extract_windows`.

    Returns:
        the filtered recording; (N, C) the `Reason` of each window and channel; (N, C) its quality.
    """
    conditioned = condition(recording, channels, sfreq=sfreq, max_gap_seconds=max_gap_seconds)
    assessments = [
        assess(
            recording.signals.get(channel.name),
            conditioned.samples[row],
            conditioned.invalid[row],
            channel=channel,
            sfreq=sfreq,
            window_samples=window_samples,
        )
        for row, channel in enumerate(channels)
    ]
    assessments = assess_motion(
        conditioned.samples,
        conditioned.invalid,
        channels,
        assessments,
        sfreq=sfreq,
        window_samples=window_samples,
        gate=motion_gate,
    )
    reasons = np.stack([assessment.reason for assessment in assessments], axis=1)
    quality = np.stack([assessment.quality for assessment in assessments], axis=1)
    return conditioned, reasons, quality


def deciding_reasons(
    reasons: NDArray[np.uint8], channels: Sequence[Channel]
) -> tuple[NDArray[np.uint8], list[str]]:
    """Why windows are dropped, from `reasons` (N, C): KEPT for the windows that are kept.

    Returns:
        (N, D) the `Reason` of each window and channel that decides; the names of these D channels.
    """
    required = [channel.required for channel in channels]
    if any(required):
        return reasons[:, required], [channel.name for channel in channels if channel.required]
    kept = (reasons == Reason.KEPT).any(axis=1)
    return np.where(kept[:, None], np.uint8(Reason.KEPT), reasons), [channel.name for channel in channels]


def dropped_for(
    reasons: NDArray[np.uint8], channels: Sequence[str]
) -> dict[tuple[str, str], NDArray[np.int64]]:
    """The numbers of the dropped windows by reason and channel, each once, from `reasons` (N, C)."""
    failing = np.where(reasons == Reason.KEPT, np.iinfo(np.uint8).max, reasons)
    first_reason, first_channel = failing.min(axis=1), failing.argmin(axis=1)
    found = {}
    for reason in Reason:
        for column, channel in enumerate(channels):
            index = np.flatnonzero((first_reason == reason) & (first_channel == column))
            if len(index):
                found[reason.name.lower(), channel] = index
    return found


def count_dropped(reasons: NDArray[np.uint8], channels: Sequence[str]) -> Counts:
    """Count each dropped window once: reason to channel to number, from `reasons` (N, C)."""
    counts: Counts = {}
    for (reason, channel), index in dropped_for(reasons, channels).items():
        counts.setdefault(reason, {})[channel] = len(index)
    return counts


def count_rejected(reasons: NDArray[np.uint8], channels: Sequence[str]) -> Counts:
    """Count for each channel by itself: channel to reason to number, from `reasons` (N, C)."""
    names = [reason.name.lower() for reason in Reason]
    counts: Counts = {}
    for column, channel in enumerate(channels):
        row = np.bincount(reasons[:, column], minlength=len(names))
        row[Reason.KEPT] = 0
        counts[channel] = _nonzero(names, row)
    return counts


def _timing(signal: Signal, bridged_samples: int) -> Timing:
    return Timing(
        track=signal.track,
        samples=len(signal.samples),
        header_sfreq=signal.sfreq if signal.header_sfreq is None else signal.header_sfreq,
        sfreq=signal.sfreq,
        bridged_samples=bridged_samples,
        overlapping_samples=signal.overlapping_samples,
        doubtful_samples=signal.doubtful_samples,
    )


def _nonzero(names: Sequence[str], counts: NDArray[np.int64]) -> dict[str, int]:
    return {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}


def _as_dtype(x: NDArray[np.float32], dtype: str, channels: Sequence[str], case_id: str) -> NDArray[Any]:
    """`x` (N, C, T) in `dtype`; refused where float16 would overflow or round away the signal."""
    if dtype != "float16" or not len(x):
        return np.ascontiguousarray(x, dtype=dtype)
    with np.errstate(over="ignore"):
        small = np.ascontiguousarray(x, dtype=np.float16)
    for row, channel in enumerate(channels):
        known = ~np.isnan(x[:, row, 0])  # a missing channel is NaN throughout the window
        wanted, rounded = x[known, row], small[known, row]
        largest = float(np.abs(wanted).max(initial=0.0))
        if not np.isfinite(rounded).all():
            raise DataError(
                f"case {case_id}, channel {channel}: values reach {largest:g}, float16 ends at 65504; "
                "set dtype to float32, or give the channel a larger unit"
            )
        error = np.sqrt(np.square(wanted - rounded.astype(np.float32)).mean(axis=1))
        spread = wanted.std(axis=1)
        if (error > FLOAT16_MAX_ERROR * spread).any():
            raise DataError(
                f"case {case_id}, channel {channel}: float16 would round away more than "
                f"{FLOAT16_MAX_ERROR:.0%} of a window's signal (largest value {largest:g}); "
                "set dtype to float32, or give the channel a smaller unit"
            )
    return small
