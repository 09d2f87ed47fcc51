"""Windows of a recording in an array: filtered, resampled and cut as those of a store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biofound.data.channels import Channel
from biofound.data.extract import extract_windows
from biofound.data.sources import Recording, Signal
from biofound.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PreparedWindows:
    """N windows as an encoder takes them: `x` (N, C, T) float32, physical units after filtering.

    `start_s` (N,) in seconds since the recording's first sample, `quality` (N, C) in [0, 1].
    """

    x: NDArray[np.float32]
    start_s: NDArray[np.float64]
    quality: NDArray[np.float32]


def prepare_array(
    x: ArrayLike,
    *,
    sfreq: float,
    names: Sequence[str],
    channels: Sequence[Channel],
    window_sfreq: float,
    window_samples: int,
    max_gap_seconds: float,
) -> PreparedWindows:
    """The windows of a recording; none where nothing in it is whole and good.

    Args:
        x: (rows, samples), unfiltered, in the units of `channels`; NaN in gaps.
        sfreq: its rate in Hz.
        names: the channel of each row, in any order; rows that are not among `channels` are left out.
        channels: the C channels of the windows, in order.
        window_sfreq: sampling rate of the windows in Hz.
        window_samples: T.
        max_gap_seconds: longest gap that is bridged.

    Raises:
        ValueError: when `x`, `sfreq` or `names` cannot be.
        DataError: when a channel is missing, or the rate is too low for its filter.
    """
    found = extract_windows(
        array_recording(x, sfreq=sfreq, names=names, channels=channels),
        channels,
        sfreq=window_sfreq,
        window_samples=window_samples,
        max_gap_seconds=max_gap_seconds,
        dtype="float32",
    )
    return PreparedWindows(x=found.x, start_s=found.start_s, quality=found.quality)


def array_recording(
    x: ArrayLike, *, sfreq: float, names: Sequence[str], channels: Sequence[Channel]
) -> Recording:
    """An array as the recording of `channels`; see `prepare_array`."""
    samples: NDArray[Any] = np.asarray(x, np.float32)
    if samples.ndim != 2 or len(samples) != len(names) or len(set(names)) < len(names):
        raise ValueError(
            f"expected x of shape (channels, samples) and a different name for each row, got shape "
            f"{samples.shape} and {', '.join(names) or 'no names'}"
        )
    if not 0 < sfreq < np.inf:
        raise ValueError(f"sfreq must be a rate in Hz above 0, got {sfreq}")
    wanted = [channel.name for channel in channels]
    absent = [name for name in wanted if name not in names]
    if absent:
        raise DataError(
            f"the checkpoint takes {', '.join(wanted)}, and the array has no {', '.join(absent)} but "
            f"{', '.join(names)}; name its rows with channels"
        )
    rows = dict(zip(names, samples, strict=True))
    signals = {
        channel.name: Signal(samples=rows[channel.name], sfreq=float(sfreq), unit=channel.unit)
        for channel in channels
    }
    return Recording(case_id="array", signals=signals)
