"""Beats of a virtual heart: sinus rhythm, arrhythmias and AV block, with their P waves.

Sinus beats come from integral pulse frequency modulation: a beat falls wherever the integral of the rate
passes a whole number. A rhythm then changes the RR intervals and the beats' kinds.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from biofound.data.sources.keyed_draws import Draw, Floats, Sines
from biofound.data.sources.populations import Population, Range, Rhythm

MARGIN_S = 6.0
"""A heart beats this long before its segment begins and after it ends, so that filters find whole waves."""

_GRID_HZ = 4.0  # the rate is integrated in steps of this


class Beat(IntEnum):
    """Where a beat started."""

    SINUS = 0
    ATRIAL = 1  # early, with the QRS of sinus beats
    VENTRICULAR = 2
    PACED = 3


@dataclass(frozen=True, kw_only=True)
class Breathing:
    """Breaths at `rate` Hz with a wandering rhythm."""

    rate: float
    wandering: Sines
    harmonic: float

    def phase(self, times: Floats) -> Floats:
        """Breaths taken until `times` (N,) in s."""
        return self.rate * times + self.wandering(times)

    def __call__(self, times: Floats) -> Floats:
        """Depth of the breath at `times` (N,), about -1 to 1."""
        turns = 2 * np.pi * self.phase(times)
        return np.asarray((np.sin(turns) + self.harmonic * np.sin(2 * turns)) / (1 + self.harmonic))


@dataclass(frozen=True, kw_only=True)
class Beats:
    """N beats: `times`, `intervals` before each (s) and `kinds`; M P waves; the mean rate in Hz.

    `cycle` is the atria's in flutter, in s, else 0.
    """

    times: Floats
    intervals: Floats
    kinds: NDArray[np.int8]
    p_times: Floats
    rate: float
    cycle: float


_RATES: dict[Rhythm, Range] = {
    "sinus": Range(20, 240),
    "ectopic": Range(45, 130),
    "ventricular_run": Range(50, 120),
    "bigeminy": Range(45, 110),
    "pause": Range(35, 100),
    "atrial_fibrillation": Range(50, 175),
    "atrial_flutter": Range(60, 160),
    "av_block": Range(35, 75),
    "paced": Range(50, 120),
}
"""Ventricular rates at which a rhythm occurs, in beats a minute."""


def draw_breathing(draw: Draw, population: Population) -> Breathing:
    """Draw how a subject breathes."""
    rate = draw.log_uniform(population.breathing_rate) / 60
    return Breathing(rate=rate, wandering=draw.sines(60, 15, 0.06), harmonic=draw.uniform(0.0, 0.35))


def draw_beats(
    draw: Draw,
    rng: np.random.Generator,
    population: Population,
    rhythm: Rhythm,
    breathing: Breathing,
    duration_s: float,
) -> Beats:
    """Sinus beats by integral pulse frequency modulation, then what the rhythm makes of them."""
    rate = draw.log_uniform(population.heart_rate.overlap(_RATES[rhythm])) / 60
    cycle = 0.0
    if rhythm == "atrial_flutter":  # atria at 240 to 320 a minute; every second to fourth gets through
        cycle = draw.uniform(60 / 320, 60 / 240)
        rate = 1 / (cycle * min(4, max(2, round(1 / (rate * cycle)))))
    regular = rhythm in ("paced", "atrial_fibrillation", "atrial_flutter", "av_block")
    sinus = draw.uniform(*population.sinus_arrhythmia) * min(1.0, (1.1 / rate) ** 2) * (not regular)
    # Room for what makes intervals shorter; beats past the end are cut off.
    start, stop = -MARGIN_S - (1 + float(rng.random())) / rate, duration_s + MARGIN_S
    room = 1.6 if rhythm == "ventricular_run" else 1.2
    grid = np.arange(start, start + room * (stop - start), 1 / _GRID_HZ)
    modulation = draw.sines(12, 8, draw.uniform(0.003, 0.02) * (not regular), count=2)(grid)
    modulation += draw.sines(150, 30, draw.uniform(0.005, 0.05) * (rhythm != "paced"))(grid)
    modulation += sinus * breathing(grid)
    turns = np.cumsum(rate * np.exp(modulation)) / _GRID_HZ
    whole = np.interp(np.arange(math.ceil(turns[0]), turns[-1]), turns, grid)
    start, intervals = whole[0], np.diff(whole)
    intervals += 0.002 * rng.standard_normal(len(intervals)) * (not regular)
    kinds = np.zeros(len(intervals), np.int8)
    _change_rhythm(draw, rng, rhythm, intervals, kinds, rate=rate, cycle=cycle)
    pr = draw.uniform(0.12, 0.21)
    atrial, conduction = np.empty(0), np.zeros(len(intervals))
    if rhythm == "av_block":
        kind = "dissociated" if draw.chance(0.4) else "two to one" if draw.chance(0.5) else "wenckebach"
        atrial, conduction = _block(draw, kind, intervals, rate=rate)
    times = start + np.cumsum(intervals)
    times, atrial = times + conduction, atrial + start
    inside = times < stop
    times, kinds = times[inside], kinds[inside]
    intervals = np.diff(times, prepend=times[0] - intervals[0])
    if rhythm == "av_block":
        p_times = atrial[(atrial > start) & (atrial < stop)] - pr
    elif rhythm in ("atrial_fibrillation", "atrial_flutter"):
        p_times = np.empty(0)
    else:
        led = (kinds == Beat.SINUS) | (kinds == Beat.ATRIAL)
        if rhythm == "pause":  # the escape beat after sinus arrest has no P wave
            led &= intervals < 1.6 / rate
        p_times = (times - pr * np.clip(intervals, 0.3, 1.0) ** 0.4)[led]
    return Beats(times=times, intervals=intervals, kinds=kinds, p_times=p_times, rate=rate, cycle=cycle)


def _change_rhythm(
    draw: Draw,
    rng: np.random.Generator,
    rhythm: Rhythm,
    intervals: Floats,
    kinds: NDArray[np.int8],
    *,
    rate: float,
    cycle: float,
) -> None:
    """Change the RR intervals (N,) before each beat, and the beats' kinds (N,), in place."""
    count = len(intervals)
    early = draw.uniform(0.5, 0.8)
    if rhythm == "ectopic":
        atrial = draw.chance(0.35)
        hit = np.flatnonzero(rng.random(count - 1) < draw.log_uniform(Range(2, 15)) / 60 * intervals[:-1])
        hit = hit[np.diff(hit, prepend=-2) > 1]  # the usual interval follows, so no two in a row
        pause = 1.0 if atrial else 2.0 - early
        kinds[hit] = Beat.ATRIAL if atrial else Beat.VENTRICULAR
        intervals[hit + 1] *= pause
        intervals[hit] *= early + 0.05 * rng.standard_normal(len(hit))
    elif rhythm == "bigeminy":
        period = 2 if draw.chance(0.7) else 3
        hit = np.arange(period - 1, count - 1, period)
        kinds[hit] = Beat.VENTRICULAR
        intervals[hit] *= early + 0.02 * rng.standard_normal(len(hit))
        intervals[hit + 1] *= 2.0 - early
    elif rhythm == "ventricular_run":
        run = 60.0 / draw.uniform(110.0, 200.0)
        place = int(draw.uniform(3, 15))
        while place < count - 1:
            stop = min(place + int(rng.integers(3, 13)), count - 1)
            kinds[place:stop] = Beat.VENTRICULAR
            intervals[place:stop] = np.minimum(run, 0.9 * intervals[place:stop])
            intervals[place:stop] *= 1 + 0.04 * rng.standard_normal(stop - place)
            intervals[stop] *= 1.4
            place = stop + int(rng.integers(8, 30))
    elif rhythm == "pause":
        hit = np.flatnonzero(rng.random(count) < draw.uniform(2, 8) / 60 * intervals)
        intervals[hit] = np.maximum(rng.uniform(1.8, 3.2, len(hit)), 1.7 / rate)
    elif rhythm == "atrial_fibrillation":
        # Intervals hardly depend on each other, and spread with their mean (Tateno & Glass 2001,
        # https://doi.org/10.1007/BF02345439).
        spread = draw.uniform(0.14, 0.28)
        factors = np.exp(spread * rng.standard_normal(count) - spread**2 / 2)
        intervals *= np.clip(factors, 0.5, 1.9)
        np.maximum(intervals, 0.27, out=intervals)
    elif rhythm == "atrial_flutter":
        block = np.full(count, round(1 / (rate * cycle)))
        if draw.chance(0.4):
            block = np.maximum(2, block + rng.integers(-1, 2, count))
        intervals[:] = cycle * block
    elif rhythm == "paced":
        kinds[:] = Beat.PACED
        intervals[:] = 1 / rate


def _block(draw: Draw, kind: str, intervals: Floats, *, rate: float) -> tuple[Floats, Floats]:
    """Beats under AV block: changes the RR intervals (N,) in place.

    Returns:
        (M,) when P waves would have been followed by a beat, from the start of the first interval; and (N,)
        how much later than usual each beat came.
    """
    count, end = len(intervals), float(intervals.sum())
    if kind == "dissociated":
        return np.arange(draw.uniform(), end, 1 / (rate * draw.uniform(1.25, 2.6))), np.zeros(count)
    if kind == "two to one":
        times = np.cumsum(intervals)
        return np.sort(np.concatenate([times, times - intervals / 2])), np.zeros(count)
    # Wenckebach: of every n P waves the last is not conducted, and each beat before it comes later.
    waves = int(draw.uniform(3, 6))
    cycle = (waves - 1) / waves / rate
    number = np.arange(1, int(count * waves / (waves - 1)) + waves)
    place = number % waves
    conducted = place < waves - 1
    first = number[conducted][:count]
    intervals[:] = np.diff(first * cycle, prepend=0.0)
    steps = 0.10 * np.sqrt(place[conducted][:count]) * min(1.0, cycle)
    return np.asarray(number * cycle), np.asarray(steps)
