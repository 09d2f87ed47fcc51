"""One npz a split, the form other people have windows in."""

import hashlib

import numpy as np
import pytest

from biofound.data.windows import open_windows
from biofound.errors import DataError
from tests.data.allocation import traced_memory

X = np.random.default_rng(0).normal(size=(6, 2, 50)).astype(np.float32)


def save(directory, save_as=np.savez, split="train", **arrays):
    save_as(directory / f"{split}_windows.npz", **{"channels": ["PPG", "ECG"], "sfreq": 125.0, **arrays})
    return directory


def everything(windows):
    return windows.read(np.arange(len(windows)))


@pytest.mark.parametrize("key", ["x", "windows", "data"])
@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1)])
def test_either_layout_gives_the_same_windows(tmp_path, key, save_as, axes):
    windows = open_windows(save(tmp_path, save_as, **{key: X.transpose(axes)}), "train")
    np.testing.assert_array_equal(everything(windows), X)
    assert (windows.channels, windows.window_samples, windows.sfreq) == (("PPG", "ECG"), 50, 125.0)
    assert (windows.filters, windows.synthetic, windows.subjects) == ({}, False, ())


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i2", "u2"])
def test_any_real_numbers_come_out_as_float32(tmp_path, dtype):
    x = np.arange(6 * 2 * 50).reshape(6, 2, 50).astype(dtype)
    batch = everything(open_windows(save(tmp_path, x=x), "train"))
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, x.astype(np.float32))


def test_nan_stays_as_the_mark_of_a_gap(tmp_path):
    x = X.copy()
    x[2, 1, 5:9] = np.nan
    np.testing.assert_array_equal(everything(open_windows(save(tmp_path, x=x), "train")), x)


def test_subjects_are_told_and_named(tmp_path):
    windows = open_windows(save(tmp_path, x=X, subjects=np.array([3, 3, 1, 1, 2, 2])), "train")
    assert windows.subjects == ("1", "2", "3")
    info = windows.info(np.array([2, 5]))
    assert info.case_id.tolist() == ["train_windows.npz row 2", "train_windows.npz row 5"]
    assert info.subject_id.tolist() == ["1", "2"]


def test_crops_join_neighbours_only_where_starts_say_that_they_are_neighbours(tmp_path):
    index, crop = np.array([0, 1, 5]), np.array([0.5, 0.5, 0.999])
    alone = open_windows(save(tmp_path, x=X), "train")
    np.testing.assert_array_equal(alone.read(index, crop), X[index])
    start_s = np.array([0, 50, 0, 50, 100, 150]) / 125.0
    joined = open_windows(save(tmp_path, x=X, start_s=start_s, subjects=list("aabbcc")), "train")
    signal = np.concatenate(list(X[:2]), axis=1)
    # two windows of 50: (0 + 0.5) * 51 / 2 = 12.75, (1 + 0.5) * 51 / 2 = 38.25
    batch = joined.read(index, crop)
    np.testing.assert_array_equal(batch[:2], np.stack([signal[:, 12:62], signal[:, 38:88]]))
    np.testing.assert_array_equal(batch[2], np.concatenate(list(X[4:]), axis=1)[:, 50:])


def test_the_fingerprint_is_that_of_the_file(tmp_path):
    save(tmp_path, x=X)
    expected = hashlib.sha256((tmp_path / "train_windows.npz").read_bytes()).hexdigest()
    assert open_windows(tmp_path, "train").fingerprint == expected


def test_an_uncompressed_file_is_mapped_not_loaded(tmp_path):
    save(tmp_path, x=np.zeros((8000, 2, 1250), np.float16))
    with traced_memory() as peak:
        open_windows(tmp_path, "train").read(np.arange(0, 8000, 80))
        assert peak() < 10e6


def test_a_file_that_does_not_say_its_rate_needs_somebody_who_does(tmp_path):
    np.savez(tmp_path / "val_windows.npz", x=X, channels=["PPG", "ECG"])
    with pytest.raises(DataError, match="`sfreq`"):
        open_windows(tmp_path, "val")
    assert open_windows(tmp_path, "val", sfreq_if_unsaid=100.0).sfreq == 100.0
    save(tmp_path, x=X)
    assert open_windows(tmp_path, "train", sfreq_if_unsaid=100.0).sfreq == 125.0


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({}, "x or windows or data, found `channels`"),
        ({"x": X, "data": X}, "x or windows or data"),
        ({"x": X[0]}, r"of shape \(windows, channels, samples\).* got float32 of shape \(2, 50\)"),
        ({"x": X[:0]}, r"shape \(0, 2, 50\)"),
        ({"x": X.astype(complex)}, "complex"),
        ({"x": X[:, :, :2]}, "both axes fit"),
        ({"x": X, "channels": ["PPG", "ECG", "ACC"]}, r"3 channels \(PPG, ECG, ACC\).*neither axis fits"),
        ({"x": X, "channels": ["PPG", "PPG"]}, "twice"),
        ({"x": X, "channels": [1, 2]}, "list of names"),
        ({"x": X, "sfreq": 0.0}, "above 0"),
        ({"x": X, "sfreq": np.nan}, "above 0"),
        ({"x": X, "sfreq": [125.0, 250.0]}, "one number"),
        ({"x": X, "subjects": ["a", "b"]}, r"`subjects` must have shape \(6,\)"),
        ({"x": X, "subjects": np.full(6, 2**21, np.uint32).view("U1")}, "`subjects` should be text"),
        ({"x": X, "quality": np.ones(6)}, r"`quality` must have shape \(6, 2\)"),
        ({"x": X, "start_s": np.full(6, np.nan)}, "`start_s` must hold finite numbers"),
        ({"x": X, "quality": np.full((6, 2), np.inf)}, "`quality` must hold finite numbers"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path, arrays, complaint):
    with pytest.raises(DataError, match=complaint):
        open_windows(save(tmp_path, **arrays), "train")


def test_a_file_without_channel_names_is_refused_with_an_example(tmp_path):
    np.savez(tmp_path / "train_windows.npz", x=X)
    with pytest.raises(DataError, match=r"`channels`.*np\.savez\("):
        open_windows(tmp_path, "train")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "train_windows.npz").write_bytes(b"\x93NUMPY not at all")
    with pytest.raises(DataError, match=r"train_windows\.npz: .*npz"):
        open_windows(tmp_path, "train")
