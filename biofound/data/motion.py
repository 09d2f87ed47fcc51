"""Motion check of the PPG: is a window's wave the pulse, or steps and other movement?

Steps come as regularly as beats and look alike, so that a template match takes them for a pulse. What tells
them apart, from strong to weak: what is left of the PPG when all that follows from the acceleration is taken
away (linear regression on the delayed acceleration, a noise canceller as of Widrow et al. 1975,
https://doi.org/10.1109/PROC.1975.10036); the PPG's agreement with the R peaks of a good ECG; and the form of
the wave, since a pulse rises faster than it falls. The features of a whole recording are computed at once;
`docs/signal_quality.md` has the measurements behind the constants.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from biofound.data.channels import Channel, MotionGate
from biofound.data.quality import Flags, Floats, Reason, WindowQuality, find_beats
from biofound.data.sources.units import conversion
from biofound.errors import DataError

STILL_G = 0.03
"""Acceleration below this (root mean square of all axes together, over a window) is no motion.

At rest breathing and heart beats reach 0.01 g; a step at the wrist has 0.1 g and more.
"""

DELAYS_SECONDS = 0.08
"""Distance of the delays in both regressions: half a period of 6 Hz."""

MOTION_DELAYS = 9
"""Delays of each acceleration axis, around 0."""

PULSE_DELAYS = 13
"""Delays of the PPG after an R peak, from 0."""

MOTION_SPAN, PULSE_SPAN = 2, 1
"""Windows before and after for which a regression holds: more tell steps at the heart's rate from pulses."""

RIDGE = 1e-3
"""Ridge of the regressions, relative to the mean power of a regressor."""

SAME_BEAT_SECONDS = 0.1
"""Beats of two trains that are no farther apart are the same."""

LEAST_HZ = 20.0
"""Regressions run at this rate or little above; the PPG's pass band ends at 8 Hz."""

_CHUNK = 256  # windows at a time: bounds the memory of long recordings


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """A logistic regression from features, most of them between 0 and 1, to the confidence in a pulse.

    Fitted on moving windows of the population `exercise`, seeds 1 to 8. Where nothing says that somebody
    moves the intercept is higher than fitted, so that less is lost at rest.
    """

    intercept: float
    left: float = 0.0
    """Share of the PPG's power that does not follow from the acceleration."""
    same: float = 0.0
    """Agreement of the beats with those after the motion is taken away."""
    locked: float = 0.0
    """Share of the PPG's power that follows from the R peaks."""
    timed: float = 0.0
    """Agreement of the beats with the R peaks."""
    slope_skewness: float = 0.0
    """Skewness of the PPG's slope: positive where it rises faster than it falls."""
    skewness: float = 0.0
    """Skewness of the PPG: positive where its peaks are narrower than its valleys."""
    bandwidth: float = 0.0
    """Logarithm of the width of the PPG's spectrum in Hz."""
    template: float = 0.0
    """The quality by the tests before."""


WITH_ACC = _Weights(intercept=-16.2, left=6.0, same=10.8, template=4.0)
WITH_ACC_AND_ECG = _Weights(intercept=-16.5, left=6.2, same=9.0, locked=5.7, template=2.5)
WITH_ECG = _Weights(intercept=-7.5, timed=5.5, locked=6.8)
WITH_PPG = _Weights(intercept=-2.5, slope_skewness=4.5, skewness=1.2, bandwidth=-2.1)


def assess_motion(
    samples: Floats,
    invalid: Flags,
    channels: Sequence[Channel],
    assessed: Sequence[WindowQuality],
    *,
    sfreq: float,
    window_samples: int,
    gate: MotionGate,
) -> list[WindowQuality]:
    """Lower the quality of PPG windows to the confidence that they hold a pulse, and not motion.

    A window whose acceleration says that the subject lies still keeps its quality, as does, with `auto`, one
    without acceleration. The ECG counts where it is good.

    Args:
        samples: (C, T) conditioned channels.
        invalid: (C, T) where they must not be used.
        channels: the C channels.
        assessed: their N windows so far.
        sfreq: rate of the samples in Hz.
        window_samples: window length in samples.
        gate: see `MotionGate`.

    Raises:
        DataError: the unit of an acceleration channel does not convert to g.
    """
    count = len(assessed[0].quality) if assessed else 0
    rows = {kind: [k for k, channel in enumerate(channels) if channel.modality == kind] for kind in _KINDS}
    if gate == "off" or not count or not rows["PPG"] or (gate == "auto" and not rows["ACC"]):
        return list(assessed)
    windows = _Windows(count=count, samples=window_samples, sfreq=sfreq)
    length = count * window_samples
    acceleration = (
        np.array([_in_g(channels[row]) for row in rows["ACC"]])[:, None] * samples[rows["ACC"], :length]
    )
    has_acc = _all_good(assessed, rows["ACC"], count)
    moving = has_acc & (windows.power(acceleration) >= STILL_G**2)
    good_ecg = _all_good(assessed, rows["ECG"][:1], count)
    r_peaks = _r_peaks(samples, invalid, rows["ECG"][:1], windows)
    found = list(assessed)
    for row in rows["PPG"]:
        ppg = _Ppg(samples[row, :length], invalid[row, :length], assessed[row].quality, windows)
        confidence = np.ones(count)
        for some, weights in (
            (moving & ~good_ecg, WITH_ACC),
            (moving & good_ecg, WITH_ACC_AND_ECG),
            (~has_acc & good_ecg & (gate == "on"), WITH_ECG),
            (~has_acc & ~good_ecg & (gate == "on"), WITH_PPG),
        ):
            if some.any():
                confidence[some] = ppg.confidence(weights, acceleration, moving, r_peaks)[some]
        found[row] = _lowered(assessed[row], confidence, channels[row].quality_threshold)
    return found


_KINDS = ("PPG", "ECG", "ACC")


def _lowered(before: WindowQuality, confidence: NDArray[np.float64], threshold: float) -> WindowQuality:
    quality = np.minimum(before.quality, confidence.astype(np.float32))
    newly_bad = (before.reason == Reason.KEPT) & (quality < threshold)
    return WindowQuality(
        quality=quality, reason=np.where(newly_bad, np.uint8(Reason.MOTION), before.reason).astype(np.uint8)
    )


def _in_g(channel: Channel) -> float:
    try:
        factor, _ = conversion(channel.unit, replace(channel, unit="g"), what=channel.name)
    except DataError as problem:
        raise DataError(
            f"channel {channel.name}: the motion check needs acceleration in g, mg or m/s2, got unit "
            f"{channel.unit!r}; correct the unit, or switch the check off with motion_gate off"
        ) from problem
    return factor


def _all_good(assessed: Sequence[WindowQuality], rows: Sequence[int], count: int) -> Flags:
    """(N,) windows in which all these channels pass their own tests; none where there is no channel."""
    good = [assessed[row].reason == Reason.KEPT for row in rows]
    return np.logical_and.reduce(good) if good else np.zeros(count, np.bool_)


def _r_peaks(
    samples: Floats, invalid: Flags, rows: Sequence[int], windows: "_Windows"
) -> NDArray[np.float64]:
    """Times in s of the R peaks in the ECG whose row is given; none without one."""
    if not rows:
        return np.empty(0)
    return find_beats(samples[rows[0]], invalid[rows[0]], "ECG", sfreq=windows.sfreq) / windows.sfreq


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """N windows of some samples each; `step` samples become one for regressions."""

    count: int
    samples: int
    sfreq: float

    @property
    def step(self) -> int:
        most = max(1, int(self.sfreq / LEAST_HZ))
        return next(step for step in range(most, 0, -1) if self.samples % step == 0)

    def power(self, signals: Floats) -> NDArray[np.float64]:
        """(N,) mean over time of the sum of squares over signals (C, T)."""
        squares = np.square(signals, dtype=np.float64).sum(axis=0)
        return np.asarray(squares.reshape(self.count, self.samples).mean(axis=1))

    def per_window(self, times: NDArray[np.float64], flags: Flags | None = None) -> NDArray[np.float64]:
        """(N,) number of times (K,) in s in each window; with flags (K,) of those flagged."""
        number = np.floor(times * (self.sfreq / self.samples)).astype(np.int64)
        inside = (number >= 0) & (number < self.count)
        if flags is not None:
            inside &= flags
        return np.bincount(number[inside], minlength=self.count).astype(np.float64)

    def coarse(self, signals: Floats) -> Floats:
        """(C, T) at the rate of the regressions."""
        smooth = ndimage.uniform_filter1d(signals, self.step, axis=-1) if self.step > 1 else signals
        return np.asarray(smooth[..., self.step // 2 :: self.step])


class _Ppg:
    """A PPG channel (T,) and its features, each computed when it is asked for."""

    def __init__(self, samples: Floats, invalid: Flags, quality: Floats, windows: _Windows) -> None:
        self._samples, self._invalid, self._windows = samples, invalid, windows
        self._quality = quality
        self._beats = self._beats_of(samples)
        self._coarse = windows.coarse(samples)

    def confidence(
        self, weights: _Weights, acceleration: Floats, moving: Flags, r_peaks: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """(N,) by one of the logistic regressions."""
        total = weights.intercept + weights.template * self._quality.astype(np.float64)
        if weights.left or weights.same:
            left, same = self._without_motion(acceleration, moving)
            total += weights.left * left + weights.same * same
        if weights.locked:
            total += weights.locked * self._locked_share(r_peaks)
        if weights.timed:
            total += weights.timed * self._agreement_with(r_peaks)
        if weights.slope_skewness:
            total += weights.slope_skewness * _skewness(np.gradient(self._samples), self._windows)
            total += weights.skewness * _skewness(self._samples, self._windows)
            total += weights.bandwidth * self._bandwidth()
        return 1.0 / (1.0 + np.exp(-np.clip(total, -50.0, 50.0)))

    def _beats_of(self, samples: Floats) -> NDArray[np.float64]:
        return find_beats(samples, self._invalid, "PPG", sfreq=self._windows.sfreq) / self._windows.sfreq

    def _without_motion(
        self, acceleration: Floats, moving: Flags
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N,) share of power left when motion is taken away, and agreement of the beats before and after."""
        windows = self._windows
        delay = DELAYS_SECONDS * windows.sfreq / windows.step
        delays = np.rint((np.arange(MOTION_DELAYS) - MOTION_DELAYS // 2) * delay).astype(np.int64)
        motion = _explained(self._coarse, windows.coarse(acceleration), delays, windows, MOTION_SPAN, moving)
        left = _share(self._coarse - motion, self._coarse, windows)
        at = np.arange(len(motion)) * windows.step + windows.step // 2
        cleaned = self._samples - np.interp(np.arange(len(self._samples)), at, motion).astype(np.float32)
        return left, _agreement(self._beats, self._beats_of(cleaned), windows)

    def _locked_share(self, r_peaks: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) share of power that a wave of one form after each R peak has."""
        windows = self._windows
        rate = windows.sfreq / windows.step
        places = np.rint(r_peaks * rate).astype(np.int64)
        train = np.bincount(places[places < len(self._coarse)], minlength=len(self._coarse)).astype(
            np.float32
        )
        train = np.convolve(train, np.array([0.5, 1.0, 0.5], np.float32), "same")
        delays = np.rint(np.arange(PULSE_DELAYS) * DELAYS_SECONDS * rate).astype(np.int64)
        everywhere = np.ones(windows.count, np.bool_)
        train -= train.mean()
        pulse = _explained(self._coarse, train[None], delays, windows, PULSE_SPAN, everywhere)
        return 1.0 - _share(self._coarse - pulse, self._coarse, windows)

    def _agreement_with(self, r_peaks: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) agreement of the beats with the R peaks, at the recording's most frequent delay."""
        if not len(r_peaks) or not len(self._beats):
            return np.zeros(self._windows.count)
        before = np.searchsorted(r_peaks, self._beats) - 1
        delay = self._beats[before >= 0] - r_peaks[before[before >= 0]]
        number, edges = np.histogram(delay, np.arange(0.0, 1.0, 0.02))
        usual = edges[np.convolve(number, np.ones(5), "same").argmax()] + 0.01
        return _agreement(self._beats - usual, r_peaks, self._windows)

    def _bandwidth(self) -> NDArray[np.float64]:
        """(N,) logarithm of the effective width of the spectrum in Hz: the exponential of its entropy."""
        windows = self._windows
        waves = self._samples.reshape(windows.count, windows.samples) * np.hanning(windows.samples)
        power = np.abs(np.fft.rfft(waves, 2 * windows.samples, axis=1)) ** 2
        share = power / np.maximum(power.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(axis=1)
        return np.asarray(entropy + np.log(windows.sfreq / (2 * windows.samples)))


def _skewness(wave: Floats, windows: _Windows) -> NDArray[np.float64]:
    """(N,) skewness of a wave (T,)."""
    waves = wave.reshape(windows.count, windows.samples).astype(np.float64)
    waves -= waves.mean(axis=1, keepdims=True)
    spread = np.maximum(np.mean(waves**2, axis=1), np.finfo(np.float32).tiny)
    return np.asarray(np.mean(waves**3, axis=1) / spread**1.5)


def _explained(
    target: Floats, sources: Floats, delays: NDArray[np.int64], windows: _Windows, span: int, used: Flags
) -> NDArray[np.float64]:
    """(T,) the part of `target` (T,) that follows from delayed `sources` (S, T), by linear regression.

    The regression of a window holds for `span` windows before and after it, too, where these are `used`.
    """
    count, width, size = windows.count, len(target) // windows.count, len(sources) * len(delays)
    gram, cross = np.zeros((count, size, size)), np.zeros((count, size))
    for some, regressors in _chunks(sources, delays, count, width):
        wave = target.reshape(count, width)[some].astype(np.float64)
        gram[some] = used[some, None, None] * (regressors @ regressors.transpose(0, 2, 1))
        cross[some] = used[some, None] * np.einsum("nkw,nw->nk", regressors, wave)
    gram, cross = _moving_sum(gram, span), _moving_sum(cross, span)
    ridge = RIDGE * np.trace(gram, axis1=1, axis2=2) / size + np.finfo(np.float32).tiny
    weights = np.linalg.solve(gram + ridge[:, None, None] * np.eye(size), cross[:, :, None])[:, :, 0]
    part = np.zeros((count, width))
    for some, regressors in _chunks(sources, delays, count, width):
        part[some] = np.einsum("nk,nkw->nw", weights[some], regressors)
    return part.ravel()


def _chunks(
    sources: Floats, delays: NDArray[np.int64], count: int, width: int
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Slices of windows, each with its regressors (n, S x delays, width); 0 beyond the recording's ends."""
    reach = int(np.abs(delays).max(initial=0))
    padded = np.pad(sources, ((0, 0), (reach, reach)))
    for first in range(0, count, _CHUNK):
        last = min(first + _CHUNK, count)
        pieces = [
            padded[:, reach - delay + first * width : reach - delay + last * width]
            for delay in delays.tolist()
        ]
        stacked = np.concatenate(pieces).astype(np.float64).reshape(-1, last - first, width)
        yield slice(first, last), stacked.transpose(1, 0, 2)


def _moving_sum(values: NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """The sum over `span` rows before and after each row of (N, ...)."""
    total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    rows = np.arange(len(values))
    return np.asarray(total[np.minimum(rows + span + 1, len(values))] - total[np.maximum(rows - span, 0)])


def _share(part: NDArray[np.floating], whole: Floats, windows: _Windows) -> NDArray[np.float64]:
    """(N,) power of `part` over that of `whole`, at most 1."""
    powers = [
        np.square(wave, dtype=np.float64).reshape(windows.count, -1).sum(axis=1) for wave in (part, whole)
    ]
    return np.asarray(np.minimum(powers[0] / np.maximum(powers[1], np.finfo(np.float32).tiny), 1.0))


def _agreement(
    one: NDArray[np.float64], other: NDArray[np.float64], windows: _Windows
) -> NDArray[np.float64]:
    """(N,) share of the beats of two trains that both have: 2 matched / (all of one + all of the other)."""
    if not len(one) or not len(other):
        return np.zeros(windows.count)
    matched = [windows.per_window(a, _near(a, b)) for a, b in ((one, other), (other, one))]
    total = windows.per_window(one) + windows.per_window(other)
    return np.asarray(2.0 * np.minimum(*matched) / np.maximum(total, 1.0))


def _near(times: NDArray[np.float64], others: NDArray[np.float64]) -> Flags:
    """(K,) whether one of `others` lies within `SAME_BEAT_SECONDS` of each of `times` (K,)."""
    bounded = np.concatenate([[-np.inf], others, [np.inf]])
    after = np.searchsorted(bounded, times)
    nearest = np.minimum(times - bounded[after - 1], bounded[after] - times)
    return np.asarray(nearest < SAME_BEAT_SECONDS)
