"""Do the baselines know the rate they are shown, and are strangers' encoders called as promised?"""

import numpy as np
import pytest
import wfdb

from biofound.core.probe_features import classical_features, count_beats, load_encoder_function
from biofound.errors import SettingsError

A_SAMPLE = 2 / 1250
"""What a peak that falls on the sample beside it does to the rate of a window."""


def pulses(interval_s, *, sfreq=125.0, seconds=10.0, width=0.02, first=0.3, t_wave=0.0):
    """A channel (T,) of bumps every `interval_s`, each with a broader one after it."""
    time = np.arange(round(seconds * sfreq)) / sfreq
    beats = np.arange(first, seconds, interval_s)[:, None]
    qrs = np.exp(-0.5 * ((time - beats) / width) ** 2)
    wave = t_wave * np.exp(-0.5 * ((time - beats - 0.28) / 0.05) ** 2)
    return (qrs + wave).sum(0).astype(np.float32)


@pytest.mark.parametrize("interval", [1.6, 1.2, 0.8, 0.6, 0.4, 0.32])
def test_the_beat_counter_is_exact_on_an_ecg_of_known_rate(interval):
    x = np.stack([np.zeros(1250, np.float32), pulses(interval)])[None]
    assert count_beats(x, 125.0, channels=("PPG", "ECG")) == pytest.approx(60 / interval, rel=A_SAMPLE)


@pytest.mark.parametrize("interval", [1.2, 0.8, 0.56])
def test_the_beat_counter_is_exact_on_a_ppg_with_a_dicrotic_wave(interval):
    x = pulses(interval, width=0.08, t_wave=0.3)[None, None]
    assert count_beats(x, 125.0, channels=("PPG",)) == pytest.approx(60 / interval, rel=A_SAMPLE)


def test_the_beat_counter_takes_the_ppg_of_windows_that_lack_the_ecg():
    ppg = pulses(0.8, width=0.08, t_wave=0.3)
    x = np.stack([[ppg, pulses(0.6)], [ppg, np.full(1250, np.nan)], [ppg, np.zeros(1250)]])
    found = count_beats(x.astype(np.float32), 125.0, channels=("PPG", "ECG"))
    np.testing.assert_allclose(found, [100, 75, np.nan], rtol=A_SAMPLE)


def test_the_beat_counter_takes_no_t_wave_for_a_beat_and_neither_sign_nor_scale_matter():
    ecg = pulses(0.8, t_wave=0.5)
    x = np.stack([ecg, -ecg, 1e-3 * ecg + 5])[:, None]
    np.testing.assert_allclose(count_beats(x, 125.0, channels=("ECG",)), 75)


def test_a_missed_beat_leaves_the_rate():
    ecg = pulses(0.8)
    ecg[round((0.3 + 5 * 0.8 - 0.2) * 125) : round((0.3 + 5 * 0.8 + 0.2) * 125)] = 0
    assert count_beats(ecg[None, None], 125.0, channels=("ECG",)) == pytest.approx(75, rel=A_SAMPLE)


def test_a_flat_window_has_no_rate_and_a_gap_no_influence_on_its_beats():
    gap = pulses(0.8)
    gap[:120] = np.nan
    x = np.stack([np.zeros(1250, np.float32), gap])[:, None]
    found = count_beats(x, 125.0, channels=("ECG",))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(75)
    with pytest.raises(ValueError, match="ACC_X"):
        count_beats(x, 125.0, channels=("ACC_X",))


def test_irregular_beats_give_the_beats_per_minute_not_the_most_usual_interval():
    time = np.arange(1250) / 125.0
    beats = 0.4 + np.cumsum(np.tile([0.6, 0.6, 0.96], 4))
    beats = beats[beats < 9.7]
    ecg = np.exp(-0.5 * ((time - beats[:, None]) / 0.02) ** 2).sum(0)
    expected = 60 * (len(beats) - 1) / (beats[-1] - beats[0])
    assert count_beats(ecg[None, None], 125.0, channels=("ECG",)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("signal", "channel"), [("II,", "ECG"), ("PLETH,", "PPG")])
def test_the_beat_counter_agrees_with_the_monitor_on_bidmc(bidmc_dir, signal, channel):
    for case in ("bidmc01", "bidmc16", "bidmc23"):  # 91, 110 and 63 beats a minute
        record = wfdb.rdrecord(str(bidmc_dir / case))
        numerics = wfdb.rdrecord(str(bidmc_dir / f"{case}n"))
        samples = record.p_signal[: 480 * 125, record.sig_name.index(signal)]
        rate = numerics.p_signal[:480, numerics.sig_name.index("HR,")].reshape(48, 10).mean(1)
        counted = count_beats(samples.reshape(48, 1, 1250).astype(np.float32), 125.0, channels=(channel,))
        assert np.median(np.abs(counted - rate)) < 1.5


def test_classical_features_ignore_gain_and_offset_but_for_the_scale_itself():
    x = np.stack([pulses(0.8), pulses(0.6)])[:, None] + 0.01 * np.random.default_rng(0).normal(
        size=(2, 1, 1250)
    )
    features, moved = classical_features(x, 125.0), classical_features(7 * x + 3, 125.0)
    differing = np.abs(features - moved).max(0) > 1e-3
    assert differing.sum() == 1
    assert features.shape == moved.shape
    assert np.isfinite(classical_features(np.zeros((1, 2, 1250), np.float32), 125.0)).all()


def test_classical_features_are_those_of_each_channel_by_itself():
    x = np.random.default_rng(0).normal(size=(3, 2, 1250)).astype(np.float32)
    each = [classical_features(x[:, [c]], 125.0) for c in range(2)]
    np.testing.assert_allclose(classical_features(x, 125.0), np.concatenate(each, axis=1), rtol=1e-5)
    x[0, 0, 5:50] = np.nan
    assert np.isfinite(classical_features(x, 125.0)).all()


def test_classical_features_show_the_period_as_the_peak_of_the_autocorrelation():
    x = pulses(0.8, width=0.1)[None, None]
    lags = np.arange(0.24, 2.02, 0.04)
    statistics = 10
    autocorrelation = classical_features(x, 125.0)[0, statistics : statistics + len(lags)]
    assert lags[autocorrelation.argmax()] in (pytest.approx(0.8), pytest.approx(1.6))


def test_a_strangers_encoder_is_found_by_module_and_function():
    function = load_encoder_function("tests.core.test_probe_features:mean_and_rate")
    np.testing.assert_array_equal(
        function(np.ones((3, 2, 10), np.float32), 125.0), np.full((3, 3), [1, 1, 125])
    )
    for spec, said in [
        ("no_such_module:f", "no_such_module"),
        ("tests.core.test_probe_features:absent", "mean_and_rate"),
        ("tests.core.test_probe_features", "module:function"),
    ]:
        with pytest.raises(SettingsError, match=said):
            load_encoder_function(spec)


def mean_and_rate(x, sfreq):
    return np.concatenate([x.mean(-1), np.full((len(x), 1), sfreq)], axis=1)
