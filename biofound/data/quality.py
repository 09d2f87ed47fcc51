"""Signal quality of windows: a value in [0, 1] and, for a window that is dropped, the first reason.

All windows of a recording are assessed at once. Flat lines and clipping are looked for in the signal as
recorded, beats in the filtered one. A beat is good when others of the same recording look like it, which
extends the template matching of Li & Clifford 2012 (https://doi.org/10.1088/0967-3334/33/9/1491) and
Orphanidou et al. 2015 (https://doi.org/10.1109/JBHI.2014.2338351): their template is the one mean beat, ours
the beat's own nearest neighbours, so that atrial fibrillation and ectopic beats are kept.
`docs/signal_quality.md` has the measurements behind the constants.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from biofound.data.channels import Channel
from biofound.data.sources import Signal
from biofound.errors import DataError

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

SUB_WINDOW_SECONDS = 2.0
"""A window is as good as its worst sub-window of this length: a fault of 2 s drops a 10 s window."""

FLAT_SECONDS = {"PPG": 0.5, "ECG": 0.5, "ACC": 1.5}
"""A signal that repeats one value for longer is flat; BIDMC repeats it for up to 0.28 s in clean beats."""

COARSE_SHARE = 0.05
"""An accelerometer with more than this fraction of its time in shorter repeats is coarsely quantised.

Such a one (16 mg steps are common on the wrist) repeats itself whenever it lies still: it is
flat only where it repeats one value for a whole window.
"""

FLAT_SHARE = 0.05
"""Largest fraction of a window that flat lines may cover (0.5 s of 10 s)."""

CLIPPED_SHARE = 0.08
"""Largest fraction of a window's worst sub-window that may be clipped.

R waves that are clipped at their tips only, as in several BIDMC records, come to 2 to 5 %.
"""

FAINT_RATIO = 0.1
"""A signal below this fraction of its usual size for three seconds is too small."""

SLOWEST_BEAT_SECONDS = 2.0
"""Longest interval between beats: 30 beats a minute."""

FASTEST_BEATS_PER_SECOND = 220 / 60

USUAL_SECONDS = 121.0
"""The usual size of a signal is a median over this long, centred."""

CORNER_SECONDS = 0.02
"""Distance from the ends of a constant interval at which the slope is measured."""

REFRACTORY_SECONDS = 0.2
"""Shortest interval between two beats."""

NEIGHBOURHOOD = 64
"""Number of beats in a group (about a minute); each is compared with the others of its group."""

SIMILARITY_RAMP = (0.75, 0.95)
"""Similarity of a beat at which its confidence is 0, and at which it is 1; linear in between."""

K_NEAREST = 3
"""A beat's similarity is the mean over this many of the beats that are most like it."""


class Reason(IntEnum):
    """Reason why a window is dropped: the first test it fails, in the order below; KEPT when it fails none.

    The store counts dropped windows under these names in lower case.
    """

    KEPT = 0
    GAP = 1
    """A sample is missing, for longer than the gaps that are bridged."""
    FLAT = 2
    """The recorded signal repeats one value."""
    CLIPPED = 3
    """The recorded signal stands at the limit of its range."""
    AMPLITUDE = 4
    """The signal swings much wider than usual, or hardly moves."""
    HEART_RATE_RANGE = 5
    """Fewer beats than 30 a minute (none, for example), or more than 220."""
    TEMPLATE = 6
    """Its beats do not look like others of the recording."""
    MOTION = 7
    """Its wave is more likely motion than a pulse (`motion.py`)."""


@dataclass(frozen=True, kw_only=True)
class WindowQuality:
    """Quality and reason of N consecutive windows of one channel.

    `quality` is (N,) float32 in [0, 1]: 0 where a window fails a test other than the template's, else how
    well the beats of its worst sub-window match others (1 for signals without beats). `reason` is (N,)
    uint8 of `Reason`: KEPT exactly where `quality` is at least the channel's threshold and no gap is in
    the window, so that a threshold of 0 switches the gate off but never lets a gap through.
    """

    quality: Floats
    reason: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """Parameters of beat detection and comparison for a modality.

    `before`, `after`: the part of a beat that is compared, in s around its steepest rise (PPG) or QRS;
    `points_hz`: samples a second of that part; `least`: the smallest beat, as a fraction of the usual one;
    `outlier`: the largest swing, in usual ones (ectopic beats reach 4 to 5 times a small QRS).
    """

    before: float
    after: float
    points_hz: float
    least: float
    outlier: float


_SHAPES = {
    "PPG": _Shape(before=0.2, after=0.5, points_hz=25.0, least=0.25, outlier=4.0),
    "ECG": _Shape(before=0.16, after=0.36, points_hz=62.5, least=0.3, outlier=6.0),
}


def assess(
    signal: Signal | None,
    samples: Floats,
    invalid: Flags,
    *,
    channel: Channel,
    sfreq: float,
    window_samples: int,
) -> WindowQuality:
    """Assess the quality of the N = T // window_samples consecutive windows from a recording's start.

    PPG and ECG pass all tests in the order of `Reason`; ACC those for gaps, flat lines and clipping.

    Args:
        signal: the channel as the source gave it: native rate, NaN gaps; clipping and flat lines show there.
            None where the recording has none.
        samples: (T,) the same channel conditioned (`Conditioned.samples[row]`).
        invalid: (T,) where it must not be used (`Conditioned.invalid[row]`).
        channel: its modality sets the method, its `quality_threshold` which windows are kept.
        sfreq: rate of `samples` in Hz.
        window_samples: window length in samples of `samples`.

    Raises:
        DataError: the channel's modality is none of PPG, ECG and ACC.
    """
    if channel.modality not in FLAT_SECONDS:
        raise DataError(
            f"channel {channel.name}: quality is known for PPG, ECG and ACC channels (such as ECG_II, ACC_X),"
            f" got modality {channel.modality}. Rename the channel or leave it out."
        )
    grid = _Grid(count=len(samples) // window_samples, seconds=window_samples / sfreq)
    if signal is None:
        gaps = np.full(grid.count, Reason.GAP, np.uint8)
        return WindowQuality(quality=np.zeros(grid.count, np.float32), reason=gaps)
    touched: Flags = np.any(
        invalid[: grid.count * window_samples].reshape(grid.count, window_samples), axis=1
    )
    failed = {
        Reason.GAP: touched,
        **_flat_or_clipped(signal, channel.modality, grid),
    }
    quality = np.ones(grid.count)
    shape = _SHAPES.get(channel.modality)
    if shape is not None and grid.count:
        failed[Reason.AMPLITUDE] = _implausible_swings(samples, invalid, shape, sfreq, grid)
        beats = find_beats(samples, invalid, channel.modality, sfreq=sfreq)
        failed[Reason.HEART_RATE_RANGE] = _implausible_rate(beats / sfreq, grid)
        confidence = _confidence(_similarity(samples, beats, shape, sfreq))
        quality = _worst_match(beats / sfreq, confidence, grid)
    return _combined(quality, failed, threshold=channel.quality_threshold)


def _combined(
    quality: NDArray[np.float64], failed: dict[Reason, Flags], *, threshold: float
) -> WindowQuality:
    quality = np.where(np.any(list(failed.values()), axis=0), 0.0, np.clip(quality, 0.0, 1.0))
    rounded = quality.astype(np.float32)
    reason = np.where(rounded >= threshold, Reason.KEPT, Reason.TEMPLATE).astype(np.uint8)
    for why in sorted(failed, reverse=True):
        reason[failed[why] & (rounded < threshold)] = why
    reason[failed[Reason.GAP]] = Reason.GAP
    return WindowQuality(quality=rounded, reason=reason)


# ---------------------------------------------------------------- time


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """`count` windows of `seconds` each; in them sub-windows of two seconds, one every quarter second."""

    count: int
    seconds: float

    @property
    def sub_window_seconds(self) -> float:
        return min(SUB_WINDOW_SECONDS, self.seconds)

    @property
    def sub_windows(self) -> NDArray[np.float64]:
        """(N, S) start of each sub-window in s."""
        room = self.seconds - self.sub_window_seconds
        within = np.linspace(0.0, room, 1 + round(4 * room), dtype=np.float64)
        return np.asarray(np.arange(self.count)[:, None] * self.seconds + within)

    def of_windows(self, coverage: "_Coverage") -> NDArray[np.float64]:
        """(N,) covered fraction of each window."""
        edges = np.arange(self.count + 1) * self.seconds
        return np.asarray(np.diff(coverage.before(edges)) / self.seconds)

    def of_sub_windows(self, coverage: "_Coverage") -> NDArray[np.float64]:
        """(N, S) covered fraction of each sub-window."""
        starts, seconds = self.sub_windows, self.sub_window_seconds
        return (coverage.before(starts + seconds) - coverage.before(starts)) / seconds


class _Coverage:
    """Weighted time covered by disjoint intervals [start, stop) in s, as a function of time."""

    def __init__(
        self, start: NDArray[np.float64], stop: NDArray[np.float64], weight: NDArray[np.float64] | None = None
    ):
        lengths = stop - start if weight is None else (stop - start) * weight
        total = np.cumsum(lengths)
        self._times = np.stack([start, stop], axis=1).ravel()
        self._covered = np.stack([total - lengths, total], axis=1).ravel()

    def before(self, time: NDArray[Any]) -> NDArray[np.float64]:
        """Covered time before `time` (any shape)."""
        return np.interp(time, self._times, self._covered) if len(self._times) else np.zeros(np.shape(time))


# ---------------------------------------------------------------- flat lines and clipping


def _flat_or_clipped(signal: Signal, modality: str, grid: _Grid) -> dict[Reason, Flags]:
    """(N,) windows whose recorded signal repeats one value: too long (flat), or with corners (clipped)."""
    start, stop = _constant_intervals(signal.samples)
    lengths = stop - start
    flat = lengths > FLAT_SECONDS[modality] * signal.sfreq
    if modality == "ACC" and lengths[~flat].sum() > COARSE_SHARE * len(signal.samples):
        flat = lengths >= grid.seconds * signal.sfreq
    clipped = _has_corners(signal, start, stop) & ~flat
    start_s, stop_s = start / signal.sfreq, stop / signal.sfreq
    flat_fraction = grid.of_windows(_Coverage(start_s[flat], stop_s[flat]))
    clipped_fraction = grid.of_sub_windows(_Coverage(start_s[clipped], stop_s[clipped]))
    return {
        Reason.FLAT: flat_fraction > FLAT_SHARE,
        Reason.CLIPPED: clipped_fraction.max(axis=1, initial=0.0) > CLIPPED_SHARE,
    }


def _constant_intervals(samples: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and stop of the intervals of three or more equal samples (NaN equals nothing)."""
    if len(samples) < 3:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    same = samples[1:] == samples[:-1]
    # Pairs of equal samples are everywhere in coarse data, threes are rare: the lists stay short.
    threes = same[1:] & same[:-1]
    edges = np.flatnonzero(np.diff(threes, prepend=False, append=False))
    return edges[0::2], edges[1::2] + 2


def _has_corners(signal: Signal, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Flags:
    """Tell clipping from the round top of a coarsely quantised wave.

    A round top that stays within one quantisation step over L samples is a parabola, and has fallen by
    (1 + 2d/L)^2 steps d samples beyond either end. A clipped wave comes and goes steeper, on one side.
    """
    samples = signal.samples
    reach = max(1, round(CORNER_SECONDS * signal.sfreq))
    inner = (start >= reach) & (stop - 1 + reach < len(samples))
    level = samples[start]
    before = level - samples[np.where(inner, start - reach, start)]
    after = level - samples[np.where(inner, stop - 1 + reach, start)]
    round_top = _quantisation_step(samples) * (1.0 + 2.0 * reach / (stop - start)) ** 2
    steep = np.minimum(np.abs(before), np.abs(after)) > 3.0 * round_top
    return np.asarray(inner & (before * after > 0) & steep)


def _quantisation_step(samples: Floats) -> float:
    """The quantisation step: the first percentile of the changes (0 when nothing changes)."""
    changes = np.abs(np.diff(samples[:: max(1, len(samples) // 100_000)]))
    changes = changes[changes > 0]
    return float(np.quantile(changes, 0.01)) if len(changes) else 0.0


# ---------------------------------------------------------------- amplitude


def _implausible_swings(samples: Floats, invalid: Flags, shape: _Shape, sfreq: float, grid: _Grid) -> Flags:
    """(N,) windows with half a second that swings too wide, or three seconds that hardly move."""
    cell = max(1, round(0.5 * sfreq))
    starts = np.arange(0, len(samples), cell)
    top, bottom = np.maximum.reduceat(samples, starts), np.minimum.reduceat(samples, starts)
    swing = top - bottom
    # Two seconds hold a beat, however slow the heart.
    wide = ndimage.maximum_filter1d(top, size=4) - ndimage.minimum_filter1d(bottom, size=4)
    valid = ~np.logical_or.reduceat(invalid, starts)
    usual = _usual(wide, valid, seconds_each=cell / sfreq)
    wild = swing > shape.outlier * usual
    faint = ndimage.maximum_filter1d(wide, size=3) < FAINT_RATIO * usual
    start_s = starts[wild | faint] / sfreq
    return grid.of_windows(_Coverage(start_s, start_s + cell / sfreq)) > 1e-6


def _usual(sizes: Floats, valid: Flags, *, seconds_each: float) -> Floats:
    """The running median of `sizes` over two minutes, within a factor of five of the recording's."""
    if not valid.any():
        return np.zeros_like(sizes)
    overall = np.median(sizes[valid])
    span = min(round(USUAL_SECONDS / seconds_each), len(sizes)) | 1
    local = ndimage.median_filter(np.where(valid, sizes, overall), size=span, mode="reflect")
    return np.asarray(np.clip(local, overall / 5.0, overall * 5.0))


# ---------------------------------------------------------------- beats


def find_beats(samples: Floats, invalid: Flags, modality: str, *, sfreq: float) -> NDArray[np.int64]:
    """Find the beats of a conditioned (T,) PPG or ECG: sample index of the pulse's steepest rise, or the QRS.

    A beat is a maximum of the activity (PPG: slope upward; ECG: size of the 5 to 20 Hz part, smoothed)
    that is large enough by the usual maximum of two minutes, and the largest within the refractory time.
    """
    activity, detail = _rises(samples, sfreq) if modality == "PPG" else _qrs_energy(samples, sfreq)
    peaks = 1 + np.flatnonzero((activity[1:-1] > activity[:-2]) & (activity[1:-1] >= activity[2:]))
    cell = max(1, round(1.5 * sfreq))
    count = -(-len(samples) // cell)
    if len(peaks) == 0 or count == 0:
        return np.empty(0, dtype=np.int64)
    starts = np.arange(count) * cell
    largest = np.maximum.reduceat(activity, starts)
    valid = ~np.logical_or.reduceat(invalid, starts)
    usual = _usual(largest, valid, seconds_each=cell / sfreq)
    heights = activity[peaks]
    high = heights > np.maximum(_SHAPES[modality].least * usual[peaks // cell], 0.0)
    peaks, heights = peaks[high], heights[high]
    if modality == "PPG":
        # The dicrotic wave rises too, soon after and less steeply.
        peaks, heights = _without_lesser(peaks, heights, reach=round(0.36 * sfreq), ratio=0.5)
    peaks, _ = _without_lesser(peaks, heights, reach=round(REFRACTORY_SECONDS * sfreq), ratio=1.0)
    return peaks if modality == "PPG" else _sharpened(peaks, detail, reach=round(0.06 * sfreq))


def _rises(samples: Floats, sfreq: float) -> tuple[Floats, Floats]:
    slope = np.zeros_like(samples)
    # The difference over 32 ms is the slope, smoothed.
    lag = max(1, round(0.016 * sfreq))
    np.subtract(samples[2 * lag :], samples[: -2 * lag], out=slope[lag:-lag])
    return slope, samples


def _qrs_energy(samples: Floats, sfreq: float) -> tuple[Floats, Floats]:
    narrow, wide, smooth = (max(1, round(seconds * sfreq)) | 1 for seconds in (0.024, 0.1, 0.08))
    detail = ndimage.uniform_filter1d(samples, narrow) - ndimage.uniform_filter1d(samples, wide)
    np.abs(detail, out=detail)
    return ndimage.uniform_filter1d(detail, smooth), detail


def _without_lesser(
    peaks: NDArray[np.int64], heights: Floats, *, reach: int, ratio: float
) -> tuple[NDArray[np.int64], Floats]:
    """Drop peaks lower than `ratio` times another within `reach` samples, until none is left to drop."""
    while True:
        near = np.diff(peaks) <= reach
        drop = np.zeros(len(peaks), dtype=np.bool_)
        drop[:-1] |= near & (heights[:-1] < ratio * heights[1:])
        drop[1:] |= near & (heights[1:] <= ratio * heights[:-1])
        if not drop.any():
            return peaks, heights
        peaks, heights = peaks[~drop], heights[~drop]


def _sharpened(peaks: NDArray[np.int64], detail: Floats, *, reach: int) -> NDArray[np.int64]:
    """Move each peak to the largest `detail` within `reach` samples: the same point of every QRS."""
    around = np.clip(peaks[:, None] + np.arange(-reach, reach + 1), 0, len(detail) - 1)
    return np.asarray(np.take_along_axis(around, detail[around].argmax(axis=1)[:, None], axis=1)[:, 0])


def _implausible_rate(beats: NDArray[np.float64], grid: _Grid) -> Flags:
    """(N,) windows with fewer beats than 30 a minute or more than 220."""
    count = np.diff(np.searchsorted(beats, np.arange(grid.count + 1) * grid.seconds))
    least = np.floor(grid.seconds / SLOWEST_BEAT_SECONDS)
    most = np.ceil(FASTEST_BEATS_PER_SECOND * grid.seconds)
    return np.asarray((count < least) | (count > most))


def _similarity(samples: Floats, beats: NDArray[np.int64], shape: _Shape, sfreq: float) -> Floats:
    """(K,) mean similarity of each beat to its `K_NEAREST` nearest beats, 0 to 1, in form and in size.

    The similarity of beats a and b is 2 a.b / (a.a + b.b) = r * 2q / (1 + q^2), with their correlation r
    and the ratio q of their sizes.
    """
    offsets = np.round(np.arange(-shape.before, shape.after, 1 / shape.points_hz) * sfreq).astype(np.int64)
    forms = samples[np.clip(beats[:, None] + offsets, 0, len(samples) - 1)]  # (K, points)
    forms -= forms.mean(axis=1, keepdims=True)
    group = min(NEIGHBOURHOOD, len(beats))
    if group <= K_NEAREST:
        return np.zeros(len(beats), dtype=np.float32)
    # Every group is full: the last one reaches back into the one before.
    first = np.minimum(np.arange(0, len(beats), group), len(beats) - group)
    members = first[:, None] + np.arange(group)
    grouped = forms[members]
    products = grouped @ grouped.transpose(0, 2, 1)  # (groups, group, group)
    energy = np.einsum("gii->gi", products)
    pairs = products / np.maximum(0.5 * (energy[:, :, None] + energy[:, None, :]), np.finfo(np.float32).tiny)
    pairs[:, np.arange(group), np.arange(group)] = -1.0  # a beat is no neighbour of its own
    best = np.partition(pairs, group - K_NEAREST, axis=2)[:, :, group - K_NEAREST :].mean(axis=2)
    similarity = np.empty(len(beats), dtype=np.float32)
    similarity[members] = best
    return np.maximum(similarity, 0.0)


def _confidence(similarity: Floats) -> NDArray[np.float64]:
    """(K,) confidence in each beat from its similarity, 0 to 1; one odd beat between good ones counts half.

    Noise reaches similarities of 0.5 to 0.8 by chance, so only what exceeds that counts. A single odd beat
    among good ones is a rare ectopic beat, which has no similar beat near; noise that matters lasts longer.
    """
    low, high = SIMILARITY_RAMP
    confidence = np.clip((similarity.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    between = 0.5 * np.minimum(confidence[:-2], confidence[2:])
    confidence[1:-1] = np.maximum(confidence[1:-1], between)
    return confidence


def _worst_match(
    beats: NDArray[np.float64], confidence: NDArray[np.float64], grid: _Grid
) -> NDArray[np.float64]:
    """(N,) mean confidence over a window's worst sub-window; time without a beat near counts as 0.

    A beat at `beats` (K,) s stands for the time half-way to its neighbours, at most a second each way.
    """
    reach = SLOWEST_BEAT_SECONDS / 2
    half = np.minimum(np.diff(beats) / 2, reach)
    start = beats - np.concatenate([np.full(min(1, len(beats)), reach), half])
    stop = beats + np.concatenate([half, np.full(min(1, len(beats)), reach)])
    matched = grid.of_sub_windows(_Coverage(start, stop, confidence))
    return np.asarray(matched.min(axis=1))
