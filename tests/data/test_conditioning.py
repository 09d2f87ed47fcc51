"""Conditioning against closed forms: where the band ends, what aliases, what a gap may touch."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import signal as scipy_signal

from biofound.data.channels import PassBand
from biofound.data.conditioning import bridge_gaps, condition, design, filter_zero_phase, resample
from biofound.data.sources import Recording, Signal
from biofound.errors import DataError, SettingsError
from tests.data.cohort import ECG, PPG


def recording(**signals: tuple[NDArray[np.float32], float]) -> Recording:
    return Recording(
        case_id="case1",
        signals={name: Signal(samples=x, sfreq=rate, unit="NU") for name, (x, rate) in signals.items()},
    )


def conditioned(x: NDArray[np.float32], rate: float, *, max_gap_seconds: float = 0.1):
    """`x` as a PPG, conditioned to 125 Hz."""
    return condition(recording(PPG=(x, rate)), [PPG], sfreq=125.0, max_gap_seconds=max_gap_seconds)


def tone(hz: float, *, sfreq: float, seconds: float, amplitude: float = 1.0) -> NDArray[np.float32]:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * sfreq)) / sfreq)).astype(np.float32)


def pulses(*, sfreq: float, seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Something like a pulse wave with wander: harmonics of 1.1 Hz on slow noise."""
    time = np.arange(round(seconds * sfreq)) / sfreq
    beat = sum(np.cos(2 * np.pi * 1.1 * k * time + k) / k**1.5 for k in range(1, 6))
    wander = sum(
        np.cos(2 * np.pi * hz * time + phase)
        for hz, phase in zip((0.05, 0.11, 0.23), np.random.default_rng(seed).uniform(0, 6, 3), strict=True)
    )
    return (beat + wander + 5.0).astype(np.float32)


def amplitude_of(x: NDArray[np.float32], hz: float, sfreq: float) -> float:
    """The amplitude of a tone by least squares."""
    phase = 2 * np.pi * hz * np.arange(len(x)) / sfreq
    basis = np.stack([np.sin(phase), np.cos(phase), np.ones(len(x))], axis=1)
    return float(np.hypot(*np.linalg.lstsq(basis, x, rcond=None)[0][:2]))


# ---------------------------------------------------------------- the filter


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("low", "high"), [(0.5, 8.0), (0.5, 40.0), (0.5, 10.0), (5.0, 20.0)])
def test_forward_and_backward_the_band_ends_at_minus_3_db(low: float, high: float, order: int) -> None:
    sos = design(PassBand(low_hz=low, high_hz=high, order=order), sfreq=125.0)
    _, once = scipy_signal.sosfreqz(sos, worN=[low, high, np.sqrt(low * high)], fs=125.0)
    both_ways = np.abs(once) ** 2
    np.testing.assert_allclose(both_ways[:2], 1 / np.sqrt(2), rtol=1e-6)
    assert 0.95 < both_ways[2] <= 1.0 + 1e-9


@pytest.mark.parametrize("hz", [0.25, 0.5, 1.0, 4.0, 8.0, 12.0])
def test_a_tone_keeps_its_phase_and_gets_the_gain_of_the_response(hz: float) -> None:
    sos = design(PPG.band, sfreq=125.0)
    _, once = scipy_signal.sosfreqz(sos, worN=[hz], fs=125.0)
    x = tone(hz, sfreq=125.0, seconds=80)
    y = filter_zero_phase(x, sos, margin=500)
    middle = slice(20 * 125, 60 * 125)
    np.testing.assert_allclose(y[middle], np.abs(once[0]) ** 2 * x[middle], atol=2e-4)


def test_the_filter_takes_away_an_offset_a_thousand_times_the_signal() -> None:
    x = tone(1.5, sfreq=125.0, seconds=40) + np.float32(1000.0)
    y = filter_zero_phase(x, design(PPG.band, sfreq=125.0), margin=500)
    assert abs(float(y.mean())) < 1e-3
    assert np.abs(y).max() < 1.2


def test_filtering_each_window_on_its_own_is_wrong_by_a_quarter_at_the_edges() -> None:
    """The trap that conditioning whole recordings avoids."""
    x = pulses(sfreq=125.0, seconds=200)
    channel = conditioned(x, 125.0).samples[0]
    spread = channel.std()
    sos = design(PPG.band, sfreq=125.0)
    inside = slice(2500, 22500)  # away from the recording's own ends
    windows = x[inside].reshape(-1, 1250)
    naive = scipy_signal.sosfiltfilt(sos, windows, axis=1)
    error = (naive - channel[inside].reshape(-1, 1250)) / spread
    at_edges = np.sqrt(np.mean(error[:, [*range(30), *range(-30, 0)]] ** 2))
    assert at_edges > 0.23


def test_a_recordings_own_first_window_is_nearly_what_context_would_give() -> None:
    """Mirrored ends do well where scipy's odd extension does not."""
    x = pulses(sfreq=125.0, seconds=200)
    whole = conditioned(x, 125.0).samples[0]
    sos = design(PPG.band, sfreq=125.0)
    ours, odd = [], []
    for start in range(2500, 5000, 37):  # any phase of the pulse
        part = x[start : start + 10_000]
        expected = whole[start : start + 1250]
        ours.append(conditioned(part, 125.0).samples[0, :1250] - expected)
        odd.append(scipy_signal.sosfiltfilt(sos, part, padlen=500)[:1250] - expected)
    ours_error, odd_error = np.std(ours) / whole.std(), np.std(odd) / whole.std()
    assert ours_error < 0.1
    assert ours_error < 0.6 * odd_error


@pytest.mark.parametrize(
    ("low", "high", "order"), [(0.0, 8.0, 2), (8.0, 0.5, 2), (0.5, 62.5, 2), (0.5, 8.0, 0)]
)
def test_a_band_that_cannot_be_is_a_settings_error(low: float, high: float, order: int) -> None:
    with pytest.raises(SettingsError, match=rf" 62\.5 Hz.*low_hz={low:g}, high_hz={high:g}, order={order}"):
        design(PassBand(low_hz=low, high_hz=high, order=order), sfreq=125.0)


# ---------------------------------------------------------------- resampling


def test_a_120_hz_tone_leaves_less_than_one_percent_at_125_hz() -> None:
    x = tone(120.0, sfreq=500.0, seconds=20)
    assert amplitude_of(x[::4], 5.0, 125.0) > 0.99  # picking every fourth sample turns it into 5 Hz
    # At the very ends, where a tone begins out of nothing, it is no tone: 0.2 s are left out.
    y = resample(x, 500.0, 125.0)[25:-25]
    assert np.abs(y).max() < 0.01
    assert amplitude_of(y, 5.0, 125.0) < 1e-4


@pytest.mark.parametrize("hz", [63.5, 70.0, 85.0, 187.0, 249.0])
def test_nothing_above_half_the_target_rate_comes_back(hz: float) -> None:
    y = resample(tone(hz, sfreq=500.0, seconds=20), 500.0, 125.0)
    assert np.abs(y[125:-125]).max() < 0.01


@pytest.mark.parametrize("rate", [500.0, 250.0, 128.0, 100.0, 62.5, 62.4725, 1000.0 / 3])
def test_sample_k_stays_at_k_over_sfreq_seconds(rate: float) -> None:
    y = resample(tone(3.0, sfreq=rate, seconds=600) + np.float32(7.0), rate, 125.0)
    expected = 7.0 + np.sin(2 * np.pi * 3.0 * np.arange(len(y)) / 125.0)
    assert abs(len(y) - 600 * 125) <= 1
    np.testing.assert_allclose(y[125:-125], expected[125:-125], atol=2e-3)


def test_a_large_offset_does_not_ring_at_the_ends() -> None:
    x = np.full(5000, 1000.0, dtype=np.float32)
    np.testing.assert_allclose(resample(x, 500.0, 125.0), 1000.0, atol=0.01)


def test_the_same_rate_leaves_every_bit_as_it_was() -> None:
    x = pulses(sfreq=125.0, seconds=11)
    np.testing.assert_array_equal(resample(x, 125.0, 125.0), x)


# ---------------------------------------------------------------- gaps


def test_a_short_gap_becomes_a_straight_line_and_nothing_else_changes() -> None:
    x = np.arange(20, dtype=np.float32) ** 2
    holed = x.copy()
    holed[5:8] = [np.nan, np.inf, -np.inf]
    filled, unbridged = bridge_gaps(holed, longest=3)
    expected = x.copy()
    expected[5:8] = 16 + (64 - 16) * np.array([1, 2, 3]) / 4
    np.testing.assert_allclose(filled, expected)
    assert unbridged.tolist() == []


def test_a_gap_is_bridged_up_to_the_limit_and_invalid_beyond() -> None:
    x = np.ones(100, dtype=np.float32)
    x[10:13] = x[50:54] = np.nan
    assert bridge_gaps(x, longest=3)[1].tolist() == [[50, 54]]


def test_missing_ends_are_invalid_however_short() -> None:
    x = np.arange(10, dtype=np.float32)
    x[[0, 9]] = np.nan
    filled, unbridged = bridge_gaps(x, longest=3)
    assert unbridged.tolist() == [[0, 1], [9, 10]]
    assert filled[[0, 9]].tolist() == [1.0, 8.0]


def test_samples_are_invalid_exactly_between_the_last_and_the_next_real_one() -> None:
    x = pulses(sfreq=500.0, seconds=60)
    x[10_002:12_003] = np.nan  # real up to 20.002 s, and again from 24.006 s
    result = conditioned(x, 500.0, max_gap_seconds=1.0)
    time = np.arange(60 * 125) / 125.0
    np.testing.assert_array_equal(result.invalid[0], (time > 20.002) & (time < 24.006))
    assert not result.samples[0, result.invalid[0]].any()
    assert np.isfinite(result.samples).all()


def test_a_bridged_gap_costs_no_sample() -> None:
    x = pulses(sfreq=500.0, seconds=60)
    whole = conditioned(x, 500.0)
    x[10_000:10_050] = np.nan
    result = conditioned(x, 500.0)
    assert not result.invalid.any()
    far = np.abs(np.arange(7500) - 2506) > 250
    np.testing.assert_allclose(result.samples[0, far], whole.samples[0, far], atol=0.02)


def test_nothing_rings_across_a_long_gap() -> None:
    calm, wild = pulses(sfreq=125.0, seconds=30), 1e4 * pulses(sfreq=125.0, seconds=30, seed=1)
    gap = np.full(125, np.nan, dtype=np.float32)
    joined = conditioned(np.concatenate([wild, gap, calm]), 125.0, max_gap_seconds=0.5)
    alone = conditioned(calm, 125.0, max_gap_seconds=0.5)
    np.testing.assert_array_equal(joined.samples[0, -len(calm) :], alone.samples[0])


def test_a_segment_shorter_than_a_cycle_of_the_low_edge_is_invalid() -> None:
    x = pulses(sfreq=125.0, seconds=60)
    x[1000:1200] = x[1400:1600] = np.nan  # 1.6 s of signal between two gaps; 0.5 Hz takes 2 s
    x[3000:3200] = x[3500:3700] = np.nan  # 2.4 s
    invalid = conditioned(x, 125.0).invalid[0]
    assert invalid[1000:1600].all()
    assert not invalid[3200:3500].any()


# ---------------------------------------------------------------- recordings


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10, 249, 250, 501])
@pytest.mark.parametrize("rate", [125.0, 500.0])
def test_recordings_of_any_length_are_conditioned(length: int, rate: float) -> None:
    x = pulses(sfreq=rate, seconds=10)[:length]
    result = conditioned(x, rate)
    assert result.samples.shape == result.invalid.shape == (1, int(length * 125 / rate))
    assert np.isfinite(result.samples).all()
    assert result.invalid.all() == (length < 2 * rate)


def test_a_channel_without_a_real_sample_is_invalid_throughout() -> None:
    x = np.full(5000, np.nan, dtype=np.float32)
    result = conditioned(x, 500.0)
    assert result.invalid.all()
    assert not result.samples.any()


def test_channels_of_any_rate_and_length_share_one_clock() -> None:
    event_s = 12.0
    ppg = np.exp(-(((np.arange(20 * 500) / 500 - event_s) / 0.1) ** 2)).astype(np.float32)
    ecg = np.exp(-(((np.arange(18 * 200) / 200 - event_s) / 0.1) ** 2)).astype(np.float32)
    result = condition(
        recording(PPG=(ppg, 500.0), ECG=(ecg, 200.0)), [ECG, PPG], sfreq=125.0, max_gap_seconds=0.1
    )
    assert result.channels == ("ECG", "PPG")
    assert result.samples.shape == (2, 20 * 125)
    assert result.samples.dtype == np.float32
    assert result.samples.argmax(axis=1).tolist() == [1500, 1500]
    assert result.invalid[0].tolist() == [False] * (18 * 125) + [True] * (2 * 125)
    assert not result.invalid[1].any()


def test_the_recording_is_left_as_it_was() -> None:
    x = pulses(sfreq=500.0, seconds=20)
    x[100:120] = np.nan
    before = x.copy()
    conditioned(x, 500.0, max_gap_seconds=1.0)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("rate", [1.0, 15.9])
def test_a_rate_below_twice_the_pass_band_is_refused(rate: float) -> None:
    x = np.ones(600, dtype=np.float32)
    with pytest.raises(DataError, match=rf"case1, channel PPG: .* {rate:g} Hz.* 16 Hz"):
        conditioned(x, rate)


def test_a_channel_that_was_not_read_is_named() -> None:
    with pytest.raises(DataError, match=r"case1: .*ECG.*PPG"):
        condition(
            recording(PPG=(pulses(sfreq=125.0, seconds=5), 125.0)), [ECG], sfreq=125.0, max_gap_seconds=0.1
        )
