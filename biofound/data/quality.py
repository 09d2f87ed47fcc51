"""Is a window of signal fit to learn from: a quality in [0, 1] and the first reason against it."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.data.sources import Signal


class Reason(IntEnum):
    """Why a window is dropped: the first test it fails, in the order of the tests; KEPT when it fails none."""

    KEPT = 0
    GAP = 1
    FLAT = 2
    CLIPPED = 3
    AMPLITUDE = 4
    NO_BEATS = 5
    TEMPLATE = 6


@dataclass(frozen=True, kw_only=True)
class WindowQuality:
    """The verdict on N consecutive windows of one channel.

    `quality` is (N,) float32 in [0, 1], the worst of the tests' scores; `reason` is (N,) uint8 of `Reason`,
    KEPT exactly where `quality` is at least the channel's threshold.
    """

    quality: NDArray[np.float32]
    reason: NDArray[np.uint8]


def assess(
    signal: Signal,
    samples: NDArray[np.float32],
    void: NDArray[np.bool_],
    *,
    channel: Channel,
    sfreq: float,
    window_samples: int,
) -> WindowQuality:
    """Judge the N = T // window_samples windows that follow one another from a recording's start.

    Args:
        signal: the channel as the source gave it: native rate, NaN gaps; rails and flat lines show there.
        samples: (T,) the same channel conditioned (`Conditioned.samples[row]`).
        void: (T,) where it must not be used (`Conditioned.void[row]`).
        channel: its modality decides the method, its `quality_threshold` what is kept.
        sfreq: rate of `samples` in Hz.
        window_samples: window length in samples of `samples`.
    """
    count = len(samples) // window_samples
    touched = void[: count * window_samples].reshape(count, window_samples).any(axis=1)
    quality = np.where(touched, 0.0, 1.0).astype(np.float32)
    reason = np.where(quality < channel.quality_threshold, Reason.GAP, Reason.KEPT).astype(np.uint8)
    return WindowQuality(quality=quality, reason=reason)
