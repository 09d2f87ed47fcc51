"""Segments of adjacent windows, and crops that start anywhere inside them."""

from collections import Counter

import numpy as np
import pytest

from biofound.data.segments import crop_offsets, find_segments, gather

T = 5


def test_a_segment_ends_where_a_window_is_missing():
    found = find_segments(np.array([0.0, 10, 20, 40, 50, 90]), sfreq=125.0, window_samples=1250)
    assert found.first.tolist() == [0, 0, 0, 3, 3, 5]
    assert found.length.tolist() == [3, 3, 3, 2, 2, 1]


def test_windows_of_different_owners_never_join():
    start_s = np.arange(4) * 10.0
    found = find_segments(start_s, sfreq=125.0, window_samples=1250, owner=np.array(["a", "a", "b", "b"]))
    assert found.first.tolist() == [0, 0, 2, 2]


def test_starts_are_compared_in_samples_so_rounding_of_seconds_does_not_matter():
    start_s = np.arange(1000) * 1250 / 128.7
    assert find_segments(start_s, sfreq=128.7, window_samples=1250).length.tolist() == [1000] * 1000
    one_sample_late = np.array([0.0, 10.0 + 1 / 125])
    assert find_segments(one_sample_late, sfreq=125.0, window_samples=1250).length.tolist() == [1, 1]


def test_no_windows_make_no_segments():
    assert find_segments(np.zeros(0), sfreq=125.0, window_samples=1250).first.shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_every_start_inside_the_segment_is_equally_likely(n):
    starts, each = (n - 1) * T + 1, 60
    # the midpoints of starts * each equal ranges of the segment, dealt to the windows they fall in
    points = (np.arange(starts * each) + 0.5) * n / (starts * each)
    position = np.floor(points).astype(np.int64)
    offsets = crop_offsets(position, np.full(len(points), n), points - position, T)
    assert Counter(offsets.tolist()) == dict.fromkeys(range(starts), each)


def test_offsets_follow_the_formula_and_stay_inside_at_the_last_float_below_one():
    rng = np.random.default_rng(0)
    length = rng.integers(1, 400, 5000)
    position = rng.integers(0, length)
    crop = np.where(rng.random(5000) < 0.2, np.nextafter(1, 0), rng.random(5000))
    offsets = crop_offsets(position, length, crop, 1250)
    expected = np.floor((position + crop) * ((length - 1) * 1250 + 1) / length)
    last = (length - 1) * 1250
    np.testing.assert_array_equal(offsets, np.minimum(expected, last))
    assert offsets.min() >= 0 and (offsets <= last).all()


def test_a_crop_is_a_slice_of_the_signal_the_windows_were_taken_from():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(2, 12 * T)).astype(np.float16)
    windows = signal.reshape(2, 12, T).transpose(1, 0, 2)
    rows = np.array([0, 1, 2, 3, 6, 7, 8, 11])
    segments = find_segments(rows * T / 10.0, sfreq=10.0, window_samples=T)
    index = rng.integers(0, len(rows), 400)
    crop = rng.random(400)
    out = np.empty((400, 2, T), np.float32)
    gather(np.ascontiguousarray(windows[rows]), index, out, np.arange(400), segments, crop)
    heads, lengths = {0: 0, 4: 6, 7: 11}, {0: 4, 4: 3, 7: 1}
    for got, row, u in zip(out, index, crop, strict=True):
        first = max(head for head in heads if head <= row)
        n = lengths[first]
        start = heads[first] * T + int((row - first + u) * ((n - 1) * T + 1) / n)
        np.testing.assert_array_equal(got, signal[:, start : start + T].astype(np.float32))
