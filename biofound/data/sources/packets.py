"""Align the packets of a wave track in time, and find the track's true sampling rate from them.

A `.vital` file stores a wave as packets, each stamped with the time of its first sample. Stamps are
floating point, and some recorders take them from a clock of their own. Placing each packet by itself
(`ceil`, as `vitaldb.VitalFile.to_numpy` does, or even rounding) then shifts whole packets by a sample
against their neighbours. Here a packet that continues the one before is put right behind it.

Some recorders stamp a packet with the time of its end; some sample at another rate than the header's. Let a
packet's lateness be the time of its stamp, in samples, minus the number of samples before it: constant
while no sample is missing, and n higher once n samples were lost. All functions here look at it.
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

MOST_SAMPLES = 1 << 28
"""Samples of a signal with its gaps beyond which a file is refused: 24 days at 125 Hz."""

_INTERVALS_FOR_RATE = 3
_AGREEING_WITHIN = 0.2
_AGREEING_SHARE = 0.75

_FEWEST_SEAMS = 2  # fewer are lost samples, not drift
_SEAM = 1e-2  # of a packet's length: larger steps beside it are gaps
_RATE_ERROR = 1e-4  # of the median rate, at most, in most tracks
_SEAMS_LEFT = 0.1  # of the seams by the header's rate; more are left where the drift is not steady
_LATE_IN_A_ROW = 4
_GIANT = 10  # in packets of the usual length


def find_rate(starts: NDArray[np.float64], counts: NDArray[np.int64], *, sfreq: float) -> float:
    """The true sampling rate of a track whose clock drifts steadily against its stamps, else `sfreq`.

    By the header's rate the packets of such a track seem to lose, or to repeat, a sample every now and then.
    The rate is the median over pairs of packets, as far apart as half of the pairs have no gap between them,
    then refined by a straight line through each stretch without a gap. It is used if it leaves at most a
    tenth of those seams.

    Args:
        starts: (K,) seconds, ascending.
        counts: (K,) samples in each packet.
        sfreq: the header's rate in Hz.
    """
    seams = _count_seams(starts, counts, sfreq)
    if seams < _FEWEST_SEAMS:
        return sfreq
    rate = _median_rate(starts, counts, sfreq)
    refined = _refined_rate(starts, counts, rate)
    best = min((refined, rate), key=lambda one: _count_seams(starts, counts, one))
    return best if _count_seams(starts, counts, best) <= _SEAMS_LEFT * seams else sfreq


def correct_late_stamps(
    starts: NDArray[np.float64], counts: NDArray[np.int64], *, sfreq: float
) -> NDArray[np.float64]:
    """Times of the first samples, for packets that may be stamped with the time of their end.

    Recorders do that with a packet of minutes between packets of a tenth of a second. Taken for its start,
    such a stamp leaves a gap before the packet that is as long as the packet, and lets it overlap with what
    follows. A packet is moved back, by no more than its length (and the tolerance of the rate), where a gap
    is before it and one of the next packets shows that it lies too late: behind the packet before, where that
    fits, else right before the packet after. The last packets of a track that are ten times as long as usual
    are moved if, by stamps of their ends, they follow the packet before and one another without a gap. What
    overlaps for another reason stays where its stamp says.

    Args:
        starts: (K,) seconds, ascending.
        counts: (K,) samples in each packet.
        sfreq: the track's rate in Hz.

    Returns:
        (K,) seconds, ascending.
    """
    before = np.cumsum(counts) - counts
    late = (starts - starts[0]) * sfreq - before
    slack = _slack(late, counts)
    corrected = late.copy()
    for packet in _too_late(late, slack):
        previous = corrected[packet - 1] if packet else -np.inf
        if corrected[packet] - previous > slack:
            target = _lateness_after(late, counts, starts, packet, previous, slack)
            if target is not None:
                end = late[packet] - counts[packet]  # where it would be if the stamp is that of its end
                behind = target <= previous + slack or abs(end - previous) < abs(end - target)
                corrected[packet] = previous if behind else target
    first = _giants_at_end(counts)
    if first < len(late):
        by_ends = late[first:] - counts[first:]
        gaps = np.diff(by_ends, prepend=corrected[first - 1])
        if (np.abs(gaps) <= _doubt(counts)[first:]).all():
            corrected[first:] = corrected[first - 1]
    moved = corrected != late
    return np.where(moved, starts[0] + (before + corrected) / sfreq, starts)


def doubtful_samples(starts: NDArray[np.float64], counts: NDArray[np.int64], *, sfreq: float) -> int:
    """The samples at a track's end whose place no stamp can tell; 0 where all can.

    Packets ten times as long as usual, with nothing after them, and a gap before one of them in which it has
    room: its stamp may be that of its start or of its end.

    Args:
        starts: (K,) seconds, as `correct_late_stamps` gives them.
        counts: (K,) samples in each packet.
        sfreq: the track's rate in Hz.
    """
    first = _giants_at_end(counts)
    late = (starts - starts[0]) * sfreq - (np.cumsum(counts) - counts)
    gaps = np.diff(late, prepend=late[0])
    has_room = (gaps >= counts - _doubt(counts))[first:]
    return int(counts[first:].sum()) if has_room.any() else 0


def align_packets(
    starts: NDArray[np.float64], counts: NDArray[np.int64], *, sfreq: float, origin: float
) -> NDArray[np.int64]:
    """Index of the first sample of each of K packets, on a clock that starts at `origin`.

    A segment continues while the lateness of its packets stays within the slack of the first one's;
    otherwise a new segment starts at the sample nearest to its stamp. The slack is just under one sample, and
    more only where the stamps of the track jitter by more (then up to half a packet, so that a lost packet is
    always found).

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


def check_span(starts: NDArray[np.float64], *, sfreq: float, origin: float, what: str) -> None:
    """Refuse packets whose times, in seconds, span more than `MOST_SAMPLES` at `sfreq` Hz from `origin` on.

    Raises:
        DataError: when they do.
    """
    if (starts[-1] - origin) * sfreq > MOST_SAMPLES:
        raise DataError(
            f"{what}: it spans {(starts[-1] - origin) / 3600:.0f} h at {sfreq:g} Hz, more than "
            f"{MOST_SAMPLES:,} samples: a time is wrong, or the file must be split into several"
        )


def place_packets(
    samples: NDArray[np.float32], first: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float32], int]:
    """Place packets on a grid, NaN in gaps; where they overlap the later one counts.

    Args:
        samples: (N,) the samples of all packets, one packet after the other.
        first: (K,) index of the first sample of each packet; see `align_packets`.
        counts: (K,) samples in each packet.

    Returns:
        (T,) samples, and how many of the N were replaced by later ones.
    """
    offset = np.arange(len(samples)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.repeat(first, counts) + offset
    placed = np.full(int(index.max()) + 1, np.nan, np.float32)
    placed[index] = samples
    taken = np.zeros(len(placed), np.bool_)
    taken[index] = True
    return placed, len(index) - int(np.count_nonzero(taken))


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


def _giants_at_end(counts: NDArray[np.int64]) -> int:
    """The number of the first of the packets at the end that are ten times as long as usual; K if none is."""
    usual = max(np.median(counts), 1)  # packets may be empty
    return int(np.flatnonzero(counts < _GIANT * usual)[-1]) + 1


def _doubt(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) by how many samples a gap may differ from the length of the packet that fills it."""
    return RATE_TOLERANCE / 5 * counts.astype(np.float64) + float(np.median(counts))


def _slack(late: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Largest deviation of a stamp inside a segment, in samples."""
    if len(late) < 2:
        return SLACK_SAMPLES
    jitter = float(np.median(np.abs(np.diff(late))))
    return max(SLACK_SAMPLES, min(JITTER_FACTOR * jitter, float(np.median(counts)) / 2))


def _count_seams(starts: NDArray[np.float64], counts: NDArray[np.int64], sfreq: float) -> int:
    """Number of segments that start hardly later or earlier than the one before ends.

    A giant packet has room for more drift than others.
    """
    starts = correct_late_stamps(starts, counts, sfreq=sfreq)
    steps = np.diff(align_packets(starts, counts, sfreq=sfreq, origin=float(starts[0]))) - counts[:-1]
    late = (starts - starts[0]) * sfreq - (np.cumsum(counts) - counts)
    most = np.maximum(2 * _slack(late, counts) + 1, _SEAM * np.maximum(counts[:-1], counts[1:]))
    return int(np.count_nonzero((steps != 0) & (np.abs(steps) <= most)))


def _median_rate(starts: NDArray[np.float64], counts: NDArray[np.int64], sfreq: float) -> float:
    """Median samples per second of pairs of packets, as far apart as half of the pairs agree.

    They must agree with the rate of nearer pairs, too: far ones may all have the same gap between them.
    """
    before = np.cumsum(counts) - counts
    rate, distance, slack = sfreq, 1, SLACK_SAMPLES
    while distance < len(starts):
        seconds = starts[distance:] - starts[:-distance]
        samples = before[distance:] - before[:-distance]
        later = seconds > 0
        if not later.any():
            break
        median = float(np.median(samples[later] / seconds[later]))
        if distance == 1:
            slack = _slack(starts * median - before, counts)
        agreeing = np.abs(samples - median * seconds) <= slack
        if distance > 1:
            agreeing &= np.abs(samples - rate * seconds) <= 2 * slack
        if np.mean(agreeing) < 0.5:
            break
        rate, distance = median, 2 * distance
    return rate


def _refined_rate(starts: NDArray[np.float64], counts: NDArray[np.int64], rate: float) -> float:
    """The rate by the slope of the lateness, common to all stretches without a gap (least squares)."""
    before = (np.cumsum(counts) - counts).astype(np.float64)
    corrected = correct_late_stamps(starts, counts, sfreq=rate)
    late = (corrected - corrected[0]) * rate - before
    longer = np.maximum(counts[:-1], counts[1:])
    gaps = np.abs(np.diff(late)) > _slack(late, counts) + _RATE_ERROR * longer
    stretch = np.concatenate([[0], np.cumsum(gaps)])
    sizes = np.bincount(stretch)
    x = before - (np.bincount(stretch, before) / sizes)[stretch]
    y = late - (np.bincount(stretch, late) / sizes)[stretch]
    return rate / (1 + float(x @ y / (x @ x))) if x.any() else rate


def _too_late(late: NDArray[np.float64], slack: float) -> list[int]:
    """Packets that one of the next few packets overtakes."""
    lowest = np.full(len(late), np.inf)
    for ahead in range(1, min(_LATE_IN_A_ROW, len(late) - 1) + 1):
        np.minimum(lowest[:-ahead], late[ahead:], out=lowest[:-ahead])
    overtaken: list[int] = np.flatnonzero(late - lowest > slack).tolist()
    return overtaken


def _lateness_after(
    late: NDArray[np.float64],
    counts: NDArray[np.int64],
    starts: NDArray[np.float64],
    packet: int,
    previous: float,
    slack: float,
) -> float | None:
    """The lateness to which a packet and those up to the one that overtakes them fit moved back, if any."""
    found = None
    for after in range(packet + 1, min(packet + _LATE_IN_A_ROW, len(late) - 1) + 1):
        target, moved = float(late[after]), slice(packet, after)
        most = (1 + RATE_TOLERANCE) * counts[moved] + slack
        room = slack + RATE_TOLERANCE * float(counts[moved].sum())
        excess = late[moved] - target
        if (
            (starts[after], counts[after]) != (starts[packet], counts[packet])  # else it was sent twice
            and ((excess > slack) & (excess <= most)).all()
            and target >= previous - room
            and (abs(target - previous) <= room or (excess >= counts[moved] / 2).all())
            and (found is None or target < found)
        ):
            found = target
    return found
