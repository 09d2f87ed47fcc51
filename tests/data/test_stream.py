"""Does a synthetic stream give the same windows for ever, and is its truth true?"""

import json
import multiprocessing
import pickle
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from scipy.signal import find_peaks, sosfiltfilt

from biofound.data.channels import Channel, PassBand
from biofound.data.conditioning import design
from biofound.data.segments import find_segments
from biofound.data.sources.heart_signals import render
from biofound.data.stream import SyntheticStream
from biofound.data.windows import select_channels
from biofound.errors import SettingsError

HIGH_HZ = {"PPG": 8.0, "ECG": 40.0, "ACC_X": 10.0, "ACC_Y": 10.0, "ACC_Z": 10.0}
UNITS = {"PPG": "NU", "ECG": "mV"}


def channels(*names):
    return [
        Channel(
            name=name,
            tracks=(name,),
            unit=UNITS.get(name, "g"),
            band=PassBand(low_hz=0.5, high_hz=HIGH_HZ.get(name, 10.0), order=4),
            quality_threshold=0.5,
        )
        for name in names
    ]


def stream(population="icu", names=("PPG", "ECG"), **changes):
    return SyntheticStream(**{"population": population, "channels": channels(*names), "hours": 2} | changes)


def read_bytes(index):
    """At module level, for other processes."""
    return stream("exercise", ("ACC_Y", "PPG")).read(np.array(index), np.full(len(index), 0.3)).tobytes()


# ---------------------------------------------------------------------------------------------------------
# The same bits


@pytest.mark.parametrize("population", ["rest", "icu", "exercise"])
def test_a_window_is_the_same_whatever_else_is_in_its_batch(population):
    windows = stream(population, ("PPG", "ECG", "ACC_Z"))
    index, crop = np.array([5, 700, 6, 7, 123, 5]), np.array([0.1, 0.9, 0.0, 0.5, 0.7, 0.4])
    together = windows.read(index, crop)
    for row in reversed(range(len(index))):
        alone = windows.read(index[row : row + 1], crop[row : row + 1])
        assert alone.tobytes() == together[row].tobytes()
    assert together.dtype == np.float32 and together.shape == (6, 3, 1250)
    assert np.isfinite(together).all()


def test_a_channel_is_the_same_whatever_else_is_asked_for():
    index = np.arange(0, 60, 7)
    every = stream("exercise", ("ECG", "ACC_Z", "PPG", "ACC_X", "ACC_Y")).read(index)
    for row, name in enumerate(("ECG", "ACC_Z", "PPG")):
        assert stream("exercise", (name,)).read(index)[:, 0].tobytes() == every[:, row].tobytes()


def test_threads_and_processes_read_the_same_bits():
    batches = [list(range(start, start + 9)) for start in range(0, 90, 9)]
    expected = [read_bytes(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read_bytes, batches)) == expected
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert list(pool.map(read_bytes, batches[:3])) == expected[:3]


def test_a_pickled_stream_gives_the_same_bits():
    windows, index = stream(), np.arange(0, 40, 3)
    again = pickle.loads(pickle.dumps(windows))
    assert again.read(index).tobytes() == windows.read(index).tobytes()
    assert again.fingerprint == windows.fingerprint


def test_a_shared_stream_can_be_read_by_several_threads():
    windows, index = stream(), np.arange(64)
    expected = windows.read(index).tobytes()
    with ThreadPoolExecutor(4) as pool:
        assert {each.tobytes() for each in pool.map(windows.read, [index] * 4)} == {expected}


def test_memory_does_not_grow_with_what_was_read():
    windows = stream()
    windows.read(np.arange(0, 1800, 6))  # fills what remembers hearts
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    windows.read(np.arange(10_000, 10_000 + 1800, 6)).sum()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 8e6  # the 256 hearts remembered; the 300 windows alone are 3 MB


# ---------------------------------------------------------------------------------------------------------
# Crops and neighbours


def test_crops_start_where_the_contract_says():
    windows = stream(segment_windows=4)
    # floor((j + u) * ((n - 1) * T + 1) / n) of a segment of n windows
    offset = int((1 + 0.25) * (3 * 1250 + 1) / 4)
    cropped = windows.read(np.array([9]), np.array([0.25]))[0]
    pair = np.concatenate([windows.read(np.array([8]))[0], windows.read(np.array([9]))[0]], axis=1)
    expected = pair[:, offset : offset + 1250]
    assert np.all(np.std(cropped - expected, axis=1) < 0.03 * expected.std(axis=1))


def test_neighbours_join_and_the_truth_moves_with_the_crop():
    windows = stream("rest")
    truth = windows.truth(np.array([12, 12]), np.array([0.0, 0.5]))
    offset = int(0.5 * (5 * 1250 + 1) / 6) / 125
    moved = truth.r_peaks[0] - offset
    for time in moved[moved >= 0]:
        assert np.nanmin(np.abs(truth.r_peaks[1] - time)) < 1e-9
    index = np.array([12, 13])
    segments = windows.segments()
    assert segments.first[index].tolist() == [12, 12] and segments.length[12] == 6


def test_segments_are_those_of_the_windows_start_times():
    windows = stream(hours=0.2, segment_windows=5)
    rows = np.arange(len(windows))
    found = find_segments(rows % 5 * 10.0, sfreq=125.0, window_samples=1250, owner=rows // 5)
    assert np.array_equal(found.first, windows.segments().first)
    assert np.array_equal(found.length, windows.segments().length)


def test_windows_are_filtered_as_in_a_long_recording():
    windows = stream("icu")
    errors = []
    for segment in range(20):
        raw = render(windows.heart(segment), windows.channels, first=-750, samples=9000, sfreq=125.0)
        got = windows.read(np.array([segment * 6 + 2]))[0]
        for row, name in enumerate(windows.channels):
            sos = design(channels(name)[0].band, sfreq=125.0)
            whole = sosfiltfilt(sos, raw[row], padtype="even", padlen=500)
            expected = whole[750 + 2500 : 750 + 3750]
            errors.append(np.sqrt(np.mean((got[row] - expected) ** 2)) / expected.std())
    assert np.median(errors) < 0.005 and np.max(errors) < 0.03


# ---------------------------------------------------------------------------------------------------------
# Subjects and the contract


def test_splits_and_seeds_share_no_subject():
    streams = [stream(split="train"), stream(split="val"), stream(split="train", seed=43)]
    drawn = [{each.heart(segment).perfusion for segment in range(200)} for each in streams]
    assert all(len(each) == 200 for each in drawn)
    assert not drawn[0] & drawn[1] and not drawn[0] & drawn[2] and not drawn[1] & drawn[2]
    assert not set(streams[0].subjects) & set(streams[1].subjects)


def test_subjects_are_unique_sorted_and_those_of_the_cases():
    windows = stream(hours=0.5)
    assert len(windows) == 180 and len(windows.subjects) == 30
    assert list(windows.subjects) == sorted(set(windows.subjects))
    assert set(windows.info(np.arange(len(windows))).subject_id) == set(windows.subjects)


def test_a_stream_has_no_end():
    windows = stream(hours=0.1)
    beyond = windows.read(np.array([len(windows) + 10**9]))
    assert np.isfinite(beyond).all() and beyond.std() > 0
    assert windows.info(np.array([len(windows)])).subject_id[0] not in windows.subjects


def test_the_stream_describes_itself_like_any_windows():
    windows = stream("icu", ("PPG", "ECG"))
    assert windows.channels == ("PPG", "ECG") and windows.units == {"PPG": "NU", "ECG": "mV"}
    assert windows.sfreq == 125.0 and windows.window_samples == 1250
    assert windows.synthetic is True and windows.sfreq_is_assumed is False
    assert json.loads(json.dumps(windows.filters)) == windows.filters
    assert windows.filters["ECG"] == {"low_hz": 0.5, "high_hz": 40.0, "order": 4}
    swapped = select_channels(windows, ("ECG", "PPG"))
    index = np.array([3])
    assert np.array_equal(swapped.read(index), windows.read(index)[:, ::-1])


def test_the_fingerprint_follows_whatever_shapes_the_windows():
    assert stream().fingerprint == stream().fingerprint
    others = [
        stream(population="rest"),
        stream(seed=1),
        stream(split="val"),
        stream(hours=3),
        stream(names=("ECG", "PPG")),
        stream(sfreq=100.0),
        stream(window_seconds=8.0),
        stream(segment_windows=3),
    ]
    fingerprints = {each.fingerprint for each in [stream(), *others]}
    assert len(fingerprints) == len(others) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": "cohort"}, "population 'cohort' is unknown"),
        ({"names": ("PPG", "RESP")}, "but not RESP"),
        ({"hours": 0}, "hours above 0"),
        ({"seed": -1}, "a seed of 0 or more"),
        ({"sfreq": 60.0}, "a pass band needs"),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(changes, message):
    with pytest.raises(SettingsError, match=message):
        stream(**changes)


def test_a_negative_index_is_refused():
    with pytest.raises(IndexError, match="expected window indices of 0 or more, got -1"):
        stream().read(np.array([3, -1]))


# ---------------------------------------------------------------------------------------------------------
# Truth, as seen in the signals


def detected_rate(ecg):
    """Beats a minute by the QRS energy's peaks: an independent, simple counter."""
    energy = np.convolve(np.diff(ecg) ** 2, np.ones(15) / 15, mode="same")
    peaks, _ = find_peaks(energy, height=0.3 * np.quantile(energy, 0.99), distance=35)
    return 60 * 125 * (len(peaks) - 1) / (peaks[-1] - peaks[0])


def test_the_rate_of_detected_beats_is_the_true_rate():
    windows = stream("rest")
    index = np.arange(0, 600, 6)
    truth, samples = windows.truth(index), windows.read(index)
    error = np.abs([detected_rate(each) for each in samples[:, 1]] - truth.heart_rate)
    assert np.median(error) < 0.7 and np.mean(error < 3) > 0.9


def test_the_pulse_repeats_at_the_true_rate():
    windows = stream("rest")
    index = np.arange(0, 600, 6)
    truth, ppg = windows.truth(index), windows.read(index)[:, 0]
    counted = []
    for each in ppg:
        peaks, _ = find_peaks(each, prominence=0.4 * np.ptp(each), distance=40)
        counted.append(60 * 125 * (len(peaks) - 1) / (peaks[-1] - peaks[0]))
    error = np.abs(counted - truth.heart_rate)
    assert np.median(error) < 0.7 and np.mean(error < 4) > 0.9


def test_pulses_follow_their_beats_by_the_true_delay():
    truth = stream("icu").truth(np.arange(0, 300, 6))
    for row in range(50):
        beats, feet = (x[~np.isnan(x)] for x in (truth.r_peaks[row], truth.pulse_feet[row]))
        lag = feet[:, None] - beats
        nearest = np.where(lag > 0.05, lag, np.inf).min(axis=1)
        inner = nearest[feet > beats[0] + 0.45]
        if len(inner) and np.min(np.diff(beats)) > 0.5:
            assert np.mean(inner) == pytest.approx(truth.pulse_delay[row], abs=0.03)
    assert truth.heart_rate.shape == (50,) and truth.r_peaks.shape == truth.pulse_peaks.shape == (50, 40)


def test_movement_and_cadence_are_told():
    still, moving = stream("rest").truth(np.arange(0, 120, 6)), stream("exercise").truth(np.arange(0, 600, 6))
    assert np.isnan(still.cadence).all() and still.motion.mean() < 0.2
    walking = ~np.isnan(moving.cadence)
    assert 0.5 < walking.mean() < 0.9
    assert np.all((moving.cadence[walking] >= 1.4) & (moving.cadence[walking] <= 3.2))
    assert np.all(moving.motion[walking] >= 0.5)
