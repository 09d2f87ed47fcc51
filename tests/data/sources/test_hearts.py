"""Do virtual hearts beat as their rhythm says, stay within their population, and move as they should?"""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.signal import welch

from biofound.data.sources.heart_signals import SIGNALS, render
from biofound.data.sources.heart_truth import truth_of
from biofound.data.sources.hearts import draw_heart
from biofound.data.sources.keyed_draws import Draw, Purpose, generator
from biofound.data.sources.populations import (
    EXERCISE,
    ICU,
    POPULATIONS,
    REST,
    RHYTHMS,
    Range,
    population_named,
)
from biofound.data.sources.rhythms import Beat
from biofound.errors import SettingsError

HEARTS = 150


def hearts(population, count=HEARTS, duration_s=60.0, **changes):
    changed = replace(population, **changes)
    return [draw_heart(changed, (7, number), duration_s) for number in range(count)]


def of_rhythm(rhythm, count=40, population=ICU):
    return hearts(population, count, rhythms=((rhythm, 1.0),))


def quiet(population, **changes):
    """The same population without noise, wander and movement."""
    none = Range(0.0, 0.0)
    tiny = Range(1e-9, 1e-9)
    return replace(
        population, ppg_noise=tiny, ecg_noise=tiny, wander=tiny, mains=tiny, movements=none, **changes
    )


# ---------------------------------------------------------------------------------------------------------
# Populations


@pytest.mark.parametrize("population", POPULATIONS.values(), ids=lambda each: each.name)
def test_every_heart_stays_within_its_population(population):
    for heart in hearts(population):
        assert population.heart_rate.low <= 60 * heart.heart_rate <= population.heart_rate.high
        assert population.breathing_rate.low <= 60 * heart.breathing.rate <= population.breathing_rate.high
        delay = heart.feet - heart.times
        assert population.pulse_delay.low - 1e-9 <= delay.min()
        assert delay.max() <= population.pulse_delay.high + 1e-9
        for name in ("stiffness", "perfusion", "r_amplitude", "ppg_noise", "ecg_noise", "mains"):
            low, high = getattr(population, name)
            assert low <= getattr(heart, name) <= high
        assert heart.rhythm in dict(population.rhythms)
        assert np.all(np.diff(heart.times) > 0.2)  # 300 a minute: no heart beats faster
        assert heart.times[0] < 0 and heart.times[-1] > heart.duration_s
        if heart.pacing is not None:
            assert population.cadence.low <= heart.pacing.cadence <= population.cadence.high


def test_heart_rates_are_log_uniform_over_the_whole_range():
    rates = [60 * heart.heart_rate for heart in hearts(ICU, 600, rhythms=(("sinus", 1.0),))]
    octaves = np.log(np.array(rates) / 35) / np.log(190 / 35)
    assert np.allclose(np.quantile(octaves, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.06)


def test_the_rhythms_of_intensive_care_come_in_their_shares():
    drawn = [heart.rhythm for heart in hearts(ICU, 1000)]
    assert set(drawn) == set(RHYTHMS)
    for rhythm, share in ICU.rhythms:
        assert drawn.count(rhythm) / 1000 == pytest.approx(share, abs=0.045)


def test_every_value_of_a_population_says_where_it_comes_from():
    import inspect

    source = inspect.getsource(type(REST))
    for field in fields(REST):
        if field.name != "name":
            after = source.split(f"    {field.name}: ")[1].split("\n")[1]
            assert after.strip().startswith('"""'), field.name


def test_an_unknown_population_is_refused_by_name():
    with pytest.raises(SettingsError, match="'marathon' is unknown; expected one of rest, icu, exercise"):
        population_named("marathon")


def test_rhythm_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="must add up to 1"):
        replace(REST, rhythms=(("sinus", 0.5),))


def test_a_range_upside_down_is_refused():
    with pytest.raises(ValueError, match="heart_rate needs low <= high"):
        replace(REST, heart_rate=Range(100, 50))


# ---------------------------------------------------------------------------------------------------------
# Rhythms


def variation(heart):
    return np.std(heart.intervals) / np.mean(heart.intervals)


def test_atrial_fibrillation_is_irregular_without_memory_and_without_p_waves():
    memory = []
    for heart in of_rhythm("atrial_fibrillation"):
        assert 0.09 < variation(heart) < 0.4
        assert len(heart.p_times) == 0 and heart.fibrillation is not None
        memory.append(np.corrcoef(heart.intervals[:-1], heart.intervals[1:])[0, 1])
    assert abs(np.mean(memory)) < 0.15


def test_sinus_rhythm_is_regular_and_every_beat_has_its_p_wave():
    for heart in of_rhythm("sinus", population=REST):
        assert variation(heart) < 0.12
        assert len(heart.p_times) == len(heart.times)
        assert np.all((heart.times - heart.p_times > 0.08) & (heart.times - heart.p_times < 0.22))


def test_sinus_arrhythmia_follows_the_breath():
    slow = {"breathing_rate": Range(6, 9), "heart_rate": Range(60, 66), "rhythms": (("sinus", 1.0),)}
    follows = []
    for heart in hearts(REST, 30, sinus_arrhythmia=Range(0.08, 0.08), **slow):
        middle = heart.times - heart.intervals / 2
        follows.append(np.corrcoef(heart.breathing(middle), 1 / heart.intervals)[0, 1])
    assert np.median(follows) > 0.75 and min(follows) > 0.3


def test_bigeminy_has_an_early_ventricular_beat_every_second_or_third():
    for heart in of_rhythm("bigeminy"):
        early = np.flatnonzero(heart.kinds == Beat.VENTRICULAR)
        assert set(np.diff(early)) in ({2}, {3})
        inner = early[(early > 0) & (early < len(heart.times) - 1)]
        assert np.all(heart.intervals[inner] < heart.intervals[inner + 1])
        # A full pause: both together last as long as two usual beats.
        both = heart.intervals[inner] + heart.intervals[inner + 1]
        assert np.allclose(both, 2 / heart.heart_rate, rtol=0.35)


def test_ectopic_beats_are_early_and_alone():
    for heart in of_rhythm("ectopic"):
        early = np.flatnonzero(heart.kinds != Beat.SINUS)
        assert np.all(np.diff(early) > 1)
        inner = early[early > 0]
        assert np.all(heart.intervals[inner] < 0.95 * np.median(heart.intervals))


def test_ventricular_runs_are_three_or_more_fast_beats():
    for heart in of_rhythm("ventricular_run"):
        ventricular = (heart.kinds == Beat.VENTRICULAR).astype(int)
        edges = np.diff(ventricular, prepend=0)
        starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        assert len(starts) > 0
        assert all(stop - start >= 3 for start, stop in zip(starts, stops, strict=False))
        assert 105 < 60 / np.median(heart.intervals[ventricular == 1]) < 215


def test_pauses_last_and_end_without_a_p_wave():
    paused = [heart for heart in of_rhythm("pause") if heart.intervals.max() > 1.6 / heart.heart_rate]
    assert len(paused) > 25
    for heart in paused:
        assert heart.intervals.max() > 1.6
        missing = np.sum(heart.intervals >= 1.6 / heart.heart_rate)
        assert len(heart.p_times) == len(heart.times) - missing


def test_flutter_conducts_a_whole_number_of_atrial_waves():
    for heart in of_rhythm("atrial_flutter"):
        waves = heart.intervals[1:] * heart.fibrillation.frequency
        assert np.allclose(waves, np.rint(waves), atol=1e-6)
        assert set(np.rint(waves)) <= {2, 3, 4, 5}
        phase = 2 * np.pi * heart.fibrillation.frequency * heart.times + heart.fibrillation.phase
        assert np.allclose(np.exp(1j * phase), np.exp(1j * phase[0]), atol=1e-6)


def test_av_block_has_more_p_waves_than_beats():
    kinds = set()
    for heart in of_rhythm("av_block", 80):
        ratio = len(heart.p_times) / len(heart.times)
        assert ratio > 1.05
        shared = (heart.p_times[:, None] - heart.times) + 0
        lead = np.where(shared < 0, -shared, np.inf).min(axis=0)[3:-3]  # from the last P wave to each beat
        if np.ptp(lead) < 0.05:
            kinds.add("two to one")
            assert ratio == pytest.approx(2, abs=0.1)
        else:
            kinds.add("wenckebach or dissociated")
    assert len(kinds) == 2


def test_paced_hearts_beat_like_clocks_with_broad_beats():
    for heart in of_rhythm("paced"):
        assert np.all(heart.kinds == Beat.PACED) and variation(heart) < 1e-6
        assert len(heart.p_times) == 0


# ---------------------------------------------------------------------------------------------------------
# Signals


def test_the_largest_deflection_of_a_quiet_ecg_is_the_r_peak():
    population = quiet(REST, odd_repolarisation=0.0, rhythms=(("sinus", 1.0),))
    for number in range(30):
        heart = draw_heart(population, (3, number), 30.0)
        ecg = render(heart, ["ECG"], first=0, samples=7500, sfreq=250.0)[0]
        for beat in heart.times[(heart.times > 0.3) & (heart.times < 29.7)]:
            near = ecg[round(beat * 250) - 40 : round(beat * 250) + 40]
            assert abs(int(np.abs(near).argmax()) - 40) <= 3  # within 12 ms


def test_a_pulse_starts_at_its_foot_and_peaks_where_the_truth_says():
    population = quiet(REST, heart_rate=Range(45, 50), rhythms=(("sinus", 1.0),), stiffness=Range(0, 0.3))
    for number in range(20):
        heart = draw_heart(population, (4, number), 30.0)
        ppg = render(heart, ["PPG"], first=0, samples=30 * 500, sfreq=500.0)[0]
        peaks = heart.feet + heart.pulse_peak * heart.pulse_scales
        for foot, peak, size in list(zip(heart.feet, peaks, heart.pulse_sizes, strict=True))[8:-8]:
            start, top = round(foot * 500), round(peak * 500)
            assert ppg[start] == pytest.approx(ppg[start - 20 : top].min(), abs=0.05 * size)
            assert abs(int(ppg[top - 25 : top + 25].argmax()) - 25) <= 10  # within 20 ms


def test_young_arteries_have_a_dicrotic_wave_and_stiff_ones_a_shoulder():
    young, stiff = (hearts(ICU, 200, 20.0, stiffness=Range(value, value)) for value in (0.0, 1.0))

    def falls_and_rises_again(heart):
        after = np.diff(heart.pulse.samples[round(heart.pulse_peak * 200) + 4 : 140])
        return np.any(after > 0)

    def after_its_peak(heart, seconds):
        return heart.pulse.samples[round((heart.pulse_peak + seconds) * 200)]

    assert np.mean([falls_and_rises_again(heart) for heart in young]) > 0.3
    assert np.mean([falls_and_rises_again(heart) for heart in stiff]) < 0.2
    assert np.mean([after_its_peak(x, 0.08) for x in stiff]) > np.mean(
        [after_its_peak(x, 0.08) for x in young]
    )


def test_a_stretch_is_the_same_in_whatever_longer_stretch_it_is_rendered():
    for number in range(10):
        heart = draw_heart(EXERCISE, (6, number), 60.0)
        long = render(heart, SIGNALS, first=0, samples=7500, sfreq=125.0)
        short = render(heart, SIGNALS, first=3000, samples=1250, sfreq=125.0)
        assert np.allclose(long[:, 3000:4250], short, atol=1e-4 * np.abs(long).max())


def test_noise_has_the_deviation_it_names():
    population = replace(
        REST, ppg_noise=Range(0.02, 0.02), ecg_noise=Range(0.05, 0.05), movements=Range(0.0, 0.0)
    )
    heart = draw_heart(population, (8, 1), 600.0)
    still = draw_heart(quiet(population), (8, 1), 600.0)
    for name, low, high, expected in (("PPG", 0.5, 8.0, 0.02), ("ECG", 0.5, 40.0, 0.05)):
        pair = [render(each, [name], first=0, samples=75_000, sfreq=125.0)[0] for each in (heart, still)]
        frequency, power = welch(pair[0] - pair[1], fs=125.0, nperseg=2048)
        inside = (frequency >= low) & (frequency <= high) & ((frequency < 49) | (frequency > 61))
        deviation = np.sqrt(power[inside].sum() * (frequency[1] - frequency[0]))
        assert deviation == pytest.approx(expected, rel=0.1)


def test_a_stretch_beyond_the_heart_and_an_unknown_signal_are_refused():
    heart = draw_heart(REST, (1, 1), 10.0)
    with pytest.raises(ValueError, match="expected a segment within -6 to 16 s, got 8 to 18 s"):
        render(heart, ["PPG"], first=1000, samples=1250, sfreq=125.0)
    with pytest.raises(ValueError, match="got EMG"):
        render(heart, ["EMG"], first=0, samples=1250, sfreq=125.0)


# ---------------------------------------------------------------------------------------------------------
# Movement


def share_near(signal, sfreq, frequencies):
    """The share of a signal's power within 0.15 Hz of any of the frequencies."""
    frequency, power = welch(signal - signal.mean(), fs=sfreq, nperseg=2048)
    near = np.any(np.abs(frequency[:, None] - np.array(frequencies)) < 0.15, axis=1)
    return power[near & (frequency > 0.4)].sum() / power[frequency > 0.4].sum()


def test_steps_show_in_acceleration_and_ppg_at_their_cadence():
    moving = replace(quiet(EXERCISE, pacing=1.0), pacing_size=Range(1.5, 1.5))
    for number in range(12):
        heart = draw_heart(moving, (9, number), 60.0)
        if heart.pacing.start_s > 0 or heart.pacing.stop_s < 60:
            continue
        harmonics = heart.pacing.cadence / 2 * np.arange(1, 9)
        ppg, *axes = render(heart, ["PPG", "ACC_X", "ACC_Y", "ACC_Z"], first=0, samples=7500, sfreq=125.0)
        still = draw_heart(replace(moving, pacing_size=Range(1e-9, 1e-9)), (9, number), 60.0)
        added = ppg - render(still, ["PPG"], first=0, samples=7500, sfreq=125.0)[0]
        for signal in (added, *axes):
            assert share_near(signal, 125.0, harmonics) > 0.6
        assert heart.times == pytest.approx(still.times)  # the steps change nothing about the heart


def test_steps_at_the_hearts_own_rate_can_be_asked_for():
    for heart in hearts(EXERCISE, 40, pacing=1.0, cadence_at_heart_rate=1.0, heart_rate=Range(95, 180)):
        assert heart.pacing.cadence == pytest.approx(heart.heart_rate, rel=0.025)


def test_a_movement_is_in_all_signals_at_once():
    restless = quiet(ICU)
    restless = replace(restless, movements=Range(4, 4), movement_size=Range(2, 2))
    heart = draw_heart(restless, (10, 4), 60.0)
    assert len(heart.movements.size) > 0
    times = np.arange(7500) / 125
    moved = heart.movements.envelope(times)
    calm = replace(heart, movements=replace(heart.movements, size=0 * heart.movements.size))
    added = render(heart, SIGNALS, first=0, samples=7500, sfreq=125.0) - render(
        calm, SIGNALS, first=0, samples=7500, sfreq=125.0
    )
    assert np.all(added[:, moved > 1].std(axis=1) > 20 * added[:, moved < 1e-6].std(axis=1))


# ---------------------------------------------------------------------------------------------------------
# Keys and truth


def test_another_case_of_a_subject_has_the_same_traits_and_other_beats():
    one, two = (draw_heart(ICU, (11, 5), 60.0, case=case) for case in (1, 2))
    for name in ("rhythm", "heart_rate", "stiffness", "perfusion", "r_amplitude", "pulse_peak"):
        assert getattr(one, name) == getattr(two, name)
    assert one.breathing.rate == two.breathing.rate
    shorter = min(len(one.times), len(two.times))
    assert not np.allclose(one.times[:shorter], two.times[:shorter], atol=0.02)


def test_slow_signals_have_the_size_asked_for():
    draw = Draw(generator((1, 2), 0, Purpose.HEART), generator((1, 2), 0, Purpose.BEATS))
    sines = draw.sines(40, 10, 0.7, count=5)
    assert np.std(sines(np.arange(0, 100_000, 0.37))) == pytest.approx(0.7, rel=0.02)
    assert np.all((sines.frequency >= 1 / 40) & (sines.frequency <= 1 / 10))


def test_the_truth_counts_beats_and_breaths():
    heart = draw_heart(replace(ICU, rhythms=(("paced", 1.0),)), (12, 1), 60.0)
    truth = truth_of([(heart, 0.0), (heart, 7.5)], seconds=10.0)
    assert truth.heart_rate == pytest.approx(60 * heart.heart_rate, rel=1e-6)
    assert truth.log_heart_rate == pytest.approx(np.log(60 * heart.heart_rate))
    assert truth.r_peaks.shape == (2, 40)
    for row, start in enumerate((0.0, 7.5)):
        own = heart.times[(heart.times >= start) & (heart.times < start + 10)] - start
        assert truth.r_peaks[row, : len(own)] == pytest.approx(own)
        assert np.all(np.isnan(truth.r_peaks[row, len(own) :]))
    assert list(truth.rhythm) == ["paced", "paced"]
    breaths = np.diff(heart.breathing.phase(np.array([0.0, 10.0])))[0]
    assert truth.breathing_rate[0] == pytest.approx(6 * breaths)


def test_a_window_without_its_rhythms_early_beat_is_in_sinus_rhythm():
    shown = {"ectopic": set(), "pause": set(), "ventricular_run": set(), "bigeminy": set()}
    for rhythm, seen in shown.items():
        for heart in of_rhythm(rhythm, 30):
            seen |= set(truth_of([(heart, start) for start in range(0, 50, 10)], seconds=10.0).rhythm)
    assert shown["ectopic"] == {"ectopic", "sinus"} and shown["pause"] == {"pause", "sinus"}
    assert "ventricular_run" in shown["ventricular_run"] and shown["bigeminy"] == {"bigeminy"}
