"""PPG, ECG and acceleration of a virtual heart: render any segment at any rate, in physical units.

Everything is evaluated for all beats at once, and only for the samples asked for; a sample is the same
whichever segment it is rendered in.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import signal as scipy_signal

from biofound.data.sources.hearts import PULSE_S, STRIDE_HARMONICS, Heart, Noise, Shape, gaussian_shape
from biofound.data.sources.keyed_draws import Floats
from biofound.data.sources.rhythms import MARGIN_S, Beat

SIGNALS = ("PPG", "ECG", "ACC_X", "ACC_Y", "ACC_Z")
"""What can be rendered: the PPG in NU, the ECG in mV, acceleration in g."""

_SLOW_HZ = 10.0  # breathing and drift are evaluated at this rate and interpolated
_EVENTS_AT_ONCE = 4096  # bounds the memory of long recordings
_SHOCK_S = 0.4
_BANK = 2**20  # samples of noise that are kept ready
_NOISE_MEMORY_S = 4.0  # a filter with a corner at 0.7 Hz has forgotten what came before, to 1e-7
_OTHER_WANDER_S = 5000.0  # the ECG's wander is the PPG's at another time
_RATIO_HZ = 125.0
_ACCELERATION_NOISE = 0.003  # g, 0.5 to 10 Hz

_P_WAVE = gaussian_shape([(1.0, 0.0, 1.0, 1.0)], 1.0, hz=10.0)  # of width 1 s, to be scaled

_Colour = Literal["ppg", "ecg", "movement", "acceleration"]
_COLOURS: dict[_Colour, tuple[float, float, float, float]] = {
    "ppg": (0.5, 8.0, 0.8, 0.02),
    "ecg": (0.5, 40.0, 3.0, 0.15),  # electrodes below some Hz, muscle above
    "movement": (0.5, 8.0, 0.7, 0.0),
    "acceleration": (0.5, 10.0, 0.0, 1.0),
}
"""The band in Hz in which noise has unit deviation; its corner in Hz (0: white); the share of white noise."""


def render(
    heart: Heart, signals: Sequence[str], *, first: int, samples: int, sfreq: float
) -> NDArray[np.float64]:
    """Signals of a heart, unfiltered, as (C, T) in their units.

    Args:
        heart: whose.
        signals: C of `SIGNALS`.
        first: sample at which to start, counted from the start of the heart's segment; it may be negative.
        samples: T.
        sfreq: in Hz.

    Raises:
        ValueError: when the segment leaves the heart's by more than its margin, or a signal is unknown.
    """
    start_s, stop_s = first / sfreq, (first + samples) / sfreq
    if start_s < -MARGIN_S or stop_s > heart.duration_s + MARGIN_S:
        raise ValueError(
            f"expected a segment within {-MARGIN_S:g} to {heart.duration_s + MARGIN_S:g} s, "
            f"got {start_s:g} to {stop_s:g} s"
        )
    if unknown := set(signals) - set(SIGNALS):
        raise ValueError(f"expected some of {', '.join(SIGNALS)}, got {', '.join(sorted(unknown))}")
    segment = _Segment(heart, first=first, samples=samples, sfreq=sfreq)
    out = np.empty((len(signals), samples))
    for row, name in enumerate(signals):
        if name == "PPG":
            out[row] = segment.ppg()
        elif name == "ECG":
            out[row] = segment.ecg()
        else:
            out[row] = segment.acceleration(SIGNALS.index(name) - 2)
    return out


def pulse_to_disturbance(heart: Heart, *, start_s: float, seconds: float) -> float:
    """Power of a heart's pulses over that of all else in its PPG (steps, movements, noise, clipping).

    Between 0.5 and 8 Hz, in the window of `seconds` from `start_s` on; 1 where both are as strong.
    """
    samples = round(seconds * _RATIO_HZ)
    segment = _Segment(heart, first=round(start_s * _RATIO_HZ), samples=samples, sfreq=_RATIO_HZ)
    pulses = heart.ppg_sign * segment.pulses()
    frequency = np.fft.rfftfreq(samples, 1 / _RATIO_HZ)
    in_band = (frequency >= 0.5) & (frequency <= 8.0)
    taper = np.hanning(samples)
    pulse, rest = (
        float(np.sum(np.abs(np.fft.rfft(taper * (part - part.mean())))[in_band] ** 2))
        for part in (pulses, segment.ppg() - pulses)
    )
    return pulse / max(rest, 1e-12 * pulse, 1e-30)


class _Segment:
    """A segment while it is rendered: its clock, and what several signals share."""

    def __init__(self, heart: Heart, *, first: int, samples: int, sfreq: float) -> None:
        self.heart, self.first, self.samples, self.sfreq = heart, first, samples, sfreq
        self.start_s, self.stop_s = first / sfreq, (first + samples) / sfreq
        self.times = np.arange(first, first + samples) / sfreq
        steps = math.floor(self.start_s * _SLOW_HZ), math.ceil(self.stop_s * _SLOW_HZ)
        self.slow_times = np.arange(steps[0], steps[1] + 1) / _SLOW_HZ
        envelope = heart.movements.envelope(self.slow_times)
        self.movement = self._smooth(envelope) if envelope.max(initial=0.0) > 1e-3 else None
        self._breath = heart.breathing(self.slow_times)
        self._shared_movement: NDArray[np.float32] | None = None
        self._strides = self._draw_strides()

    def ppg(self) -> Floats:
        heart = self.heart
        signal = self.pulses()
        signal += self._smooth(heart.ppg_wander * (heart.wandering(self.slow_times) + self._breath))
        signal *= heart.ppg_sign
        signal += self._pacing(0)
        if self.movement is not None:
            own = self._noise(Noise.PPG_MOVED, "movement")
            signal += heart.perfusion * self.movement * (self._moved() + own) * math.sqrt(0.5)
        signal += heart.ppg_noise * self._noise(Noise.PPG, "ppg")
        return np.clip(signal, *heart.ppg_limits)

    def ecg(self) -> Floats:
        heart = self.heart
        signal = self._waves()
        signal += self._smooth(
            heart.ecg_wander * (heart.wandering(self.slow_times + _OTHER_WANDER_S) + self._breath)
        )
        if heart.fibrillation is not None:
            signal += self._atrial_waves()
        turns = heart.mains_hz * self.times
        signal += heart.mains * np.sin(2 * np.pi * (turns - np.rint(turns)).astype(np.float32))
        signal += self._pacing(1)
        if self.movement is not None:
            size = heart.movements.ecg_share * heart.r_amplitude * self.movement
            own = self._noise(Noise.ECG_MOVED, "ecg")
            signal += size * (0.6 * self._moved() + 0.4 * own)
        signal += heart.ecg_noise * self._noise(Noise.ECG, "ecg")
        return np.clip(signal, *heart.ecg_limits)

    def acceleration(self, axis: int) -> Floats:
        heart = self.heart
        signal = self._smooth(heart.gravity[axis] + heart.tilt[axis] * self._breath)
        signal += heart.shock[axis] * self._shocks()
        signal += self._pacing(2 + axis)
        if self.movement is not None:
            own = self._noise(Noise(Noise.ACC_X_MOVED + axis), "movement")
            signal += heart.movements.acceleration * self.movement * (self._moved() + own)
        signal += _ACCELERATION_NOISE * self._noise(Noise(Noise.ACC_X + axis), "acceleration")
        return signal

    # -----------------------------------------------------------------------------------------------------
    # Parts

    def pulses(self) -> Floats:
        """The sum of the pulses (T,), which point up."""
        heart, total = self.heart, np.zeros(self.samples)
        some = self._near(heart.feet, before_s=PULSE_S * float(heart.pulse_scales.max()))
        self._add_copies(
            total, heart.pulse, heart.feet[some], heart.pulse_sizes[some], heart.pulse_scales[some]
        )
        return total

    def _waves(self) -> Floats:
        """The sum of the ECG's waves (T,)."""
        heart, total = self.heart, np.zeros(self.samples)
        p_times = heart.p_times[self._near(heart.p_times, before_s=1.0)]
        same = np.ones(len(p_times))
        self._add_copies(total, _P_WAVE, p_times, heart.p_size * same, heart.p_width * same)
        near = self._near(heart.times, before_s=1.0)
        times, sizes = heart.times[near], heart.strength[near]
        same, root = np.ones(len(times)), np.sqrt(np.clip(heart.intervals[near], 0.28, 1.3))
        broad = heart.kinds[near] >= Beat.VENTRICULAR
        for those, shapes in ((~broad, (heart.qrs, heart.repolarisation)), (broad, heart.broad)):
            if shapes is not None:
                qrs, repolarisation = shapes
                self._add_copies(total, qrs, times[those], sizes[those], same[those])
                self._add_copies(total, repolarisation, times[those], sizes[those], root[those])
        return total

    def _near(self, times: Floats, *, before_s: float) -> slice:
        """Those of `times` (N,), in order, between `before_s` before the segment and a second after it."""
        return slice(*np.searchsorted(times, [self.start_s - before_s, self.stop_s + 1.0]))

    def _add_copies(self, total: Floats, shape: Shape, times: Floats, sizes: Floats, scales: Floats) -> None:
        """Add E copies of a shape at `times`, `sizes` as high and `scales` as long; arguments (E,), in s.

        Each copy interpolates in the shape's samples, at the segment's own clock.
        """
        if len(times) == 0:
            return
        sfreq = self.sfreq
        table = np.append(shape.samples, np.float32(0.0))
        last = np.float32(len(table) - 1.001)
        length = (shape.stop_s - shape.start_s) * float(scales.max())
        offsets = np.arange(math.ceil(length * sfreq) + 1, dtype=np.float32)
        for some in _slices(len(times)):
            begin = (times[some] + shape.start_s * scales[some]) * sfreq - self.first
            index = np.ceil(begin).astype(np.int64)
            step = (shape.hz / sfreq / scales[some]).astype(np.float32)
            place = (offsets + (index - begin).astype(np.float32)[:, None]) * step[:, None]
            np.minimum(place, last, out=place)
            left = place.astype(np.int32)
            place -= left
            values = table[left]
            values += place * (table[left + 1] - values)
            values *= sizes[some].astype(np.float32)[:, None]
            _scatter(total, index, values)

    def _atrial_waves(self) -> Floats:
        waves = self.heart.fibrillation
        assert waves is not None
        turns = 2 * np.pi * waves.frequency * self.times + waves.phase
        if waves.unsteady is None:  # flutter: a sawtooth
            return np.asarray(
                waves.amplitude * (np.sin(turns) + 0.45 * np.sin(2 * turns) + 0.2 * np.sin(3 * turns))
            )
        slow = waves.unsteady(self.slow_times)
        turns += self._smooth(slow)
        size = waves.amplitude * self._smooth(1 + 0.25 * slow)
        return np.asarray(size * (np.sin(turns) + 0.35 * np.sin(2 * turns + 1.0)))

    def _shocks(self) -> Floats:
        """The recoil (T,) after each beat, a damped oscillation that starts at 1."""
        heart, sfreq = self.heart, self.sfreq
        total = np.zeros(self.samples)
        chosen = heart.times[self._near(heart.times, before_s=1.0)] + 0.04
        offsets = np.arange(math.ceil(_SHOCK_S * sfreq))
        for some in _slices(len(chosen)):
            begin = chosen[some] * sfreq - self.first
            index = np.ceil(begin).astype(np.int64)
            since = (offsets + (index - begin)[:, None]) / sfreq
            _scatter(total, index, np.sin(2 * np.pi * heart.shock_hz * since) * np.exp(-since / 0.08))
        return total

    def _draw_strides(self) -> NDArray[np.complex64] | None:
        """exp(i phase) of the stride (T,); None at rest."""
        pacing = self.heart.pacing
        if pacing is None or pacing.envelope(self.slow_times).max() == 0:
            return None
        turns = pacing.cadence / 2 * self.slow_times + pacing.wandering(self.slow_times)
        turns = self._smooth(turns)
        angles = 2 * np.pi * (turns - np.rint(turns)).astype(np.float32)
        strides = np.empty(self.samples, np.complex64)
        strides.real, strides.imag = np.cos(angles), np.sin(angles)
        return strides

    def _pacing(self, row: int) -> Floats | float:
        """What steps add to a signal (T,)."""
        pacing = self.heart.pacing
        if pacing is None or self._strides is None:
            return 0.0
        uneven = 1 + 0.15 * self.heart.wandering(self.slow_times - _OTHER_WANDER_S)
        total, power, reached = np.zeros(self.samples), self._strides, 1
        for harmonic, weight in zip(STRIDE_HARMONICS, pacing.weights[row].tolist(), strict=True):
            while reached < harmonic:
                power, reached = power * self._strides, reached + 1
            total += weight.real * power.real - weight.imag * power.imag
        # No two steps are alike.
        total += 0.2 * np.linalg.norm(pacing.weights[row]) * self._moved()
        return np.asarray(total * self._smooth(pacing.envelope(self.slow_times) * uneven))

    def _moved(self) -> NDArray[np.float32]:
        """The movement (T,) that all signals share, of unit deviation."""
        if self._shared_movement is None:
            self._shared_movement = self._noise(Noise.MOVEMENT, "movement")
        return self._shared_movement

    def _noise(self, source: Noise, colour: _Colour) -> NDArray[np.float32]:
        """Noise (T,) of unit deviation within the colour's band; not to be changed in place."""
        bank = _noise_bank(colour, self.sfreq)
        start = (int(self.heart.noise[source]) + self.first) % len(bank)
        if start + self.samples <= len(bank):
            return bank[start : start + self.samples]
        return np.take(bank, np.arange(start, start + self.samples), mode="wrap")

    def _smooth(self, slow: Floats) -> Floats:
        """A slow signal, given at `slow_times`, at every sample (T,)."""
        return np.interp(self.times, self.slow_times, slow)


@lru_cache(maxsize=16)
def _noise_bank(colour: _Colour, sfreq: float) -> NDArray[np.float32]:
    """A ring of noise (N,) of unit deviation within the colour's band, of which hearts take pieces.

    Two and a third hours at 125 Hz: to draw and filter noise for each window would cost half as much again.
    """
    low, high, corner, white = _COLOURS[colour]
    if corner == 0:
        numerator, denominator = np.ones(1), np.ones(1)
    else:  # falls by 6 dB an octave above the corner, down to the share that stays white
        pole = math.exp(-2 * math.pi * corner / sfreq)
        numerator = np.array([1 - pole + white, -white * pole])
        denominator = np.array([1.0, -pole])
    frequency = np.linspace(low, min(high, 0.5 * sfreq), 512)
    response = scipy_signal.freqz(numerator, denominator, frequency, fs=sfreq)[1]
    # Unit white noise has the power 2 / sfreq in each hertz.
    deviation = math.sqrt(float(np.mean(np.abs(response) ** 2)) * (high - low) * 2 / sfreq)
    drawn = np.random.default_rng(list(_COLOURS).index(colour)).standard_normal(_BANK, dtype=np.float32)
    before = round(_NOISE_MEMORY_S * sfreq)
    filtered = scipy_signal.lfilter(numerator / deviation, denominator, np.append(drawn[-before:], drawn))
    bank: NDArray[np.float32] = filtered[before:].astype(np.float32)
    bank.flags.writeable = False
    return bank


def _scatter(total: Floats, index: NDArray[np.int64], values: NDArray[np.floating]) -> None:
    """Add rows `values` (E, n) to `total` (T,), row e from sample `index[e]` on; none outside."""
    width = values.shape[1]
    inside = (index > -width) & (index < len(total))
    if not inside.all():
        index, values = index[inside], values[inside]
    if len(index) == 0:
        return
    base = max(-width, int(index.min()))
    place = (index - base)[:, None] + np.arange(width)
    added = np.bincount(place.ravel(), weights=values.ravel())
    start, stop = max(base, 0), min(base + len(added), len(total))
    total[start:stop] += added[start - base : stop - base]


def _slices(count: int) -> list[slice]:
    return [slice(begin, begin + _EVENTS_AT_ONCE) for begin in range(0, count, _EVENTS_AT_ONCE)]
