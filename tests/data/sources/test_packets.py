import numpy as np
import pytest

from biofound.data.sources.packets import (
    align_packets,
    check_rate,
    correct_late_stamps,
    doubtful_samples,
    find_rate,
    place_packets,
)
from biofound.errors import DataError
from tests.data.sources.vitaldb_server import START

SFREQ = 500.0


def stream(counts, gaps, sfreq=SFREQ):
    """Stamps (seconds) and true first indices of packets with `gaps[k]` samples missing before packet k."""
    counts, gaps = np.asarray(counts), np.asarray(gaps)
    first = np.cumsum(counts) - counts + np.cumsum(gaps)
    return START + first / sfreq, counts.astype(np.int64), first


def test_packets_that_follow_on_are_placed_seamlessly_although_their_stamps_are_rounded():
    starts, counts, first = stream(np.full(20_000, 50), np.zeros(20_000, dtype=int))
    naive = np.ceil((starts - START) * SFREQ).astype(int)
    assert np.mean(naive != first) > 0.1  # what the package does shifts packets by one sample
    np.testing.assert_array_equal(align_packets(starts, counts, sfreq=SFREQ, origin=START), first)


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.5, 0.75])
def test_every_gap_of_one_sample_or_more_is_found_under_jitter_below_half_a_sample(phase):
    rng = np.random.default_rng(3)
    counts = rng.integers(20, 80, 3000)
    gaps = np.where(rng.random(3000) < 0.1, rng.integers(2, 400, 3000), 0)
    gaps[0] = 0
    starts, counts, _ = stream(counts, gaps)
    jittered = starts + (phase + rng.uniform(-0.2, 0.2, len(starts))) / SFREQ
    placed = align_packets(jittered, counts, sfreq=SFREQ, origin=START)
    ours = np.diff(placed) - counts[:-1]
    np.testing.assert_array_equal(ours > 0, gaps[1:] > 0)
    assert np.abs(ours - gaps[1:]).max() <= 1  # a segment starts at the sample nearest to its stamp
    assert np.abs(placed - (jittered - START) * SFREQ).max() <= 1.5


def test_with_exact_stamps_the_smallest_gap_is_exact():
    gaps = np.zeros(500, dtype=int)
    gaps[[7, 100, 101, 499]] = [1, 2, 1, 3]
    starts, counts, first = stream(np.full(500, 50), gaps)
    np.testing.assert_array_equal(align_packets(starts, counts, sfreq=SFREQ, origin=START), first)


@pytest.mark.parametrize("jitter_s", [0.01, 0.04])  # 5 and 20 samples; a packet has 50
def test_stamps_from_a_jittery_clock_leave_no_seams_but_a_lost_packet_shows(jitter_s):
    rng = np.random.default_rng(4)
    gaps = np.zeros(2000, dtype=int)
    gaps[1000] = 50  # one packet lost
    starts, counts, _ = stream(np.full(2000, 50), gaps)
    jittered = np.sort(starts + rng.uniform(0, jitter_s, 2000))
    placed = align_packets(jittered, counts, sfreq=SFREQ, origin=START)
    seams = np.diff(placed) - 50
    assert np.flatnonzero(seams).tolist() == [999]
    assert abs(seams[999] - 50) <= jitter_s * SFREQ
    rounded = np.rint((jittered - START) * SFREQ).astype(int)
    assert np.mean(np.diff(rounded) != 50) > 0.5  # rounding alone tears most packets apart


def test_a_clock_that_drifts_is_followed():
    starts, counts, _ = stream(np.full(10_000, 500), np.zeros(10_000, dtype=int))
    drifting = START + (starts - START) * (1 + 20e-6)
    placed = align_packets(drifting, counts, sfreq=SFREQ, origin=START)
    assert np.abs(placed - (drifting - START) * SFREQ).max() <= 1.5


def test_a_repeated_packet_goes_where_its_stamp_says():
    starts, counts, first = stream(np.full(6, 50), np.zeros(6, dtype=int))
    again = np.insert(np.arange(6), 3, 3)
    np.testing.assert_array_equal(
        align_packets(starts[again], counts[again], sfreq=SFREQ, origin=START), first[again]
    )


@pytest.mark.parametrize("header", [1.0, 250.0, 450.0, 560.0, 1000.0])
def test_a_header_rate_that_the_packets_contradict_is_refused(header):
    starts, counts, _ = stream(np.full(100, 50), np.zeros(100, dtype=int))
    with pytest.raises(DataError, match=f"case 1: .* {header:g} Hz.* 500 samples"):
        check_rate(starts, counts, sfreq=header, what="case 1")


def test_one_value_a_second_cannot_pass_as_500_hz():
    starts = START + np.arange(60.0)
    with pytest.raises(DataError, match=r"case 1: .* 500 Hz.* 1 samples"):
        check_rate(starts, np.ones(60, dtype=np.int64), sfreq=500.0, what="case 1")


def test_the_true_rate_passes_with_gaps_jitter_and_odd_packets():
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 200, 400)
    gaps = np.where(rng.random(400) < 0.3, rng.integers(50, 5000, 400), 0)
    starts, counts, _ = stream(counts, gaps)
    check_rate(starts + rng.uniform(0, 1e-3, 400), counts, sfreq=SFREQ, what="case 1")
    uneven = np.tile([62, 63], 50)
    starts, counts, _ = stream(uneven, np.zeros(100, dtype=int), sfreq=62.5)
    check_rate(starts, counts, sfreq=62.5, what="case 1")


def test_recordings_with_pauses_between_few_packets_pass():
    starts, counts, _ = stream([5000, 5000, 5000], [0, 90_000, 40_000])
    check_rate(starts, counts, sfreq=SFREQ, what="case 1")


def test_late_stamps_drift_gaps_and_jitter_together_are_placed_to_two_samples():
    rng = np.random.default_rng(11)
    for _ in range(40):
        true = 100 * (1 + rng.choice([0, 1]) * rng.uniform(-0.015, 0.015))
        number, length = rng.integers(100, 1500), rng.choice([10, 25, 100])
        counts = rng.integers(length // 2, 2 * length, number)
        giants = rng.choice(number, rng.integers(0, 4), replace=False)
        counts[giants] = rng.integers(3000, 200_000, len(giants))
        gaps = np.where(rng.random(number) < rng.choice([0, 0.003]), rng.integers(2, 3000, number), 0)
        starts, counts, first = stream(counts, gaps, sfreq=true)
        starts[giants] += counts[giants] / true
        starts += rng.uniform(0, 1, number) * rng.choice([0, 0.2, 0.4]) / true
        starts = np.maximum.accumulate(starts)
        rate = find_rate(starts, counts, sfreq=100.0)
        assert (rate == 100.0) == (true == 100.0)
        corrected = correct_late_stamps(starts, counts, sfreq=rate)
        placed = align_packets(corrected, counts, sfreq=rate, origin=corrected[0])
        seconds = (placed - placed[0]) / rate - (first - first[0]) / true
        assert np.abs(seconds).max() * 100 < 2


def test_empty_packets_do_not_make_every_other_a_giant():
    starts, counts, _ = stream([0, 0, 0, 5], np.zeros(4, int))
    np.testing.assert_array_equal(correct_late_stamps(starts, counts, sfreq=SFREQ), starts)
    assert doubtful_samples(starts, counts, sfreq=SFREQ) == 0


@pytest.mark.parametrize("lengths", [[3000], [3000, 3000], [5000, 1500], [1500, 5000], [2000, 7000, 1200]])
def test_giant_packets_at_the_end_that_are_stamped_with_their_ends_go_where_they_belong(lengths):
    counts = np.array([*[10] * 50, *lengths])
    starts, counts, _ = stream(counts, np.zeros(len(counts), int))
    late = starts.copy()
    late[50:] += counts[50:] / SFREQ
    np.testing.assert_allclose(correct_late_stamps(late, counts, sfreq=SFREQ), starts, rtol=0, atol=1e-5)
    assert doubtful_samples(starts, counts, sfreq=SFREQ) == 0


@pytest.mark.parametrize(
    ("pauses", "doubtful"), [((0, 0), 0), ((1000, 0), 0), ((9000, 0), 5000), ((0, 4000), 5000)]
)
def test_giant_packets_at_the_end_whose_place_nothing_tells_stay_and_are_counted(pauses, doubtful):
    counts, gaps = np.array([*[10] * 50, 3000, 2000]), np.array([0] * 50 + list(pauses))
    starts, counts, _ = stream(counts, gaps)
    corrected = correct_late_stamps(starts, counts, sfreq=SFREQ)
    np.testing.assert_array_equal(corrected, starts)
    assert doubtful_samples(corrected, counts, sfreq=SFREQ) == doubtful


def test_pairs_of_packets_that_all_have_one_gap_between_them_do_not_set_the_rate():
    gaps = np.where(np.arange(300) == 150, 1500, 0)
    starts, counts, _ = stream(np.full(300, 25), gaps, sfreq=101.45)
    assert find_rate(starts, counts, sfreq=100.0) == pytest.approx(101.45, rel=1e-6)


def test_packets_lie_on_the_grid_with_gaps_and_the_later_one_counts_where_they_overlap():
    samples = np.array([1, 2, 3, 4, 5, 6], np.float32)
    placed, replaced = place_packets(samples, np.array([0, 4, 5]), np.array([2, 2, 2]))
    np.testing.assert_array_equal(placed, np.array([1, 2, np.nan, np.nan, 3, 5, 6], np.float32))
    assert replaced == 1
