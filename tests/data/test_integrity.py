"""Summaries of a store, and that every check fails when its property is broken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from biofound.data.integrity import QUANTILES, check_store, inspect_store, splits_in
from biofound.data.npz import write_npz
from biofound.data.store import IndexedCase, StoreHeader, fingerprint_of, sum_counts, total
from biofound.errors import DataError
from biofound.files import sha256_of
from tests.data.cohort import build, building, change_sealed, cohort, entries_of


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Three splits of two, one and one subjects."""
    outdir = tmp_path_factory.mktemp("store")
    source = cohort(subjects=4)
    cases = entries_of(source)
    for split, entries in (("train", cases[:2]), ("val", cases[2:3]), ("test", cases[3:])):
        build(outdir, source=source, entries=entries, split=split)
    return outdir


@pytest.fixture
def copied(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path, dirs_exist_ok=True)


def failed(data_dir: Path) -> dict[str, str]:
    return {check.name: check.measured for check in check_store(data_dir) if not check.passed}


def change(path: Path, **changes) -> None:
    change_sealed(path, lambda content: content.update(changes))


def change_arrays(data_dir: Path, **changes) -> None:
    """Change arrays of the first training case, and make every checksum fit again."""
    path = data_dir / "train" / "syn0001_1.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    for name, function in changes.items():
        arrays[name] = function(arrays[name].copy())
    with path.open("wb") as file:
        write_npz(file, arrays)
    change(path.with_suffix(".json"), npz_sha256=sha256_of(path), npz_bytes=path.stat().st_size)
    change_case(data_dir, sha256=sha256_of(path))


def change_case(data_dir: Path, **changes) -> None:
    """Change what the index says of the first training case, and make its fingerprint fit again."""
    path = data_dir / "train" / "index.json"
    cases = json.loads(path.read_text())["cases"]
    cases[0] |= changes
    change(path, cases=cases, fingerprint=fingerprint_of([IndexedCase(**case) for case in cases]))


def with_one(position, value):
    def changed(array):
        array[position] = value
        return array

    return changed


def test_an_intact_store_passes_every_check_in_every_split(built):
    checks = check_store(built)
    assert failed(built) == {}
    assert len(checks) == 3 * 10 + 2
    measured = {check.name: check.measured for check in checks}
    index = json.loads((built / "train" / "index.json").read_text())["totals"]
    dropped = index["candidates"] - index["windows"]
    assert measured["train: counts"] == f"{index['windows']} kept + {dropped} dropped = 24"
    assert measured["splits: no subject in two"] == "subjects: train 2, val 1, test 1"


def flip_a_byte(data_dir):
    """One that only pads, before the first array: no number changes."""
    path = data_dir / "train" / "syn0001_1.npz"
    content = bytearray(path.read_bytes())
    content[45] ^= 1
    path.write_bytes(content)


def in_index(**changes):
    return lambda data_dir: change(data_dir / "train" / "index.json", **changes)


def in_sidecar(name, **changes):
    return lambda data_dir: change(data_dir / "train" / f"{name}.json", **changes)


def in_arrays(**functions):
    return lambda data_dir: change_arrays(data_dir, **functions)


def unsealed(name, change):
    """Change a file, and leave its digest as it was."""

    def damage(data_dir):
        path = data_dir / "train" / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def rejected_in_both(**changes):
    """Let the sidecars say this of rejected windows, and the index their sum."""

    def damage(data_dir):
        for name in (FIRST, SECOND):
            change(data_dir / "train" / f"{name}.json", rejected=changes)
        change(data_dir / "train" / "index.json", rejected=sum_counts([changes, changes]))

    return damage


FIRST, SECOND = "syn0001_1", "syn0002_1"


@pytest.mark.parametrize(
    ("damage", "name", "measured"),
    [
        (flip_a_byte, "checksums", FIRST),
        (in_sidecar(SECOND, npz_sha256="0"), "checksums", SECOND),
        (in_sidecar(FIRST, npz_bytes=9), "checksums", FIRST),
        (lambda d: (d / "train" / "x.npz").write_bytes(b""), "files", "x.npz"),
        (in_sidecar(SECOND, subject_id="nobody"), "sidecars", SECOND),
        (in_sidecar(FIRST, source="wfdb"), "sidecars", FIRST),
        (lambda d: change_case(d, subject_id="nobody"), "sidecars", FIRST),
        (in_index(synthetic=False), "sidecars", "synthetic"),
        (in_sidecar(SECOND, dropped={"gap": {"PPG": 99}}), "counts", SECOND),
        (in_sidecar(FIRST, hours=9.0), "counts", FIRST),
        (in_index(dropped={}), "counts", "dropped of the index"),
        (in_index(rejected={}), "counts", "rejected of the index"),
        (rejected_in_both(PPG={"flat": 13}, ECG={}), "counts", FIRST),
        (rejected_in_both(PPG={}, ECG={}), "counts", "does not add up: syn"),
        (in_index(failed_cases=[SECOND]), "sidecars", SECOND),
        (in_index(source={"name": "wfdb"}, synthetic=False), "sidecars", FIRST),
        (in_index(fingerprint="0" * 64), "fingerprint", "0" * 12),
        (in_arrays(x=lambda x: x.astype(np.float32)), "shapes", FIRST),
        (in_arrays(quality=lambda q: q.astype(np.float64)), "shapes", FIRST),
        (in_arrays(mean=lambda m: m[:, :1]), "shapes", FIRST),
        (in_arrays(x=with_one((0, 0, 0), np.nan)), "finite", FIRST),
        (in_arrays(x=with_one((2, 1, 7), np.inf)), "finite", FIRST),
        (in_arrays(mean=lambda m: m + 0.01), "mean and std", FIRST),
        (in_arrays(std=lambda s: s * 1.001), "mean and std", FIRST),
        (in_arrays(quality=with_one((0, 0), 0.1)), "quality", FIRST),
        (in_arrays(quality=with_one((0, 0), np.nan)), "quality", FIRST),
        (in_arrays(start_s=lambda s: s + 0.008), "grid", FIRST),
        (in_arrays(start_s=lambda s: s[::-1]), "grid", FIRST),
        (lambda d: (d / "train" / f"{FIRST}.npz").unlink(), "readable", "1 of the 2 files"),
        (lambda d: (d / "train" / f"{FIRST}.json").unlink(), "readable", f"{FIRST}.json"),
        (lambda d: (d / "train" / "index.json").write_text("{"), "readable", "index.json"),
        (unsealed("index.json", lambda index: index["source"].update(seed=8)), "readable", "SHA-256"),
        (
            unsealed(f"{FIRST}.json", lambda sidecar: sidecar["timing"]["PPG"].update(track="x")),
            "readable",
            f"{FIRST}.json: its content does not have the SHA-256",
        ),
        (in_index(quality_thresholds={"PPG": 0.5}), "readable", "quality_thresholds"),
    ],
)
def test_each_check_fails_when_its_property_is_broken_and_no_other_does(copied, damage, name, measured):
    damage(copied)
    found = failed(copied)
    assert list(found) == [f"train: {name}"]
    assert measured in found[f"train: {name}"]


OTHER = {
    "optional_channels": ["ECG"],
    "units": {"PPG": "V", "ECG": "V"},
    "filters": {name: {"low_hz": 0.5, "high_hz": 9.0, "order": 4} for name in ("PPG", "ECG")},
    "quality_thresholds": {"PPG": 0.0, "ECG": 0.0},
    "dtype": "float32",
    "motion_gate": "on",
}


@pytest.mark.parametrize("key", StoreHeader.model_fields)
def test_every_setting_that_index_and_sidecars_say_alike_is_compared(copied, key):
    path = copied / "train" / "syn0002_1.json"
    value = json.loads(path.read_text())[key]
    other = OTHER[key] if key in OTHER else value[::-1] if key == "channels" else value * 2
    change(path, **{key: other})
    assert "syn0002_1" in failed(copied)["train: sidecars"]


def test_totals_that_are_not_the_sum_are_seen(copied):
    path = copied / "train" / "index.json"
    totals = json.loads(path.read_text())["totals"]
    for key in ("cases", "subjects", "windows", "candidates", "hours"):
        change(path, totals={**totals, key: totals[key] + 1})
        assert list(failed(copied)) == ["train: counts"]


def test_a_subject_in_two_splits_is_named(tmp_path):
    source = cohort(subjects=2, cases_per_subject=2)
    cases = entries_of(source)
    build(tmp_path, source=source, entries=[cases[0], cases[2]])
    build(tmp_path, source=source, entries=[cases[3]], split="val")
    assert failed(tmp_path) == {"splits: no subject in two": "in two splits: syn0002 (train, val)"}


@pytest.mark.parametrize("settings", [{"sfreq": 100.0}, {"window_seconds": 8.0}])
def test_splits_that_do_not_fit_together_are_seen(copied, settings):
    source = cohort(subjects=4)
    build(copied, source=source, entries=entries_of(source)[2:3], split="val", **settings)
    assert list(failed(copied)) == ["splits: same channels, rate, length and filters"]


def test_the_plain_form_is_checked_too(tmp_path):
    x = np.zeros((5, 2, 30), np.float32)
    common = {"channels": ["PPG", "ECG"], "sfreq": 125.0}
    x[1, 0, 3] = np.nan
    np.savez(tmp_path / "train_windows.npz", x=x, subjects=list("aabbc"), **common)
    np.savez(tmp_path / "val_windows.npz", x=x, subjects=list("ddeef"), **common)
    assert failed(tmp_path) == {}
    x[3, 1, 0] = -np.inf
    np.savez(tmp_path / "val_windows.npz", x=x, subjects=list("ddecc"), **common)
    assert failed(tmp_path) == {
        "val: finite": "rows with infinity: 3",
        "splits: no subject in two": "in two splits: c (train, val)",
    }


def test_subjects_that_are_not_said_are_not_called_disjoint(tmp_path):
    x = np.zeros((5, 2, 30), np.float32)
    for split in ("train", "val"):
        np.savez(tmp_path / f"{split}_windows.npz", x=x, channels=["PPG", "ECG"], sfreq=125.0)
    (measured,) = [check.measured for check in check_store(tmp_path) if "subject" in check.name]
    assert "unknown in train, val" in measured


def test_a_directory_without_windows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no windows for split 'train'"):
        check_store(tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        splits_in(tmp_path / "typo")


def test_a_summary_holds_what_numpy_finds_in_the_files(built):
    summary = inspect_store(built / "train")
    arrays = [np.load(path) for path in sorted((built / "train").glob("*.npz"))]
    quality = np.concatenate([archive["quality"] for archive in arrays])
    assert summary.windows == len(quality) == 24 - total(summary.dropped)
    assert (summary.cases, summary.subjects, summary.candidates) == (2, 2, 24)
    assert summary.hours == pytest.approx(summary.windows / 360)
    assert (summary.channels, summary.window_seconds, summary.synthetic) == (("PPG", "ECG"), 10.0, True)
    for column, channel in enumerate(summary.channels):
        expected = np.quantile(quality[:, column].astype(float), QUANTILES)
        np.testing.assert_allclose(summary.quality[channel], expected)
    assert set(summary.rejected) == {"PPG", "ECG"}
    assert splits_in(built) == ["train", "val", "test"]


def test_a_summary_of_an_unfinished_store_is_an_error(tmp_path):
    running = building(tmp_path)
    next(running)
    running.close()
    with pytest.raises(DataError, match=r"no such file; .*`biofound windows`"):
        inspect_store(tmp_path / "train")
