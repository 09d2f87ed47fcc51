"""Align the packets of a wave track in time, and check the track's sampling rate against them.

A `.vital` file stores a wave as packets, each stamped with the time of its first sample. Stamps are
floating point, and some recorders take them from a clock of their own. Placing each packet by itself
(`ceil`, as `vitaldb.VitalFile.to_numpy` does, or even rounding) then shifts whole packets by a sample
against their neighbours. Here a packet that continues the one before is put right behind it.
"""

import numpy as np
from numpy.typing import NDArray

from biofound.errors import DataError

SLACK_SAMPLES = 0.95
"""Largest deviation of a stamp that is no gap: under one sample, so that one lost sample is found."""

JITTER_FACTOR = 8.0
"""Allowed deviation of stamps that jitter, in medians of the jitter from packet to packet."""

RATE_TOLERANCE = 0.05
"""Largest difference between the rate by packet times and the header's, as a fraction of it."""

_INTERVALS_FOR_RATE = 3
_AGREEING_WITHIN = 0.2
_AGREEING_SHARE = 0.75


def align_packets(
    starts: NDArray[np.float64], counts: NDArray[np.int64], *, sfreq: float, origin: float
) -> NDArray[np.int64]:
    """Index of the first sample of each of K packets, on a clock that starts at `origin`.

    Let `e` be the time of a packet's stamp, in samples, minus the number of samples before it: constant
    while no sample is missing, and n higher once n samples were lost. A segment continues while `e` stays
    within the slack of the segment's first packet; otherwise a new segment starts at the sample nearest to
    its stamp. The slack is just under one sample, and more only where the stamps of the track jitter by
    more (then up to half a packet, so that a lost packet is always found).

    So with stamps exact to +-0.45 samples every gap of one sample or more is found where it is, and each
    sample lies within 1.5 samples of its stamp (half a sample for the first packet of a segment).

    Args:
        starts: (K,) seconds, ascending, none before `origin`.
        counts: (K,) samples in each packet.
        sfreq: sampling rate in Hz.
        origin: time of sample 0 in seconds, on the clock of `starts`.

    Returns:
        (K,) indices, at least 0. Packets that overlap in time get overlapping ranges.
    """
    before = np.cumsum(counts) - counts
    late = (starts - origin) * sfreq - before
    slack = _slack(late, counts)
    shifts = np.empty(len(late), dtype=np.int64)
    anchor, shift = np.inf, 0
    for packet, value in enumerate(late.tolist()):
        if abs(value - anchor) > slack:
            anchor, shift = value, int(np.floor(value + 0.5))
        shifts[packet] = shift
    return before + shifts


def check_rate(starts: NDArray[np.float64], counts: NDArray[np.int64], *, sfreq: float, what: str) -> None:
    """Check a header's sampling rate against the packets' times (1 Hz data may be labelled 500 Hz).

    The rate implied by a packet is its samples over the time to the next one. Gaps make single values
    too low, by different factors. So the header is wrong where the median is above its rate (most packets
    would overlap), or below it with most packets agreeing. With fewer than four packets (a packed track
    has one) nothing is checked.

    Args:
        starts: (K,) seconds, ascending.
        counts: (K,) samples in each packet.
        sfreq: the header's rate in Hz.
        what: case, channel and track, for the message.

    Raises:
        DataError: the packets imply a different rate.
    """
    intervals = np.diff(starts)
    usable = intervals > 0
    if usable.sum() < _INTERVALS_FOR_RATE:
        return
    implied = counts[:-1][usable] / intervals[usable]
    rate = float(np.median(implied))
    agreeing = float(np.mean(np.abs(implied - rate) <= _AGREEING_WITHIN * rate))
    too_fast = rate > (1 + RATE_TOLERANCE) * sfreq
    too_slow = rate < (1 - RATE_TOLERANCE) * sfreq and agreeing >= _AGREEING_SHARE
    if too_fast or too_slow:
        raise DataError(
            f"{what}: the header says {sfreq:g} Hz, but by their own times its packets hold {rate:.4g}"
            f" samples per second (median of {len(implied)}, {agreeing:.0%} of them agree). Correct the"
            " rate in the file or leave the case out: nothing read from it would be in time."
        )


def _slack(late: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Largest deviation of a stamp inside a segment, in samples."""
    if len(late) < 2:
        return SLACK_SAMPLES
    jitter = float(np.median(np.abs(np.diff(late))))
    return max(SLACK_SAMPLES, min(JITTER_FACTOR * jitter, float(np.median(counts)) / 2))
