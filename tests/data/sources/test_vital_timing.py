"""Are the windows of `.vital` files where the signal was recorded, whatever the packets' stamps say?

The truth is a function of time that is the same at no two times, evaluated anew at the times of the windows.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from biofound.data.extract import CaseWindows, extract_windows
from biofound.data.sources.vitaldb import VitalFilesSource
from tests.data import cohort
from tests.data.sources.vitaldb_server import FLOAT, Wave, write_vital

PPG = replace(cohort.PPG, tracks=("Bed/PLETH",), quality_threshold=0.0)
ECG = replace(cohort.ECG, tracks=("Bed/II",), quality_threshold=0.0)


def truth(seconds):
    """A tone within the pass bands whose frequency wanders, so that no minute is like another."""
    time = np.asarray(seconds)
    wander = 7 * np.sin(2 * np.pi * time / 37) + 11 * np.sin(2 * np.pi * time / 101 + 1)
    return np.sin(2 * np.pi * (3 * time + wander + 2e-4 * time**2 * np.exp(-time / 500)))


def packets(stamps, counts, *, sfreq, first=0.0, lost=None):
    """Packets of the truth sampled at `sfreq` without a break, `lost[k]` samples missing before packet k."""
    counts = np.asarray(counts)
    lost = np.zeros(len(counts), dtype=int) if lost is None else lost
    before = np.cumsum(counts) - counts + np.cumsum(lost)
    return [
        (stamp, truth(first + (start + np.arange(count)) / sfreq))
        for stamp, start, count in zip(stamps, before.tolist(), counts.tolist(), strict=True)
    ]


def begins(counts, sfreq, lost=None):
    """The times at which packets that follow on begin."""
    counts = np.asarray(counts)
    return (np.cumsum(counts) - counts + (0 if lost is None else np.cumsum(lost))) / sfreq


def read(directory, stored, *, header, extra=(), channels=(PPG,)):
    """The recording, and the windows of a second each, of one file through its source."""
    wave = Wave(name="Bed/PLETH", packets=stored, sfreq=header, fmt=FLOAT, unit="")
    write_vital(directory / "a.vital", [wave, *extra], packed=False)
    recording = VitalFilesSource(root=directory).read("a", channels)
    windows = extract_windows(
        recording, channels, sfreq=125.0, window_samples=1250, max_gap_seconds=0.2, dtype="float32"
    )
    return recording, windows


def worst_correlation(windows: CaseWindows, *, channel=0, first=0.0):
    """The lowest correlation of any window with the truth at its time, at lag 0."""
    time = first + windows.start_s[:, None] + np.arange(1250) / 125
    expected = truth(time)
    return min(np.corrcoef(x, y)[0, 1] for x, y in zip(windows.x[:, channel], expected, strict=True))


GIANT = 116_372


@pytest.mark.parametrize("places", [[0], [3], [4, 30], [4, 5], [60], [0, 7, 60]])
def test_a_giant_packet_that_is_stamped_at_its_end_is_where_it_was_recorded(tmp_path, places):
    counts = np.full(61, 10)
    counts[places] = GIANT // len(places) + 7 * np.arange(len(places))
    stamps = begins(counts, 100.0)
    stamps[places] += counts[places] / 100.0
    recording, windows = read(tmp_path, packets(stamps, counts, sfreq=100.0), header=100.0)
    assert not np.isnan(recording.signals["PPG"].samples).any()
    assert len(windows.start_s) == counts.sum() // 1000
    assert worst_correlation(windows) > 0.999


def test_the_giant_packet_of_a_real_recorder_runs_on_across_both_borders(tmp_path):
    # Every stamp is that of the packet's end, as a recorder gave them; none is exact.
    counts = [10, 10, 10, GIANT, 24, *[10] * 30]
    stamps = [0.0, 0.1, 0.2, 1163.925, 1164.163, *(1164.263 + 0.1 * np.arange(30))]
    recording, windows = read(tmp_path, packets(stamps, counts, sfreq=100.0), header=100.0)
    assert len(recording.signals["PPG"].samples) == sum(counts)
    assert worst_correlation(windows) > 0.999


def test_a_giant_packet_after_a_pause_ends_where_the_next_begins(tmp_path):
    counts = [*[10] * 20, 20_000, *[10] * 20]
    lost = np.where(np.array(counts) > 10, 70_000, 0)
    stamps = begins(counts, 100.0, lost)
    stamps[20] += 200.0
    recording, windows = read(tmp_path, packets(stamps, counts, sfreq=100.0, lost=lost), header=100.0)
    gap = np.isnan(recording.signals["PPG"].samples)
    assert np.flatnonzero(gap).tolist() == list(range(200, 70_200))
    assert windows.start_s[0] == 710.0 and len(windows.start_s) == 19
    assert worst_correlation(windows) > 0.999


def test_a_giant_packet_before_a_pause_begins_where_the_one_before_ends(tmp_path):
    counts = [*[10] * 20, 20_000, *[10] * 20]
    lost = np.where(np.arange(41) == 21, 3000, 0)
    stamps = begins(counts, 100.0, lost)
    stamps[20] += 200.0
    recording, windows = read(tmp_path, packets(stamps, counts, sfreq=100.0, lost=lost), header=100.0)
    gap = np.isnan(recording.signals["PPG"].samples)
    assert np.flatnonzero(gap).tolist() == list(range(20_200, 23_200))
    assert worst_correlation(windows) > 0.999


def test_both_channels_stay_together_where_one_has_a_giant_packet_first(tmp_path):
    counts = np.array([20_000, *[10] * 50])
    stamps = begins(counts, 100.0)
    stamps[0] += 200.0
    other = Wave(name="Bed/II", samples=truth(np.arange(0, 205, 1 / 250)), sfreq=250.0, fmt=FLOAT)
    stored = packets(stamps, counts, sfreq=100.0)
    _, windows = read(tmp_path, stored, header=100.0, extra=[other], channels=(PPG, ECG))
    assert len(windows.start_s) == 20
    assert worst_correlation(windows, channel=0) > 0.999
    assert worst_correlation(windows, channel=1) > 0.999


@pytest.mark.parametrize(
    ("true", "header", "length"),
    [(99.1, 100.0, 10), (100.7, 100.0, 10), (99.1, 100.0, 100), (124.99, 125.0, 32), (501.0, 500.0, 50)],
)
@pytest.mark.parametrize("jitter_samples", [0.0, 0.3])
def test_a_track_at_another_rate_than_its_header_says_is_in_time_from_first_to_last(
    tmp_path, true, header, length, jitter_samples
):
    counts = np.full(int(300 * true) // length, length)
    jitter = np.random.default_rng(0).uniform(-1, 1, len(counts)) * jitter_samples / true
    jitter[0] = 0
    stored = packets(begins(counts, true) + jitter, counts, sfreq=true)
    recording, windows = read(tmp_path, stored, header=header)
    signal = recording.signals["PPG"]
    assert signal.sfreq == pytest.approx(true, rel=1e-6) and signal.header_sfreq == header
    assert len(signal.samples) == counts.sum() and not np.isnan(signal.samples).any()
    assert len(windows.start_s) in (29, 30)
    assert worst_correlation(windows) > 0.999
    assert signal.overlapping_samples == 0


def test_drift_gaps_and_a_giant_packet_together(tmp_path):
    counts = np.full(2000, 10)
    counts[800] = GIANT // 4
    lost = np.zeros(2000, dtype=int)
    lost[[250, 500, 1200, 1600]] = [3000, 1, 40, 500]
    stamps = begins(counts, 99.1, lost)
    stamps[800] += counts[800] / 99.1
    recording, windows = read(tmp_path, packets(stamps, counts, sfreq=99.1, lost=lost), header=100.0)
    signal = recording.signals["PPG"]
    assert signal.sfreq == pytest.approx(99.1, rel=1e-7)
    assert np.isnan(signal.samples).sum() == lost.sum()
    assert worst_correlation(windows) > 0.995  # one window has a bridged sample and 40 that are missing


@pytest.mark.parametrize("kind", ["wandering", "sudden"])
def test_a_drift_that_is_not_steady_keeps_the_headers_rate_and_its_gaps(tmp_path, kind):
    seconds = np.arange(6000) / 10
    rate = 100 + 0.9 * np.sin(2 * np.pi * seconds / 200) if kind == "wandering" else 100.0 - (seconds > 300)
    sampled = np.concatenate([[0.0], np.cumsum(10 / rate)])
    times = np.concatenate([np.linspace(a, b, 10, endpoint=False) for a, b in pairwise(sampled)])
    stored = list(zip(sampled[:-1].tolist(), truth(times).reshape(-1, 10), strict=True))
    recording, windows = read(tmp_path, stored, header=100.0)
    assert recording.signals["PPG"].sfreq == 100.0
    assert np.isnan(recording.signals["PPG"].samples).sum() > 50
    assert windows.timing["PPG"].bridged_samples == np.isnan(recording.signals["PPG"].samples).sum()
    assert worst_correlation(windows) > 0.97  # a sample off at most


@pytest.mark.parametrize("stamps", ["exact", "rounded to a millisecond", "jittery"])
def test_a_track_at_its_headers_rate_keeps_it_to_the_bit(tmp_path, stamps):
    counts = np.random.default_rng(1).integers(8, 13, 3000)
    lost = np.zeros(3000, dtype=int)
    lost[[100, 101, 900, 2000, 2500]] = [1, 1, 700, 2, 1]
    at = begins(counts, 100.0, lost)
    if stamps == "rounded to a millisecond":
        at = np.round(at, 3)
    elif stamps == "jittery":
        at += np.random.default_rng(2).uniform(0, 0.02, 3000)
    recording, _ = read(tmp_path, packets(at, counts, sfreq=100.0, lost=lost), header=100.0)
    signal = recording.signals["PPG"]
    assert signal.sfreq == 100.0
    if stamps != "jittery":
        at_sample = begins(counts, 1.0, lost)
        grid = np.concatenate([start + np.arange(n) for start, n in zip(at_sample, counts, strict=True)])
        expected = np.full(int(grid.max()) + 1, np.nan, dtype=np.float32)
        expected[grid.astype(int)] = truth(grid / 100).astype(np.float32)
        np.testing.assert_array_equal(signal.samples, expected)
        assert np.isnan(signal.samples).sum() == lost.sum()


def test_samples_that_contradict_each_other_are_counted(tmp_path):
    counts = np.full(600, 10)
    stored = packets(begins(counts, 100.0), counts, sfreq=100.0)
    again = [(20.0, stored[200][1]), (30.0, -np.ones(10)), (40.05, -np.ones(7))]  # the first is the same
    recording, windows = read(tmp_path, [*stored, *again], header=100.0)
    assert recording.signals["PPG"].overlapping_samples == 17
    assert windows.timing["PPG"].overlapping_samples == 17
