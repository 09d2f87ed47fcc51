"""Virtual hearts of a population: draw a subject's rhythm, beats, wave shapes and movements from a key.

A heart is small (beat times and a few shapes); `heart_signals.py` renders any segment of its signals at any
rate. Beats come from integral pulse frequency modulation, then a rhythm changes the RR intervals. The ECG is
a sum of Gaussian waves (McSharry et al. 2003, https://doi.org/10.1109/TBME.2003.808805), and the PPG a sum
of pulses of three waves and a run-off, as measured pulses decompose.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from biofound.data.sources.keyed_draws import Draw, Floats, Purpose, Sines, generator
from biofound.data.sources.populations import Population, Range, Rhythm
from biofound.data.sources.rhythms import MARGIN_S, Beat, Beats, Breathing, draw_beats, draw_breathing

PULSE_S = 2.0
"""Length of a PPG pulse at an RR interval of `USUAL_RR_S`, from its foot."""
USUAL_RR_S = 0.85

_PULSE_HZ, _QRS_HZ, _SLOW_WAVES_HZ = 200.0, 1000.0, 250.0
_REACH = 4.0  # a Gaussian wave ends after so many widths, at 0.0003 of its height


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A wave form that beats repeat: `samples` (n,) at `hz`, the first `start_s` from the beat; 0 beyond."""

    samples: NDArray[np.float32]
    start_s: float
    hz: float

    @property
    def stop_s(self) -> float:
        """Where it ends, in s from the beat."""
        return self.start_s + len(self.samples) / self.hz


@dataclass(frozen=True, kw_only=True)
class Fibrillation:
    """Atrial waves of fibrillation (`unsteady`) or flutter in the ECG: `amplitude` mV at `frequency` Hz."""

    amplitude: float
    frequency: float
    phase: float
    unsteady: Sines | None


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """Walking or running: `cadence` steps a second between `start_s` and `stop_s`.

    `weights` are the complex weights (5, 6) of the harmonics 1, 2, 3, 4, 6, 8 of the stride (two steps) in
    PPG, ECG, ACC_X, ACC_Y and ACC_Z, in their units.
    """

    cadence: float
    start_s: float
    stop_s: float
    wandering: Sines
    weights: NDArray[np.complex128]

    def envelope(self, times: Floats) -> Floats:
        """How much of the movement there is at `times` (N,) in s: 0 to 1."""
        rise = np.clip((times - self.start_s) / 2.0 + 0.5, 0.0, 1.0)
        return np.asarray(rise * np.clip((self.stop_s - times) / 2.0 + 0.5, 0.0, 1.0))


class Noise(IntEnum):
    """Where noise comes from: a sensor itself, a movement that all share, and each sensor's answer to it."""

    PPG = 0
    ECG = 1
    ACC_X = 2
    ACC_Y = 3
    ACC_Z = 4
    MOVEMENT = 5
    PPG_MOVED = 6
    ECG_MOVED = 7
    ACC_X_MOVED = 8
    ACC_Y_MOVED = 9
    ACC_Z_MOVED = 10


STRIDE_HARMONICS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True, kw_only=True)
class Movements:
    """Irregular movements: `centre`, `half_length` in s and `size` relative to the pulse, all (M,)."""

    centre: Floats
    half_length: Floats
    size: Floats
    ecg_share: float
    acceleration: float

    def envelope(self, times: Floats) -> Floats:
        """Their size at `times` (N,) in s."""
        total = np.zeros(len(times))
        for centre, half, size in zip(self.centre, self.half_length, self.size, strict=True):
            total += size * np.exp(-(((times - centre) / half) ** 4))
        return total


@dataclass(frozen=True, kw_only=True)
class Heart:
    """One virtual subject's segment of `duration_s`, with all that is true of it; N beats, times in s.

    Attributes:
        noise: (11,) for each `Noise` a number below 2**32 that says which noise it is.
        rhythm: what the beats follow.
        heart_rate: mean ventricular rate that the rhythm was drawn for, in Hz.
        breathing: the breaths.
        times: (N,) of the R peaks (the QRS complex's largest deflection).
        intervals: (N,) RR interval before each beat.
        kinds: (N,) int8, `Beat`.
        strength: (N,) factors on the QRS waves.
        p_times: (M,) centres of the P waves.
        p_size, p_width: their height in mV and width (sigma) in s.
        qrs, repolarisation: the QRS complex and the ST to U waves of ordinary beats in mV; the latter follow
            the root of RR.
        broad: the same two of ventricular and paced beats; None where there are none.
        feet, pulse_sizes, pulse_scales: (N,) the PPG pulses: foot, height in NU, scale in time.
        pulse, pulse_peak: one pulse from its foot, with height 1; s from foot to peak at scale 1.
        stiffness: 0 young to 1 stiff.
        perfusion: usual height of a pulse in NU.
        r_amplitude: height of the ordinary QRS in mV.
        ppg_sign: 1 or -1.
        ppg_noise, ecg_noise: deviations in NU and mV between the edges of the default pass bands.
        ppg_wander, ecg_wander: baseline wander in NU and mV.
        mains_hz, mains: hum in the ECG, mV.
        ppg_limits, ecg_limits: where the channels saturate (low, high), in NU and mV.
        gravity: (3,) in g. tilt: of the breath, in g. shock, shock_hz: of a beat, in g and Hz.
    """

    noise: NDArray[np.int64]
    duration_s: float
    rhythm: Rhythm
    heart_rate: float
    breathing: Breathing
    times: Floats
    intervals: Floats
    kinds: NDArray[np.int8]
    strength: Floats
    p_times: Floats
    p_size: float
    p_width: float
    qrs: Shape
    repolarisation: Shape
    broad: tuple[Shape, Shape] | None
    fibrillation: Fibrillation | None
    feet: Floats
    pulse_sizes: Floats
    pulse_scales: Floats
    pulse: Shape
    pulse_peak: float
    stiffness: float
    perfusion: float
    r_amplitude: float
    ppg_sign: float
    ppg_noise: float
    ecg_noise: float
    ppg_wander: float
    ecg_wander: float
    mains_hz: float
    mains: float
    ppg_limits: tuple[float, float]
    ecg_limits: tuple[float, float]
    gravity: Floats
    tilt: Floats
    shock: Floats
    shock_hz: float
    wandering: Sines
    pacing: Pacing | None
    movements: Movements


@lru_cache(maxsize=256)
def draw_heart(population: Population, key: tuple[int, int], duration_s: float, case: int = 0) -> Heart:
    """Draw a heart of `population`; the same arguments give the same heart, on any process.

    The last 256 are remembered (about 16 kB each for a minute), since windows and their truth are asked for
    one after the other.

    Args:
        population: whose ranges to draw from.
        key: the subject, two numbers below 2**64.
        duration_s: how long the heart beats.
        case: which of the subject's recordings: rates, rhythm and shapes stay, beats and noise differ.
    """
    rng = generator(key, case, Purpose.BEATS)
    draw = Draw(generator(key, 0, Purpose.HEART), rng)
    rhythm = draw.choose(population.rhythms)
    breathing = draw_breathing(draw, population)
    beats = draw_beats(draw, rng, population, rhythm, breathing, duration_s)
    times = beats.times
    wide = draw.chance(population.wide_qrs)
    r_amplitude = draw.log_uniform(population.r_amplitude)
    up = -1.0 if draw.chance(population.inverted_ecg) else 1.0
    qrs, repolarisation = _draw_waves(
        draw, up * r_amplitude, wide, odd=draw.chance(population.odd_repolarisation)
    )
    p_size = draw.uniform(0.03, 0.17) * max(r_amplitude, 0.5) * (1.0 if draw.chance(0.9) else -1.0)
    breath = breathing(times)
    stiffness = draw.uniform(*population.stiffness)
    perfusion = draw.log_uniform(population.perfusion)
    pulse, peak = _draw_pulse(draw, stiffness)
    delay = _draw_delays(draw, rng, population, times, breath)
    intervals = beats.intervals
    filling = np.clip(intervals * beats.rate, 0.3, 1.8)
    sizes = perfusion * filling ** draw.uniform(0.4, 1.0)
    sizes *= 1 + 0.5 * draw.uniform(*population.pulse_variation) * breath
    sizes *= np.exp(draw.sines(60, 12, draw.uniform(0.02, 0.2))(times))
    sizes *= np.where(beats.kinds == Beat.VENTRICULAR, draw.uniform(0.0, 0.7), 1.0)
    sizes *= 1 + draw.uniform(0.0, 0.04) * rng.standard_normal(len(times))
    wander = draw.log_uniform(population.wander)
    clipped = draw.chance(population.clipping)
    rail = draw.uniform(0.5, 0.9)
    return Heart(
        noise=rng.integers(0, 2**32, len(Noise)),
        duration_s=duration_s,
        rhythm=rhythm,
        heart_rate=beats.rate,
        breathing=breathing,
        times=times,
        intervals=intervals,
        kinds=beats.kinds,
        strength=(1 + draw.uniform(0.01, 0.1) * breath) * (1 + 0.02 * rng.standard_normal(len(times))),
        p_times=beats.p_times,
        p_size=p_size,
        p_width=draw.uniform(0.017, 0.028),
        qrs=qrs,
        repolarisation=repolarisation,
        fibrillation=_draw_fibrillation(draw, rhythm, beats, r_amplitude),
        feet=times + delay,
        pulse_sizes=np.maximum(sizes, 0.0),
        pulse_scales=np.clip(intervals / USUAL_RR_S, 0.35, 2.0) ** draw.uniform(0.4, 0.75),
        pulse=pulse,
        pulse_peak=peak,
        stiffness=stiffness,
        perfusion=perfusion,
        r_amplitude=r_amplitude,
        ppg_sign=-1.0 if draw.chance(population.inverted_ppg) else 1.0,
        ppg_noise=draw.log_uniform(population.ppg_noise),
        ecg_noise=draw.log_uniform(population.ecg_noise),
        ppg_wander=wander * perfusion * draw.uniform(0.5, 1.5),
        ecg_wander=wander * r_amplitude * draw.uniform(0.2, 0.8),
        mains_hz=50.0 if draw.chance(0.5) else 60.0,
        mains=draw.log_uniform(population.mains),
        ppg_limits=(-math.inf, rail * perfusion if clipped and draw.chance(0.5) else math.inf),
        ecg_limits=_limits(rail * r_amplitude if clipped and draw.chance(0.6) else math.inf),
        gravity=_direction(draw),
        tilt=draw.uniform(0.003, 0.02) * _direction(draw),
        shock=draw.log_uniform(Range(0.002, 0.012)) * _direction(draw),
        shock_hz=draw.uniform(5.0, 8.0),
        wandering=draw.sines(40, 1.5, 1.0, count=8),
        pacing=_draw_pacing(draw, population, beats.rate, perfusion, r_amplitude, duration_s),
        movements=_draw_movements(draw, rng, population, duration_s),
        # Last, since not every case of a subject may need it, and draws must not depend on that.
        broad=_draw_broad_waves(draw, r_amplitude, paced=rhythm == "paced")
        if np.any(beats.kinds >= Beat.VENTRICULAR)
        else None,
    )


# ---------------------------------------------------------------------------------------------------------
# Shapes


def _draw_waves(draw: Draw, r: float, wide: bool, *, odd: bool) -> tuple[Shape, Shape]:
    """QRS, ST and T of ordinary beats; the largest deflection, `r` mV, is at 0. P waves come apart."""
    sharp = draw.uniform(0.015, 0.024) if wide else draw.uniform(0.008, 0.0135)
    before, after = draw.uniform(0.0, 0.2), draw.uniform(0.05, 0.45)
    if draw.chance(0.2):  # rS: a small wave before the large one, on either side of zero
        before, after = draw.uniform(0.15, 0.8), draw.uniform(0.0, 0.15)
    elif draw.chance(0.15):  # RS: both alike
        after = draw.uniform(0.5, 0.95)
    waves = [
        (-before, -draw.uniform(2.1, 2.8) * sharp, 0.85 * sharp, 0.85 * sharp),
        (1.0, 0.0, sharp * draw.uniform(0.9, 1.3), sharp * draw.uniform(0.75, 1.0)),
        (-after, draw.uniform(1.9, 2.7) * sharp, 0.8 * sharp, sharp * draw.uniform(0.9, 1.8)),
    ]
    if draw.chance(0.6 if wide else 0.08):  # a notch or second peak
        side = draw.uniform(0.3, 0.85)
        waves.append((side, draw.uniform(1.9, 2.6) * sharp * 1.2, sharp, sharp * draw.uniform(1.0, 1.6)))
    qrs = gaussian_shape(waves, r, _QRS_HZ)
    t_width, t_centre = draw.uniform(0.028, 0.05), draw.uniform(0.26, 0.34)
    t_size, st = draw.uniform(0.1, 0.38), draw.uniform(-0.06, 0.08)
    if wide:  # discordant, as the way back follows the detour
        t_size, st = -draw.uniform(0.1, 0.45), -draw.uniform(0.0, 0.15)
    if odd:
        t_size = (draw.uniform(-0.35, 0.05), draw.uniform(0.4, 0.9), draw.uniform(0.0, 0.06))[
            int(draw.uniform(0, 3))
        ]
        st = draw.uniform(-0.25, 0.35)
    j = 3.2 * sharp
    waves = [
        (t_size, t_centre, t_width * draw.uniform(1.1, 2.2), t_width),
        (st, j + 0.05, 0.03, draw.uniform(0.05, 0.1)),
        (0.8 * st, j + 0.12, 0.05, 0.06),
    ]
    if odd and draw.chance(0.3):  # biphasic
        waves.append((-0.6 * t_size, t_centre + 2.0 * t_width, t_width, t_width))
    if draw.chance(0.2):  # U wave
        waves.append((draw.uniform(0.01, 0.05), 0.47, 0.03, 0.04))
    return qrs, gaussian_shape(waves, r, _SLOW_WAVES_HZ)


def _draw_broad_waves(draw: Draw, r_amplitude: float, *, paced: bool) -> tuple[Shape, Shape]:
    """A broad QRS that started in a ventricle, with T against it; after a spike when paced."""
    r = r_amplitude * draw.uniform(0.7, 1.5) * (1.0 if draw.chance(0.6) else -1.0)
    width = draw.uniform(0.022, 0.038)
    waves = [
        (1.0, 0.0, width, width * draw.uniform(0.9, 1.4)),
        (-draw.uniform(0.0, 0.6), draw.uniform(2.6, 3.4) * width, width, width * draw.uniform(1.0, 1.6)),
    ]
    if draw.chance(0.4):
        waves.append((draw.uniform(0.2, 0.7), -1.8 * width, 0.6 * width, 0.7 * width))
    if paced:  # monitors take most of the spike away, and the pass band spreads what is left
        waves.append((draw.uniform(-0.5, 0.5), -2.6 * width - draw.uniform(0.01, 0.03), 0.005, 0.005))
    slow = [
        (-draw.uniform(0.2, 0.5), draw.uniform(0.27, 0.36), draw.uniform(0.05, 0.09), 0.05),
        (-draw.uniform(0.0, 0.2), 0.15, 0.05, 0.06),
    ]
    return gaussian_shape(waves, r, _QRS_HZ), gaussian_shape(slow, r, _SLOW_WAVES_HZ)


def gaussian_shape(waves: Sequence[tuple[float, float, float, float]], size: float, hz: float) -> Shape:
    """A sum of Gaussian waves, each with its height relative to `size`, centre, left and right width in s."""
    height, centre, left, right = np.array(waves, np.float32).T[:, :, None]
    start_s, stop_s = float((centre - _REACH * left).min()), float((centre + _REACH * right).max())
    times = start_s + np.arange(math.ceil((stop_s - start_s) * hz), dtype=np.float32) / np.float32(hz)
    away = times - centre
    away /= np.where(away < 0, left, right)
    samples = np.float32(size) * height[:, 0] @ np.exp(np.float32(-0.5) * np.minimum(away * away, 64.0))
    return Shape(samples=samples, start_s=start_s, hz=hz)


_SINCE_FOOT = np.arange(0.0, PULSE_S, 1 / _PULSE_HZ)
_FADE = np.clip((PULSE_S - _SINCE_FOOT) / 0.5, 0.0, 1.0)


def _draw_pulse(draw: Draw, stiffness: float) -> tuple[Shape, float]:
    """One PPG pulse with height 1 from its foot, and the time of its (first) peak in s.

    The reflected wave of a young artery comes late and apart, the dicrotic wave; a stiff one sends it back
    early, on the shoulder of the systolic wave, where it makes the hump broad.
    """
    peak = 0.12 + 0.05 * stiffness + draw.uniform(0.0, 0.06)
    steepness = draw.uniform(2.4, 6.5)
    late, late_at = (1 - 0.9 * stiffness) * draw.uniform(0.1, 0.55), peak + draw.uniform(0.21, 0.34)
    early, early_at = (0.2 + 0.8 * stiffness) * draw.uniform(0.0, 0.9), peak + draw.uniform(0.07, 0.17)
    runoff = draw.uniform(0.05, 0.8)
    shape = _gamma_wave(_SINCE_FOOT / peak, steepness)
    rise = np.minimum(_SINCE_FOOT / peak, 1.0) ** 2  # else the waves' left tails would step at the foot
    shape += late * rise * _bell(_SINCE_FOOT, late_at, draw.uniform(0.04, 0.08))
    shape += early * rise * _bell(_SINCE_FOOT, early_at, draw.uniform(0.045, 0.08))
    shape += runoff * _gamma_wave(_SINCE_FOOT / (draw.uniform(1.6, 4.2) * peak), 1.6)
    shape *= _FADE
    shape /= shape.max()
    pulse = Shape(samples=shape.astype(np.float32), start_s=0.0, hz=_PULSE_HZ)
    return pulse, float(_SINCE_FOOT[np.argmax(np.diff(shape) <= 0)])


def _bell(time: Floats, centre: float, width: float) -> Floats:
    return np.asarray(np.exp(-0.5 * ((time - centre) / width) ** 2))


def _gamma_wave(time: Floats, steepness: float) -> Floats:
    """A wave from 0 that peaks with 1 at `time` 1 and falls off slower than it rose."""
    return np.asarray((time * np.exp(1.0 - time)) ** steepness)


def _draw_delays(
    draw: Draw, rng: np.random.Generator, population: Population, times: Floats, breath: Floats
) -> Floats:
    """From each R peak to its pulse's foot (N,) in s; it drifts, and never leaves the population's range."""
    usual = draw.uniform(*population.pulse_delay)
    drift = draw.sines(150, 25, draw.uniform(*population.delay_drift))(times)
    delay = usual * (1 + drift + draw.uniform(0.0, 0.03) * breath) + 0.002 * rng.standard_normal(len(times))
    return np.clip(delay, *population.pulse_delay)


def _draw_fibrillation(draw: Draw, rhythm: Rhythm, beats: Beats, r_amplitude: float) -> Fibrillation | None:
    if rhythm == "atrial_fibrillation":
        return Fibrillation(
            amplitude=draw.log_uniform(Range(0.01, 0.1)) * max(r_amplitude, 0.5),
            frequency=draw.uniform(4.5, 8.5),
            phase=draw.uniform(0, 2 * math.pi),
            unsteady=draw.sines(3.0, 0.6, 1.5),
        )
    if rhythm == "atrial_flutter":
        turns = -beats.times[0] / beats.cycle + draw.uniform()
        return Fibrillation(
            amplitude=draw.uniform(0.08, 0.25) * max(r_amplitude, 0.5),
            frequency=1 / beats.cycle,
            phase=2 * math.pi * turns,
            unsteady=None,
        )
    return None


# ---------------------------------------------------------------------------------------------------------
# Movement


def _draw_pacing(
    draw: Draw,
    population: Population,
    heart_rate: float,
    perfusion: float,
    r_amplitude: float,
    duration_s: float,
) -> Pacing | None:
    if not draw.chance(population.pacing):
        return None
    cadence = draw.log_uniform(population.cadence)
    if draw.chance(population.cadence_at_heart_rate):
        near = heart_rate if heart_rate >= population.cadence.low else 2 * heart_rate
        cadence = min(max(near * draw.uniform(0.98, 1.02), population.cadence.low), population.cadence.high)
    # Harmonics of the stride: the step (2) leads, the arm's swing (1) shows at the wrist, the foot's strike
    # spreads over the higher ones.
    usual = np.array(
        [draw.uniform(0.1, 0.7), 1.0, 0.2, draw.uniform(0.2, 0.7), draw.uniform(0.05, 0.4), 0.15]
    )
    size = [
        draw.log_uniform(population.pacing_size) * perfusion,
        draw.log_uniform(population.pacing_size) * r_amplitude / 5,
        *(draw.log_uniform(population.step_acceleration) * draw.uniform(0.4, 1.0) for _ in range(3)),
    ]
    spread = draw.array(30, 0.5, 1.5).reshape(5, 6) * np.exp(2j * math.pi * draw.array(30).reshape(5, 6))
    weights = spread * usual
    weights[0] *= 1 / np.array([1, 1, 1.5, 2, 3, 4])  # tissue and light path smooth the PPG's share
    weights *= (np.array(size) * math.sqrt(2) / np.linalg.norm(weights, axis=1))[:, None]
    start, stop = -2 * MARGIN_S, duration_s + 2 * MARGIN_S
    if draw.chance(0.25):
        start = draw.uniform(0.0, 0.7 * duration_s)
    elif draw.chance(0.25):
        stop = draw.uniform(0.3 * duration_s, duration_s)
    return Pacing(
        cadence=cadence,
        start_s=start,
        stop_s=stop,
        wandering=draw.sines(60, 4, 0.03, count=6),
        weights=weights,
    )


def _draw_movements(
    draw: Draw, rng: np.random.Generator, population: Population, duration_s: float
) -> Movements:
    rate = draw.uniform(*population.movements) / 60
    count = int(rng.poisson(rate * (duration_s + 2 * MARGIN_S)))
    low, high = population.movement_size
    return Movements(
        centre=rng.uniform(-MARGIN_S, duration_s + MARGIN_S, count),
        half_length=np.exp(rng.uniform(math.log(1.0), math.log(5.0), count)),
        size=np.exp(rng.uniform(math.log(low), math.log(high), count)),
        ecg_share=draw.uniform(0.1, 0.5),
        acceleration=draw.log_uniform(Range(0.02, 0.3)),
    )


def _limits(rail: float) -> tuple[float, float]:
    return -rail, rail


def _direction(draw: Draw) -> Floats:
    """A unit vector (3,), all directions alike."""
    height, turn = draw.uniform(-1.0, 1.0), draw.uniform(0.0, 2 * math.pi)
    level = math.sqrt(1 - height**2)
    return np.array([level * math.cos(turn), level * math.sin(turn), height])
