"""The `Windows` protocol: both forms give the same batches and information, also with channels selected."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from biofound.commands.pretrain_data import describe_data
from biofound.data.store import StoreWindows
from biofound.data.windows import ArrayWindows, Gate, Windows, gate_of, open_windows, select_channels
from biofound.errors import DataError
from biofound.settings import PretrainSettings
from tests.data.cohort import build

RANDOM = np.random.default_rng(0)
INDEX = RANDOM.integers(0, 20, 100)
CROP = RANDOM.random(100)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    outdir = tmp_path_factory.mktemp("store")
    build(outdir)
    return outdir


@pytest.fixture(scope="module")
def stored(built) -> StoreWindows:
    return StoreWindows(built / "train")


@pytest.fixture(scope="module")
def held(stored) -> ArrayWindows:
    """The store's windows in memory, with all that the store says of them."""
    everything = np.arange(len(stored))
    info = stored.info(everything)
    return ArrayWindows(
        stored.read(everything),
        channels=stored.channels,
        sfreq=stored.sfreq,
        subjects=info.subject_id,
        case_ids=info.case_id,
        start_s=info.start_s,
        quality=info.quality,
        filters=stored.filters,
        units=stored.units,
        synthetic=stored.synthetic,
        fingerprint=stored.fingerprint,
    )


def described(windows: Windows) -> tuple:
    names = "channels sfreq window_samples filters units sfreq_is_assumed synthetic fingerprint subjects"
    return (len(windows), *(getattr(windows, name) for name in names.split()))


@pytest.mark.parametrize("channels", [("PPG", "ECG"), ("ECG", "PPG"), ("ECG",)])
def test_arrays_and_the_store_they_were_read_from_give_the_same(stored, held, channels):
    one, other = select_channels(stored, channels), select_channels(held, channels)
    assert described(one) == described(other) and one.channels == channels
    np.testing.assert_array_equal(one.read(INDEX, CROP), other.read(INDEX, CROP))
    np.testing.assert_array_equal(one.segments().first, other.segments().first)
    assert len(set(one.segments().length[INDEX].tolist())) > 2
    for name in ("case_id", "subject_id", "start_s", "quality"):
        np.testing.assert_array_equal(getattr(one.info(INDEX), name), getattr(other.info(INDEX), name))


def test_selected_channels_follow_their_names_wherever_they_stand(stored):
    both = stored.read(INDEX)
    for channels, rows in ((("ECG", "PPG"), [1, 0]), (("ECG",), [1]), (("PPG",), [0])):
        chosen = select_channels(stored, channels)
        np.testing.assert_array_equal(chosen.read(INDEX), both[:, rows])
        np.testing.assert_array_equal(chosen.info(INDEX).quality, stored.info(INDEX).quality[:, rows])
        assert set(chosen.filters) == set(chosen.units) == set(channels)
    assert not np.array_equal(both[:, 0], both[:, 1])
    with pytest.raises(DataError, match="ACC_X"):
        select_channels(stored, ["PPG", "ACC_X"])


def test_info_is_what_plain_numpy_reads_from_the_files(built, stored):
    row = 0
    for path in sorted((built / "train").glob("*.npz")):
        with np.load(path) as archive:
            count = len(archive["x"])
            info = stored.info(np.arange(row, row + count))
            np.testing.assert_array_equal(info.start_s, archive["start_s"])
            np.testing.assert_array_equal(info.quality, archive["quality"])
        assert info.case_id.tolist() == [path.stem] * count
        assert info.subject_id.tolist() == [path.stem.split("_")[0]] * count
        row += count
    assert row == len(stored)


def test_what_arrays_do_not_say_is_empty_or_nan():
    windows = ArrayWindows(np.zeros((3, 2, 5)), channels=("PPG", "ECG"), sfreq=125.0)
    info = windows.info(np.array([2, 0]))
    assert info.case_id.tolist() == ["window row 2", "window row 0"]
    assert info.subject_id.tolist() == ["", ""]
    assert np.isnan(info.start_s).all() and np.isnan(info.quality).all() and info.quality.shape == (2, 2)
    assert (windows.subjects, windows.filters, windows.units) == ((), {}, {})
    changed = ArrayWindows(np.ones((3, 2, 5)), channels=("PPG", "ECG"), sfreq=125.0)
    assert len({windows.fingerprint, changed.fingerprint}) == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"channels": ("PPG",)}, "`x`"),
        ({"subjects": ["a"]}, "`subjects`"),
        ({"case_ids": ["a"]}, "`case_ids`"),
        ({"start_s": [0.0, 1.0, np.nan]}, "`start_s`"),
        ({"quality": np.ones(3)}, "`quality`"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        ArrayWindows(np.zeros((3, 2, 5)), **{"channels": ("PPG", "ECG"), "sfreq": 125.0, **changes})


class Bomb:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["x", "channels", "subjects", "unasked"])
def test_a_pickle_in_a_plain_npz_is_refused_and_not_executed(tmp_path, save_as, key):
    arrays = {"x": np.zeros((1, 1, 5)), "channels": ["PPG"], "sfreq": 125.0}
    arrays[key] = np.array([Bomb(tmp_path / "executed")], dtype=object)
    save_as(tmp_path / "train_windows.npz", **arrays)
    with pytest.raises(DataError, match="objects"):
        open_windows(tmp_path, "train")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["x", "start_s", "quality"])
def test_a_pickle_in_a_store_is_refused_and_not_executed(built, tmp_path, save_as, key):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "train" / "syn0001_1.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays[key] = np.array([Bomb(tmp_path / "executed")] * 100_000, dtype=object)
    save_as(path, **arrays)
    with pytest.raises(DataError, match=r"syn0001_1\.npz"):
        open_windows(tmp_path, "train").read(np.array([0]))
    assert not (tmp_path / "executed").exists()


def test_the_gate_is_the_stores_and_what_a_checkpoint_says(stored, held) -> None:
    assert gate_of(stored) == Gate(quality_thresholds={"PPG": 0.5, "ECG": 0.5}, max_gap_seconds=1.0)
    one = gate_of(select_channels(stored, ["ECG"]))
    assert one == Gate(quality_thresholds={"ECG": 0.5}, max_gap_seconds=1.0)
    assert gate_of(held) is None
    described = [describe_data(train, held, PretrainSettings()) for train in (stored, held)]
    assert [data.max_gap_seconds for data in described] == [1.0, 0.1]  # where nobody says it, the default
    assert all(data.quality_thresholds == {"PPG": 0.5, "ECG": 0.5} for data in described)
