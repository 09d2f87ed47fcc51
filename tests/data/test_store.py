"""Reading a window store by batch, through memory maps, without ever loading it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from biofound.data import store
from biofound.data.npz import write_npz
from biofound.data.store import IndexedCase, StoreWindows, file_stem, fingerprint_of
from biofound.data.windows import open_windows
from biofound.errors import DataError
from tests.data.allocation import traced_memory
from tests.data.cohort import build, change_sealed, cohort, write_index


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    outdir = tmp_path_factory.mktemp("store")
    build(outdir)
    return outdir


@pytest.fixture
def copied(built, tmp_path) -> Path:
    """A copy that may be broken."""
    return shutil.copytree(built, tmp_path, dirs_exist_ok=True)


def loaded(built: Path) -> tuple[np.ndarray, list[str]]:
    """All windows and their cases, by plain numpy: the reference."""
    index = json.loads((built / "train" / "index.json").read_text())
    x, cases = [], []
    for case in index["cases"]:
        with np.load(built / "train" / case["file"]) as archive:
            x.append(archive["x"].astype(np.float32))
        cases += [case["case_id"]] * len(x[-1])
    return np.concatenate(x), cases


def test_a_batch_holds_the_windows_asked_for_in_the_order_asked_for(built):
    windows = open_windows(built, "train")
    x, cases = loaded(built)
    index = np.random.default_rng(0).integers(0, len(x), 300)
    batch = windows.read(index)
    assert len(windows) == len(x)
    assert batch.dtype == np.float32 and batch.flags.c_contiguous
    np.testing.assert_array_equal(batch, x[index])
    assert windows.info(np.arange(len(x))).case_id.tolist() == cases


def test_an_empty_batch_is_an_empty_array(built):
    assert open_windows(built, "train").read(np.zeros(0, np.int64)).shape == (0, 2, 1250)


def test_a_store_says_what_it_holds(built):
    windows = open_windows(built, "train")
    assert windows.channels == ("PPG", "ECG")
    assert (windows.sfreq, windows.window_samples, windows.synthetic) == (125.0, 1250, True)
    assert windows.filters["ECG"] == {"low_hz": 0.5, "high_hz": 40.0, "order": 4}
    assert windows.subjects == ("syn0001", "syn0002", "syn0003", "syn0004", "syn0005")
    assert len(windows.fingerprint) == 64


def test_reading_outside_the_store_or_cropping_outside_zero_to_one_is_refused(built):
    windows = open_windows(built, "train")
    for index in ([len(windows)], [-1]):
        with pytest.raises(IndexError, match=f"{len(windows)} windows"):
            windows.read(np.array(index))
    for crop in ([1.0], [-0.1], [np.nan]):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            windows.read(np.array([0]), np.array(crop))
    with pytest.raises(ValueError, match="crop"):
        windows.read(np.array([0, 1]), np.array([0.5]))


def files_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_maps_open_at_once_are_limited_however_many_cases_there_are(tmp_path, monkeypatch):
    build(tmp_path, source=cohort(subjects=24, minutes=0.5, artefacts=0.0))
    x, cases = loaded(tmp_path)
    monkeypatch.setattr(store, "MAPS_OPEN", 4)
    windows = StoreWindows(tmp_path / "train")
    before = files_open()
    for row in np.random.default_rng(0).permutation(len(x)):
        np.testing.assert_array_equal(windows.read(np.array([row]))[0], x[row])
        assert files_open() - before <= 4
    assert len(set(cases)) > 20


def test_reading_takes_no_memory_that_grows_with_the_store(tmp_path):
    directory = tmp_path / "train"
    directory.mkdir()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8000, 2, 1250)).astype(np.float16)  # 40 MB
    with (directory / "a.npz").open("wb") as file:
        write_npz(file, {"x": x, "start_s": np.arange(8000) * 10.0, "quality": np.ones((8000, 2), "f4")})
    write_index(directory, {"a": 8000})
    del x
    with traced_memory() as peak:
        windows = open_windows(tmp_path, "train")
        for _ in range(40):
            windows.read(rng.integers(0, 8000, 64), rng.random(64))
        assert peak() < 10e6


# ---- Errors ------------------------------------------------------------------------------------------------


def test_a_directory_without_windows_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"val/index\.json .*val_windows\.npz .*`channels`"):
        open_windows(tmp_path, "val")
    with pytest.raises(DataError, match="no such directory"):
        open_windows(tmp_path / "typo", "val")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"kind": "biofound-splits"}', "kind: expected 'biofound-windows', got 'biofound-splits'"),
        (b'{"kind": "biofound-windows", "format_version": 99}', "format_version: expected 4, got 99"),
        (
            b'{"kind": "biofound-windows", "format_version": 4, "channels": ["PPG"]}',
            "content_sha256: missing",
        ),
        (b"[" * 10**6, "recursion"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "number"),
    ],
    ids=range(7),
)
def test_an_index_that_is_none_is_an_error(copied, content, complaint):
    (copied / "train" / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"index\.json: .*{complaint}.*`biofound windows`"):
        open_windows(copied, "train")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"window_samples": 10**30}, "window_samples: expected less than"),
        ({"sfreq": 0.0}, "sfreq: expected greater than 0"),
        ({"channels": ["PPG", "PPG"]}, "different names"),
        ({"source": {}}, "source: expected the name"),
        (
            {"cases": [{"case_id": "a", "subject_id": "b", "file": "c", "windows": -1, "sha256": ""}]},
            "windows: ",
        ),
        ({"dropped": {"flat": {"PPG": 10**30}}}, r"dropped\.flat\.PPG: expected less than"),
    ],
)
def test_an_index_of_numbers_that_cannot_be_is_an_error(copied, change, complaint):
    path = copied / "train" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=rf"index\.json: .*{complaint}"):
        open_windows(copied, "train")


def test_a_case_of_another_shape_than_the_index_says_is_an_error(copied):
    change_sealed(copied / "train" / "index.json", lambda index: index.update(window_samples=1000))
    with pytest.raises(DataError, match=r"syn0001_1 .*`x`.* 1250\).*\(\d+, 2, 1000\)"):
        open_windows(copied, "train").read(np.array([0]))


def test_a_case_that_goes_while_the_store_is_in_use_is_an_error(copied):
    windows = open_windows(copied, "train")
    (copied / "train" / "syn0001_1.npz").unlink()
    with pytest.raises(DataError, match="syn0001_1"):
        windows.read(np.array([0]))


def test_file_names_are_safe_and_distinct_whatever_the_case_is_called():
    ids = ["a", "a/b", "a%2Fb", "..", "index", "%69ndex", "Ünï", "p00/../x", "case 1", "con:1"]
    stems = [file_stem(case_id) for case_id in ids]
    assert len(set(stems)) == len(ids)
    assert not any("/" in stem or stem == "index" for stem in stems)
    assert file_stem("bidmc01") == "bidmc01"


def test_the_fingerprint_depends_on_every_case_and_not_on_their_order():
    def case(case_id, sha256):
        return IndexedCase(case_id=case_id, subject_id="s", file="f", windows=1, sha256=sha256)

    cases = [case("a", "1"), case("b", "2")]
    assert fingerprint_of(cases) == fingerprint_of(cases[::-1])
    swapped = [case("a", "2"), case("b", "1")]
    assert len({fingerprint_of(cases), fingerprint_of(swapped), fingerprint_of(cases[:1])}) == 3
