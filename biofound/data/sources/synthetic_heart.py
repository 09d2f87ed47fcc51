"""Synthetic heart: beat times, and the clean ECG, PPG and acceleration they give.

Beats come from integral pulse frequency modulation: a beat falls wherever the integral of the
instantaneous heart rate passes a whole number, so respiratory sinus arrhythmia and slow drift enter
through the rate. The ECG is a sum of Gaussian waves around each beat, as in McSharry et al. 2003
(https://doi.org/10.1109/TBME.2003.808805), with a T wave that follows the preceding RR interval as in
Bazett's formula. The PPG sums one pulse a beat (systolic wave, dicrotic wave, diastolic run-off) after a
pulse arrival time, and the accelerometer carries the small shock of every beat.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_GRID_HZ = 20.0  # slow signals (breathing, drift) are made at this rate and interpolated
_MARGIN_S = 3.0  # beats are made this long before the start and after the end, so that edges are whole
_PULSE_S = 1.7
_SHOCK_S = 0.5
_TABLE_HZ = 4000.0
_BEATS_AT_ONCE = 1024  # bounds the memory of placing waves


@dataclass(frozen=True, kw_only=True)
class Wave:
    """One Gaussian wave of the ECG: amplitude in mV, centre after the R peak in s, widths (sigma) in s.

    `with_rr` says that its place and widths grow with the square root of the preceding RR interval.
    """

    amplitude: float
    centre: float
    left: float
    right: float
    with_rr: bool = False


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """The shape of one PPG pulse, from its foot: times in s, amplitudes relative to the systolic wave."""

    systolic_peak: float
    steepness: float
    dicrotic: float
    dicrotic_peak: float
    dicrotic_width: float
    runoff: float

    def __call__(self, time: Floats) -> Floats:
        """The pulse at `time` seconds after its foot (any shape); about 1 at the systolic peak."""
        since = np.maximum(time, 0.0)
        systolic = _gamma_wave(since / self.systolic_peak, self.steepness)
        dicrotic = np.exp(-0.5 * ((since - self.dicrotic_peak) / self.dicrotic_width) ** 2)
        # Without the ramp the Gaussian's left tail would make a step at the foot.
        dicrotic *= np.minimum(since / self.systolic_peak, 1.0)
        runoff = _gamma_wave(since / (1.8 * self.systolic_peak), 1.6)
        runoff *= np.clip((_PULSE_S - since) / 0.4, 0.0, 1.0)  # ends where the pulse is cut off
        return np.asarray(systolic + self.dicrotic * dicrotic + self.runoff * runoff)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What stays with a synthetic subject from case to case. Rates in Hz, times in s, depths relative."""

    heart_rate: float
    breathing_rate: float
    sinus_arrhythmia: float
    low_frequency: float
    drift: float
    ectopic_rate: float
    waves: tuple[Wave, ...]
    ectopic_waves: tuple[Wave, ...]
    pulse: Pulse
    ecg_breathing: float
    ecg_baseline: float
    ecg_noise: float
    pulse_amplitude: float
    arrival_time: float
    ppg_breathing: float
    ppg_baseline: float
    ppg_noise: float
    heart_shock: float
    mains: float

    @property
    def r_amplitude(self) -> float:
        """The height of the R wave in mV."""
        return max(wave.amplitude for wave in self.waves)


def draw_subject(rng: np.random.Generator) -> Subject:
    """Draw a subject at rest: an adult's range of rates, intervals and wave shapes."""
    heart_rate = float(np.clip(rng.normal(74.0, 13.0), 48.0, 112.0)) / 60.0
    return Subject(
        heart_rate=heart_rate,
        breathing_rate=rng.uniform(0.17, 0.34),
        sinus_arrhythmia=rng.uniform(0.01, 0.07) * min(1.0, (1.1 / heart_rate) ** 2),
        low_frequency=rng.uniform(0.008, 0.03),
        drift=rng.uniform(0.02, 0.06),
        ectopic_rate=rng.uniform(0.2, 1.5) / 60.0 if rng.random() < 0.2 else 0.0,
        waves=_draw_waves(rng),
        ectopic_waves=_draw_ectopic_waves(rng),
        pulse=_draw_pulse(rng),
        ecg_breathing=rng.uniform(0.02, 0.10),
        ecg_baseline=rng.uniform(0.01, 0.06),
        ecg_noise=rng.uniform(0.003, 0.012),
        pulse_amplitude=rng.uniform(0.12, 0.35),
        arrival_time=rng.uniform(0.17, 0.26),
        ppg_breathing=rng.uniform(0.03, 0.15),
        ppg_baseline=rng.uniform(0.02, 0.11),
        ppg_noise=rng.uniform(0.002, 0.006),
        heart_shock=rng.uniform(0.003, 0.010),
        mains=float(rng.choice([50.0, 60.0])),
    )


def _draw_waves(rng: np.random.Generator) -> tuple[Wave, ...]:
    r = rng.uniform(0.6, 1.7)
    sharp = rng.uniform(0.008, 0.013)
    before = rng.uniform(0.12, 0.17)
    t_width = rng.uniform(0.030, 0.045)
    t_sign = -0.5 if rng.random() < 0.08 else 1.0
    waves = [
        Wave(
            amplitude=r * rng.uniform(0.07, 0.16),
            centre=-before,
            left=rng.uniform(0.017, 0.026),
            right=rng.uniform(0.015, 0.022),
        ),
        Wave(
            amplitude=-r * rng.uniform(0.02, 0.16),
            centre=-rng.uniform(2.2, 2.8) * sharp,
            left=sharp * 0.8,
            right=sharp * 0.8,
        ),
        Wave(amplitude=r, centre=0.0, left=sharp, right=sharp),
        Wave(
            amplitude=-r * rng.uniform(0.05, 0.35),
            centre=rng.uniform(2.2, 2.9) * sharp,
            left=sharp * 0.9,
            right=sharp * rng.uniform(1.0, 1.5),
        ),
        Wave(
            amplitude=t_sign * r * rng.uniform(0.14, 0.34),
            centre=rng.uniform(0.27, 0.33),
            left=t_width * rng.uniform(1.2, 1.6),
            right=t_width,
            with_rr=True,
        ),
    ]
    st_level = r * rng.uniform(-0.03, 0.05)
    waves.append(Wave(amplitude=st_level, centre=0.13, left=0.04, right=0.06, with_rr=True))
    if rng.random() < 0.25:  # a U wave, or a notch after S as in incomplete bundle branch block
        waves.append(
            Wave(amplitude=r * rng.uniform(0.02, 0.05), centre=0.48, left=0.03, right=0.04, with_rr=True)
        )
    if rng.random() < 0.15:
        waves.append(Wave(amplitude=r * rng.uniform(0.08, 0.25), centre=5.0 * sharp, left=sharp, right=sharp))
    return tuple(waves)


def _draw_ectopic_waves(rng: np.random.Generator) -> tuple[Wave, ...]:
    """A ventricular beat: no P wave, a broad QRS, a T wave against it."""
    r = rng.uniform(0.9, 1.8)
    return (
        Wave(amplitude=r, centre=0.0, left=0.026, right=0.032),
        Wave(amplitude=-0.45 * r, centre=0.10, left=0.03, right=0.04),
        Wave(amplitude=-0.35 * r, centre=0.28, left=0.06, right=0.05),
    )


def _draw_pulse(rng: np.random.Generator) -> Pulse:
    systolic_peak = rng.uniform(0.14, 0.21)
    return Pulse(
        systolic_peak=systolic_peak,
        steepness=rng.uniform(2.6, 4.2),
        dicrotic=rng.uniform(0.08, 0.45),
        dicrotic_peak=systolic_peak + rng.uniform(0.20, 0.27),
        dicrotic_width=rng.uniform(0.045, 0.075),
        runoff=rng.uniform(0.12, 0.42),
    )


@dataclass(frozen=True, kw_only=True)
class Heartbeats:
    """A case's beats and slow rhythms, from which every channel is made.

    `times` (N,) of the R peaks in s, `intervals` (N,) the RR interval before each in s, `ectopic` (N,);
    `grid` (G,) in s and on it `breathing` (about -1 to 1) and `vasomotion` (a factor around 1).
    """

    times: Floats
    intervals: Floats
    ectopic: NDArray[np.bool_]
    grid: Floats
    breathing: Floats
    vasomotion: Floats

    def breath_at(self, times: Floats) -> Floats:
        """The breathing signal at `times` in s."""
        return np.interp(times, self.grid, self.breathing)


def draw_heartbeats(rng: np.random.Generator, subject: Subject, *, duration_s: float) -> Heartbeats:
    """Draw a case's beats over `duration_s` seconds and a margin on either side."""
    grid = np.arange(-_MARGIN_S, duration_s + _MARGIN_S + 1 / _GRID_HZ, 1 / _GRID_HZ)
    breathing_rate = subject.breathing_rate * (1.0 + 0.12 * _slow_noise(rng, grid, period_s=25.0))
    breath = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.cumsum(breathing_rate) / _GRID_HZ
    depth = 1.0 + 0.25 * np.clip(_slow_noise(rng, grid, period_s=15.0), -2, 2)
    breathing = depth * (np.sin(breath) + 0.2 * np.sin(2 * breath)) / 1.1
    mayer = np.sin(2 * np.pi * 0.1 * grid + 1.5 * _slow_noise(rng, grid, period_s=30.0))
    modulation = (
        subject.sinus_arrhythmia * breathing
        + subject.low_frequency * mayer
        + subject.drift * np.clip(_slow_noise(rng, grid, period_s=60.0), -2.5, 2.5)
    )
    case_rate = subject.heart_rate * rng.uniform(0.94, 1.06)
    turns = rng.random() + np.cumsum(case_rate * np.exp(modulation)) / _GRID_HZ
    times = np.interp(np.arange(np.ceil(turns[0]), turns[-1]), turns, grid)
    times, ectopic = _make_ectopic(rng, times + rng.normal(0, 0.002, len(times)), subject.ectopic_rate)
    vasomotion = np.exp(0.18 * np.clip(_slow_noise(rng, grid, period_s=40.0), -2.5, 2.5))
    intervals = np.diff(times, prepend=times[0] - (times[1] - times[0]))
    return Heartbeats(
        times=times,
        intervals=intervals,
        ectopic=ectopic,
        grid=grid,
        breathing=breathing,
        vasomotion=vasomotion,
    )


def _make_ectopic(rng: np.random.Generator, times: Floats, rate: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Turn beats into premature ones at `rate` per second; the next stays, which is the full pause."""
    rr = np.diff(times, append=times[-1] + 1.0)
    ectopic = rng.random(len(times)) < rate * rr
    early = rng.uniform(0.25, 0.4, len(times))
    ectopic[:2] = False
    ectopic[1:] &= ~ectopic[:-1]
    return np.where(ectopic, times - early * rr, times), ectopic


def ecg_of(
    rng: np.random.Generator, subject: Subject, beats: Heartbeats, *, samples: int, sfreq: float
) -> Floats:
    """The clean ECG (T,) in mV, T = `samples` at `sfreq` Hz, with breathing and the electrodes' own noise."""
    signal = _slow_part(rng, beats, subject.ecg_baseline, subject.ecg_baseline, samples=samples, sfreq=sfreq)
    amplitude = 1.0 + subject.ecg_breathing * beats.breath_at(beats.times)
    amplitude *= rng.normal(1.0, 0.015, len(beats.times))
    # Bazett: QT grows with the root of RR; the limits keep a pause or a couplet from tearing the T wave off.
    stretch = np.sqrt(np.clip(beats.intervals, 0.4, 1.3))
    for waves, chosen in ((subject.waves, ~beats.ectopic), (subject.ectopic_waves, beats.ectopic)):
        for wave in waves:
            scale = stretch[chosen] if wave.with_rr else np.ones(int(chosen.sum()))
            reach = 4.0 * max(wave.left, wave.right)
            _add_events(
                signal,
                times=beats.times[chosen] + wave.centre * scale,
                amplitudes=wave.amplitude * amplitude[chosen],
                scales=scale,
                shape=_gaussian(wave.left, wave.right),
                start_s=-reach,
                stop_s=reach,
                sfreq=sfreq,
            )
    signal += subject.ecg_noise * rng.standard_normal(samples, dtype=np.float32)
    return signal


def ppg_of(
    rng: np.random.Generator, subject: Subject, beats: Heartbeats, *, samples: int, sfreq: float
) -> Floats:
    """The clean PPG (T,) in arbitrary units around 0.5, T = `samples` at `sfreq` Hz."""
    size = subject.pulse_amplitude
    signal = _slow_part(
        rng, beats, size * subject.ppg_baseline, size * subject.ppg_baseline, samples=samples, sfreq=sfreq
    )
    breath = beats.breath_at(beats.times)
    filling = np.clip(beats.intervals / np.median(beats.intervals), 0.4, 1.7)
    amplitudes = size * np.interp(beats.times, beats.grid, beats.vasomotion) * filling**0.8
    amplitudes *= (1.0 + subject.ppg_breathing * breath) * np.where(beats.ectopic, 0.6, 1.0)
    amplitudes *= rng.normal(1.0, 0.01, len(breath))
    arrival = subject.arrival_time * rng.uniform(0.96, 1.04) * (1.0 + 0.02 * breath)
    _add_events(
        signal,
        times=beats.times + arrival + rng.normal(0, 0.0015, len(breath)),
        amplitudes=amplitudes,
        scales=np.clip(beats.intervals / 0.85, 0.5, 1.5) ** 0.45,
        shape=subject.pulse,
        start_s=0.0,
        stop_s=_PULSE_S,
        sfreq=sfreq,
    )
    # The pulses' own mean would make the level follow the heart rate; a pulse oximeter takes it away.
    signal += 0.5 - 0.5 * size
    signal += size * subject.ppg_noise * rng.standard_normal(samples, dtype=np.float32)
    return signal


def acceleration_of(
    rng: np.random.Generator, subject: Subject, beats: Heartbeats, *, samples: int, sfreq: float
) -> Floats:
    """The acceleration at rest (3, T) in g: gravity in a posture that shifts slowly, breath, beats, noise."""
    gravity = _unit_vector(rng)
    tilt = np.stack([np.interp(_clock(samples, sfreq), beats.grid, _posture(rng, beats)) for _ in range(3)])
    axes = gravity[:, None] + tilt
    axes /= np.linalg.norm(axes, axis=0)
    shock = np.zeros(samples)
    frequency = rng.uniform(5.0, 8.0)
    _add_events(
        shock,
        times=beats.times + 0.04,
        amplitudes=np.full(len(beats.times), subject.heart_shock),
        scales=np.ones(len(beats.times)),
        shape=lambda time: np.sin(2 * np.pi * frequency * time) * np.exp(-time / 0.08),
        start_s=0.0,
        stop_s=_SHOCK_S,
        sfreq=sfreq,
    )
    noise = 0.002 * rng.standard_normal((3, samples))
    return np.asarray(axes + _unit_vector(rng)[:, None] * shock + noise)


def _posture(rng: np.random.Generator, beats: Heartbeats) -> Floats:
    breath = rng.uniform(0.005, 0.02) * beats.breathing
    return np.asarray(0.08 * _slow_noise(rng, beats.grid, period_s=90.0) + breath)


def _slow_part(
    rng: np.random.Generator, beats: Heartbeats, drift: float, breath: float, *, samples: int, sfreq: float
) -> Floats:
    slow = drift * _slow_noise(rng, beats.grid, period_s=8.0) + breath * beats.breathing
    return np.interp(_clock(samples, sfreq), beats.grid, slow)


def _slow_noise(rng: np.random.Generator, grid: Floats, *, period_s: float) -> Floats:
    """Smooth noise on `grid` with unit variance and nothing faster than about 1 / `period_s` Hz."""
    knots = np.arange(grid[0] - period_s, grid[-1] + 2 * period_s, period_s / 2)
    values = rng.standard_normal(len(knots))
    place = (grid - knots[0]) / (period_s / 2)
    left = place.astype(np.int64)
    blend = 0.5 - 0.5 * np.cos(np.pi * (place - left))  # smooth at the knots, unlike straight lines
    mixed = values[left] * (1 - blend) + values[left + 1] * blend
    return np.asarray(mixed / np.sqrt((1 - blend) ** 2 + blend**2))


def _add_events(
    signal: Floats,
    *,
    times: Floats,
    amplitudes: Floats,
    scales: Floats,
    shape: Callable[[Floats], Floats],
    start_s: float,
    stop_s: float,
    sfreq: float,
) -> None:
    """Add to `signal` (T,) at each of `times` a copy of `shape`, stretched in time by `scales`.

    The shape is evaluated once, on a fine table over [start_s, stop_s]; each copy interpolates in it
    only where it is not zero, so the cost is that of the samples touched.
    """
    if len(times) == 0:
        return
    table = shape(np.arange(start_s, stop_s + 2 / _TABLE_HZ, 1 / _TABLE_HZ))
    table[-3:] = 0.0
    offsets = np.arange(int(np.ceil((stop_s - start_s) * float(scales.max()) * sfreq)) + 1)
    for begin in range(0, len(times), _BEATS_AT_ONCE):
        some = slice(begin, begin + _BEATS_AT_ONCE)
        scale = scales[some, None]
        first = np.ceil((times[some, None] + start_s * scale) * sfreq).astype(np.int64)
        index = first + offsets
        place = ((index / sfreq - times[some, None]) / scale - start_s) * _TABLE_HZ
        np.clip(place, 0, len(table) - 2, out=place)
        left = place.astype(np.int64)
        low = table[left]
        values = amplitudes[some, None] * (low + (place - left) * (table[left + 1] - low))
        inside = (index >= 0) & (index < len(signal))
        base = max(int(index.min()), 0)
        added = np.bincount((index - base)[inside], weights=values[inside])
        signal[base : base + len(added)] += added


def _gaussian(left: float, right: float) -> Callable[[Floats], Floats]:
    def shape(time: Floats) -> Floats:
        return np.exp(-0.5 * (time / np.where(time < 0, left, right)) ** 2)

    return shape


def _gamma_wave(time: Floats, steepness: float) -> Floats:
    """A wave from 0 that peaks with 1 at `time` 1 and falls off slower than it rose."""
    return np.asarray((time * np.exp(1.0 - time)) ** steepness)


def _unit_vector(rng: np.random.Generator) -> Floats:
    vector = rng.standard_normal(3)
    return np.asarray(vector / np.linalg.norm(vector))


def _clock(samples: int, sfreq: float) -> Floats:
    return np.arange(samples) / sfreq
