"""Motion check of the PPG, against the truth of synthetic runners, and what it must leave as it is."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from biofound.data import motion
from biofound.data.conditioning import Conditioned, condition
from biofound.data.extract import extract_windows
from biofound.data.motion import assess_motion
from biofound.data.quality import Reason, WindowQuality, assess
from biofound.data.sources import Recording
from biofound.data.sources.synthetic import SyntheticSource
from biofound.errors import DataError
from tests.benchmarks.motion_report import CHANNELS, READABLE, UNREADABLE, Judged, auc, judge, kept

ACC, PPG, ECG = CHANNELS[:3], CHANNELS[3], CHANNELS[4]
CUT = {"sfreq": 125.0, "window_samples": 1250}


@pytest.fixture(scope="module")
def runners() -> Judged:
    """A held-back cohort: 50 subjects, half a minute each."""
    return judge(seed=201, subjects=50, minutes=0.5)


@pytest.mark.parametrize(
    ("way", "least"),
    [("with acceleration", 0.9), ("with acceleration and ECG", 0.9), ("with ECG", 0.85), ("PPG alone", 0.8)],
)
def test_quality_tells_readable_pulses_from_steps(runners: Judged, way: str, least: float) -> None:
    by_power, by_beats = auc(runners, way)
    assert by_power > least and by_beats > least
    assert max(auc(runners, "no motion check")) < 0.8


def test_windows_of_nothing_but_steps_are_dropped_and_still_ones_kept(runners: Judged) -> None:
    moving, way = runners.motion > 0.5, "with acceleration"
    steps, still = moving & (runners.ratio < UNREADABLE), runners.motion == 0
    assert steps.sum() > 20 and still.sum() > 10
    assert kept(runners, "no motion check", steps) > 0.5
    assert kept(runners, way, steps) < 0.03
    assert kept(runners, way, moving & runners.found & (runners.ratio >= READABLE)) > 0.75
    for name in ("with acceleration", "with acceleration and ECG"):
        assert np.array_equal(runners.quality[name][still], runners.quality["no motion check"][still])


def test_nothing_is_lost_at_rest() -> None:
    resting = judge(seed=978, subjects=8, minutes=0.5, population="rest")
    before = resting.quality["no motion check"]
    assert (before >= 0.5).all()
    for way, after in resting.quality.items():
        assert (after >= 0.5).all(), way
        if way.startswith("with acceleration"):
            assert np.array_equal(before, after)


# ---------------------------------------------------------------- one recording


@lru_cache
def runner() -> tuple[Recording, Conditioned, list[WindowQuality]]:
    """Two minutes of a subject whose steps hide the pulse; found by its truth."""
    source = SyntheticSource(
        seed=5, subjects=40, minutes=2, artefacts=0.0, population="exercise", sfreq=125.0
    )
    starts = np.arange(0, 120, 10.0)
    for case in source.cases(CHANNELS):
        truth = source.truth(case.case_id, starts, seconds=10.0)
        ratio = source.pulse_to_disturbance(case.case_id, starts, seconds=10.0)
        if (truth.motion == 1).all() and (ratio < 0.2).all():
            recording = source.read(case.case_id, CHANNELS)
            conditioned = condition(recording, CHANNELS, sfreq=125.0, max_gap_seconds=0.1)
            found = [
                assess(
                    recording.signals[channel.name],
                    conditioned.samples[row],
                    conditioned.invalid[row],
                    channel=channel,
                    **CUT,
                )
                for row, channel in enumerate(CHANNELS)
            ]
            if (found[3].reason == Reason.KEPT).sum() >= 6:
                return recording, conditioned, found
    raise AssertionError("expected such a subject among 40")


def test_the_gate_is_optional_and_auto_needs_acceleration() -> None:
    recording, _, assessed = runner()

    def reasons(channels, gate):
        found = extract_windows(
            recording, channels, **CUT, max_gap_seconds=0.1, dtype="float32", motion_gate=gate
        )
        return found.rejected["PPG"], len(found.x)

    before = int((assessed[3].reason == Reason.KEPT).sum())
    assert reasons((*ACC, PPG), "off")[1] == reasons((PPG,), "auto")[1] == before
    rejected, windows = reasons((*ACC, PPG), "auto")
    assert (rejected["motion"], windows) == (before, 0)
    assert reasons((PPG, ECG), "auto")[0] == reasons((PPG, ECG), "off")[0]
    assert reasons((PPG, ECG), "on")[0]["motion"] >= before // 2
    lenient = replace(PPG, quality_threshold=0.0)
    assert reasons((*ACC, lenient), "auto") == ({}, 12)


def test_bad_acceleration_counts_for_its_own_windows_only() -> None:
    """Without good acceleration `auto` leaves the PPG as it is; it changes no other channel."""
    _, conditioned, assessed = runner()
    reason = assessed[0].reason.copy()
    reason[5] = Reason.GAP
    spoilt = [replace(assessed[0], reason=reason), *assessed[1:]]
    whole, holed = (
        assess_motion(conditioned.samples, conditioned.invalid, CHANNELS, found, **CUT, gate="auto")
        for found in (assessed, spoilt)
    )
    assert holed[3].quality[5] == assessed[3].quality[5] > whole[3].quality[5]
    others = np.arange(12) != 5
    np.testing.assert_allclose(holed[3].quality[others], whole[3].quality[others], atol=0.1)
    for row in (0, 1, 2, 4):
        assert np.array_equal(whole[row].quality, assessed[row].quality)


def test_unit_of_the_acceleration_is_converted_or_refused() -> None:
    _, conditioned, assessed = runner()
    scaled = conditioned.samples.copy()
    scaled[:3] *= 1000
    in_mg = [replace(channel, unit="mg") if channel in ACC else channel for channel in CHANNELS]
    same = [
        assess_motion(samples, conditioned.invalid, channels, assessed, **CUT, gate="auto")[3].quality
        for samples, channels in ((conditioned.samples, CHANNELS), (scaled, in_mg))
    ]
    np.testing.assert_allclose(*same, atol=1e-4)
    quiet = assess_motion(conditioned.samples, conditioned.invalid, in_mg, assessed, **CUT, gate="auto")[3]
    assert np.array_equal(quiet.quality, assessed[3].quality)  # a thousandth of the steps is no motion
    counts = [replace(channel, unit="counts") if channel in ACC else channel for channel in CHANNELS]
    with pytest.raises(DataError, match=r"ACC_X: the motion check needs acceleration in g.*motion_gate off"):
        assess_motion(scaled, conditioned.invalid, counts, assessed, **CUT, gate="auto")


def test_regression_equals_numpy_for_one_window_and_for_its_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In closed form: least squares on the delayed sources of the windows around; in chunks of any size."""
    rng = np.random.default_rng(0)
    sources, target = rng.standard_normal((2, 5 * 60)), rng.standard_normal(5 * 60)
    delays = np.array([-2, 0, 3])
    windows = motion._Windows(count=5, samples=60, sfreq=10.0)
    padded = np.pad(sources, ((0, 0), (3, 3)))
    columns = np.stack([padded[row, 3 - d : 3 - d + 300] for d in delays for row in (0, 1)], axis=1)
    used = np.array([True, True, False, True, True])
    monkeypatch.setattr(motion, "RIDGE", 0.0)
    for chunk in (256, 2):
        monkeypatch.setattr(motion, "_CHUNK", chunk)
        found = motion._explained(target, sources, delays, windows, 1, used).reshape(5, 60)
        for window in range(5):
            near = [k for k in range(max(window - 1, 0), min(window + 2, 5)) if used[k]]
            rows = np.concatenate([np.arange(60 * k, 60 * k + 60) for k in near])
            weights = np.linalg.lstsq(columns[rows], target[rows], rcond=None)[0]
            expected = columns[60 * window : 60 * window + 60] @ weights
            np.testing.assert_allclose(found[window], expected, atol=1e-9)


def test_agreement_of_beats_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(1)
    one, other = np.sort(rng.uniform(0, 60, 70)), np.sort(rng.uniform(0, 60, 50))
    windows = motion._Windows(count=6, samples=100, sfreq=10.0)
    found = motion._agreement(one, other, windows)
    for window in range(6):
        sides = []
        for a, b in ((one, other), (other, one)):
            mine = a[(a >= 10 * window) & (a < 10 * window + 10)]
            sides.append((sum(np.abs(b - t).min() < 0.1 for t in mine), len(mine)))
        (first, total), (second, more) = sides
        assert found[window] == pytest.approx(2 * min(first, second) / (total + more))
    assert np.array_equal(motion._agreement(one, np.empty(0), windows), np.zeros(6))
