"""Truth of synthetic windows: rate, rhythm, breaths, beats, pulse delay and movement, as arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.sources.hearts import Heart
from biofound.data.sources.keyed_draws import Floats
from biofound.data.sources.populations import Rhythm
from biofound.data.sources.rhythms import Beat

BEATS_PER_SECOND = 4
"""Columns of `Truth.r_peaks` for each second of a window: more beats than any population has."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of B windows. Times are in s from the window's start.

    Attributes:
        heart_rate: (B,) beats a minute: the beats in the window, the intervals at its ends by their share.
        log_heart_rate: (B,) its natural logarithm.
        rhythm: (B,) a `Rhythm`, as far as the window shows it: without the early beat or the pause that gives
            the subject's rhythm its name, a window is in sinus rhythm.
        breathing_rate: (B,) breaths a minute.
        r_peaks: (B, K) times of the R peaks, NaN after the last one; K = 4 a second.
        pulse_feet, pulse_peaks: (B, K) times of the PPG pulses' feet and peaks, NaN after the last one;
            an early beat's pulse may be too small to be seen.
        pulse_delay: (B,) s from R peak to foot, the mean of the window's beats; falls as pressure rises.
        stiffness: (B,) of the arteries, 0 young to 1 stiff.
        motion: (B,) share of the window in which the subject moves, rhythmically or not.
        cadence: (B,) steps a second; NaN where nobody walks or runs for at least half of the window.
    """

    heart_rate: Floats
    log_heart_rate: Floats
    rhythm: NDArray[np.str_]
    breathing_rate: Floats
    r_peaks: Floats
    pulse_feet: Floats
    pulse_peaks: Floats
    pulse_delay: Floats
    stiffness: Floats
    motion: Floats
    cadence: Floats


def truth_of(places: Sequence[tuple[Heart, float]], *, seconds: float) -> Truth:
    """What is true of B windows of `seconds`, given the heart of each and its start in the heart's s."""
    columns = math.ceil(BEATS_PER_SECOND * seconds)
    rows = [_truth_of(heart, start_s, seconds) for heart, start_s in places]

    def numbers(name: str) -> Floats:
        return np.array([row[name] for row in rows], np.float64)

    def times(name: str) -> Floats:
        table = np.full((len(rows), columns), np.nan)
        for row, values in enumerate(rows):
            table[row, : len(values[name])] = values[name]
        return table

    return Truth(
        heart_rate=numbers("heart_rate"),
        log_heart_rate=np.log(numbers("heart_rate")),
        rhythm=np.array([row["rhythm"] for row in rows], np.str_),
        breathing_rate=numbers("breathing_rate"),
        r_peaks=times("r_peaks"),
        pulse_feet=times("pulse_feet"),
        pulse_peaks=times("pulse_peaks"),
        pulse_delay=numbers("pulse_delay"),
        stiffness=numbers("stiffness"),
        motion=numbers("motion"),
        cadence=numbers("cadence"),
    )


def _truth_of(heart: Heart, start_s: float, seconds: float) -> dict[str, Any]:
    """One window's row of `Truth`."""
    ends = np.array([start_s, start_s + seconds])
    # Beats and breaths at the window's ends, counted with their fractions.
    beats = np.diff(np.interp(ends, heart.times, np.arange(len(heart.times))))[0]
    breaths = np.diff(heart.breathing.phase(ends))[0]

    def within(times: Floats) -> slice:
        return slice(*np.searchsorted(times, ends))

    own = within(heart.times)
    peaks = heart.feet + heart.pulse_peak * heart.pulse_scales
    moments = np.linspace(start_s, start_s + seconds, 41)
    moving = heart.movements.envelope(moments) > 0.1
    pace = np.zeros(len(moments), np.bool_) if heart.pacing is None else heart.pacing.envelope(moments) > 0.5
    return {
        "heart_rate": 60 * beats / seconds,
        "rhythm": _rhythm_of(heart, own),
        "breathing_rate": 60 * breaths / seconds,
        "r_peaks": heart.times[own] - start_s,
        "pulse_feet": heart.feet[within(heart.feet)] - start_s,
        "pulse_peaks": peaks[within(peaks)] - start_s,
        "pulse_delay": np.mean((heart.feet - heart.times)[own.start : max(own.stop, own.start + 1)]),
        "stiffness": heart.stiffness,
        "motion": np.mean(moving | pace),
        "cadence": heart.pacing.cadence if heart.pacing is not None and pace.mean() >= 0.5 else np.nan,
    }


def _rhythm_of(heart: Heart, beats: slice) -> Rhythm:
    """The rhythm that these beats show."""
    kinds, intervals = heart.kinds[beats], heart.intervals[beats]
    shown: dict[Rhythm, bool] = {
        "ectopic": bool(np.any(kinds != Beat.SINUS)),
        "ventricular_run": bool(np.any(kinds == Beat.VENTRICULAR)),
        "pause": bool(np.any(intervals > 1.6 / heart.heart_rate)),
    }
    return heart.rhythm if shown.get(heart.rhythm, True) else "sinus"
