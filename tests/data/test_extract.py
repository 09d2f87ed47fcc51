"""Windows of one recording: kept where every channel is good, and every dropped one accounted for."""

from dataclasses import replace

import numpy as np
import pytest

from biofound.data.channels import PassBand
from biofound.data.conditioning import condition
from biofound.data.extract import count_dropped, count_rejected, extract_windows
from biofound.data.quality import Reason
from biofound.data.sources import Recording, Signal
from biofound.errors import DataError
from tests.benchmarks.quality_report import gate
from tests.data.cohort import CHANNELS, ECG, PPG, cohort

SETTINGS = {"sfreq": 125.0, "window_samples": 1250, "max_gap_seconds": 1.0}


def recording(**changes) -> Recording:
    return cohort(minutes=4.0, **changes).read("syn0002_1", CHANNELS)


def scaled(original: Recording, factor: float) -> Recording:
    signals = {
        name: Signal(samples=(signal.samples * factor).astype(np.float32), sfreq=signal.sfreq, unit="x")
        for name, signal in original.signals.items()
    }
    return Recording(case_id=original.case_id, signals=signals)


def test_windows_are_slices_of_the_whole_filtered_recording():
    case = extract_windows(recording(), CHANNELS, dtype="float32", **SETTINGS)
    whole = condition(recording(), CHANNELS, sfreq=125.0, max_gap_seconds=1.0).samples
    assert 0 < len(case.x) < case.candidates == 24
    for window, start_s in zip(case.x, case.start_s, strict=True):
        start = round(start_s * 125)
        assert start % 1250 == 0
        np.testing.assert_array_equal(window, whole[:, start : start + 1250])


def test_a_window_is_kept_exactly_when_every_channel_is_good():
    spoilt = recording(artefacts=6.0)
    case = extract_windows(spoilt, CHANNELS, dtype="float32", **SETTINGS)
    made = condition(spoilt, CHANNELS, sfreq=125.0, max_gap_seconds=1.0)
    assessments = gate(spoilt, made, CHANNELS)
    ppg, ecg = (assessment.reason == Reason.KEPT for assessment in assessments)
    assert (ppg & ~ecg).any() and (ecg & ~ppg).any()  # else either channel alone would do
    good = ppg & ecg
    np.testing.assert_array_equal(case.start_s, np.flatnonzero(good) * 10.0)
    np.testing.assert_array_equal(case.quality[:, 1], assessments[1].quality[good])


def test_a_gap_in_one_channel_drops_the_window_for_all():
    clean = recording(artefacts=0.0)
    gapped = clean.signals["ECG"].samples.copy()
    gapped[62 * 500 : 65 * 500] = np.nan
    signals = {**clean.signals, "ECG": replace(clean.signals["ECG"], samples=gapped)}
    case = extract_windows(Recording(case_id="c", signals=signals), CHANNELS, dtype="float32", **SETTINGS)
    assert 60.0 not in case.start_s and {50.0, 70.0} <= set(case.start_s)
    assert case.dropped["gap"] == {"ECG": 1}
    assert case.rejected["PPG"].get("gap", 0) == 0


def test_kept_and_dropped_add_up_and_each_dropped_window_counts_once_under_its_first_reason():
    rng = np.random.default_rng(0)
    reasons = rng.choice(len(Reason), size=(500, 3), p=[0.6, *[0.4 / (len(Reason) - 1)] * (len(Reason) - 1)])
    reasons = reasons.astype(np.uint8)
    expected: dict[str, dict[str, int]] = {}
    for row in reasons:
        failed = [(reason, column) for column, reason in enumerate(row) if reason != Reason.KEPT]
        if failed:
            reason, column = min(failed)
            counts = expected.setdefault(Reason(reason).name.lower(), {})
            counts["abc"[column]] = counts.get("abc"[column], 0) + 1
    assert count_dropped(reasons, "abc") == expected
    kept = int((reasons == Reason.KEPT).all(axis=1).sum())
    assert kept + sum(sum(counts.values()) for counts in expected.values()) == 500


def test_each_channel_is_also_counted_by_itself():
    reasons = np.array([[0, 0], [1, 0], [1, 2], [0, 2], [6, 6]], np.uint8)
    assert count_rejected(reasons, ["PPG", "ECG"]) == {
        "PPG": {"gap": 2, "template": 1},
        "ECG": {"flat": 2, "template": 1},
    }


def test_mean_and_std_are_those_of_the_stored_samples():
    case = extract_windows(recording(), CHANNELS, dtype="float16", **SETTINGS)
    np.testing.assert_allclose(case.mean, case.x.astype(np.float64).mean(axis=2), rtol=1e-6)
    np.testing.assert_allclose(case.std, case.x.astype(np.float64).std(axis=2), rtol=1e-6)
    assert case.mean.dtype == case.std.dtype == case.quality.dtype == np.float32


def test_float16_keeps_the_signal_to_its_rounding():
    small, exact = (
        extract_windows(recording(), CHANNELS, dtype=dtype, **SETTINGS).x for dtype in ("float16", "float32")
    )
    assert small.dtype == np.float16
    np.testing.assert_array_equal(small, exact.astype(np.float16))


@pytest.mark.parametrize(
    ("factor", "complaint"),
    [(1e6, r"float16 ends at 65504; set dtype to float32"), (1e-7, r"round away .*set dtype to float32")],
)
def test_values_beyond_float16_are_refused_not_stored_as_infinity_or_zero(factor, complaint):
    # tested at the number format alone: a gate may have its own opinion of such values
    from biofound.data.extract import _as_dtype

    x = (np.random.default_rng(0).normal(size=(5, 2, 100)) * factor).astype(np.float32)
    with pytest.raises(DataError, match=f"case c, channel PPG: .*{complaint}"):
        _as_dtype(x, "float16", ["PPG", "ECG"], "c")
    np.testing.assert_array_equal(_as_dtype(x, "float32", ["PPG", "ECG"], "c"), x)


def test_a_recording_shorter_than_a_window_gives_none():
    short = {
        name: replace(signal, samples=signal.samples[: 9 * 500])
        for name, signal in recording().signals.items()
    }
    case = extract_windows(Recording(case_id="c", signals=short), CHANNELS, dtype="float16", **SETTINGS)
    assert (case.x.shape, case.candidates, case.dropped) == ((0, 2, 1250), 0, {})


def test_channels_stand_in_the_order_asked_for():
    one, other = (
        extract_windows(recording(), channels, dtype="float32", **SETTINGS)
        for channels in ((PPG, ECG), (ECG, PPG))
    )
    np.testing.assert_array_equal(one.x, other.x[:, ::-1])


def test_a_pass_band_that_the_source_cannot_hold_names_case_and_channel():
    wide = replace(ECG, band=PassBand(low_hz=0.5, high_hz=50.0, order=4))
    slow = recording(sfreq=90.0)
    with pytest.raises(DataError, match=r"syn0002_1, channel ECG"):
        extract_windows(slow, (PPG, wide), dtype="float16", **SETTINGS)


def test_a_missing_channel_that_is_not_required_is_a_gap_and_drops_no_window():
    maybe = replace(ECG, required=False)
    whole = recording()
    alone = Recording(case_id="c", signals={"PPG": whole.signals["PPG"]})
    case = extract_windows(alone, (PPG, maybe), dtype="float16", **SETTINGS)
    expected = extract_windows(alone, (PPG,), dtype="float16", **SETTINGS)
    assert len(case.x) > 0 and np.array_equal(case.start_s, expected.start_s)
    assert np.array_equal(case.x[:, :1], expected.x)
    for values in (case.x[:, 1], case.mean[:, 1], case.std[:, 1], case.quality[:, 1]):
        assert np.isnan(values).all()
    assert case.dropped == expected.dropped and list(case.timing) == ["PPG"]
    assert case.rejected["ECG"] == {"gap": case.candidates}
    with pytest.raises(DataError, match="case c: expected channel ECG, got PPG"):
        extract_windows(alone, CHANNELS, dtype="float16", **SETTINGS)


def test_where_an_optional_channel_is_bad_the_window_is_kept_for_the_others():
    """A gap of the ECG in the window from 60 s; where no channel is required, any that is good is enough."""
    found = recording()
    ecg = found.signals["ECG"].samples.copy()
    ecg[(63 * 500) : (64 * 500)] = np.nan
    found = replace(found, signals={**found.signals, "ECG": replace(found.signals["ECG"], samples=ecg)})
    joint = extract_windows(found, CHANNELS, dtype="float32", **SETTINGS)
    by_ppg = extract_windows(found, (PPG,), dtype="float32", **SETTINGS)
    optional = extract_windows(found, (PPG, replace(ECG, required=False)), dtype="float32", **SETTINGS)
    assert np.array_equal(optional.start_s, by_ppg.start_s) and 60.0 in set(by_ppg.start_s)
    missing = np.isnan(optional.x).any(axis=2)
    assert np.array_equal(missing, np.isnan(optional.x).all(axis=2))
    assert np.array_equal(missing[:, 1], ~np.isin(optional.start_s, joint.start_s))
    assert not missing[:, 0].any()
    neither = [replace(channel, required=False) for channel in CHANNELS]
    any_good = extract_windows(found, neither, dtype="float32", **SETTINGS)
    by_ecg = extract_windows(found, (ECG,), dtype="float32", **SETTINGS)
    assert set(any_good.start_s) == set(by_ppg.start_s) | set(by_ecg.start_s)
    assert (
        len(any_good.x) + sum(sum(row.values()) for row in any_good.dropped.values()) == any_good.candidates
    )
