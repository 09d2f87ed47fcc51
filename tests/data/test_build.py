"""Building a window store: whole, restartable, the same bytes however it was run."""

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from biofound.data.build import FailedCasesError
from biofound.data.integrity import check_store, inspect_store
from biofound.data.sources import survey_recordings
from biofound.data.splits import SplitCase
from biofound.data.store import total
from biofound.data.windows import open_windows
from biofound.errors import DataError, SettingsError
from tests.data.cohort import (
    CHANNELS,
    ECG,
    PPG,
    DeadlySource,
    FailingSource,
    OnceDeadlySource,
    build,
    building,
    bytes_of,
    cohort,
    entries_of,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The bytes of the store of `cohort()`, built at one go in this process."""
    outdir = tmp_path_factory.mktemp("undisturbed")
    build(outdir)
    return bytes_of(outdir)


def like_cohort(kind):
    """The cohort of `cohort()` as another kind of source; for its healthy cases the same bytes."""
    return kind(**{name: value for name, value in cohort().describe().items() if name != "name"})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output error", "a.dat"), "a.dat cannot be read (Input/output error)"),
        (OSError("odd"), "its file cannot be read (odd)"),
        (MemoryError(), "out of memory; give fewer workers, or more memory"),
        (DataError("case syn0002_1: too short"), "too short"),
    ],
    ids=["system", "package", "memory", "ours"],
)
def test_survey_and_build_say_alike_why_a_recording_cannot_be_read(tmp_path, error, reason):
    source = like_cohort(FailingSource)
    source.error = error
    result = next(building(tmp_path, source=source, entries=entries_of(source)[1:2]))
    found = survey_recordings(["syn0002_1"], lambda case_id: source.read(case_id, CHANNELS))
    assert result.error == found.refused["syn0002_1"] == f"case syn0002_1: {reason}"


def statuses(results) -> dict[str, str]:
    return {result.case_id: result.status for result in results}


def failed_checks(outdir: Path) -> list:
    return [check for check in check_store(outdir) if not check.passed]


def index_of(outdir: Path) -> dict:
    return json.loads((outdir / "train" / "index.json").read_text())


def test_a_store_passes_its_own_checks_and_accounts_for_every_window(tmp_path):
    results = build(tmp_path)
    assert set(statuses(results).values()) == {"built"}
    assert failed_checks(tmp_path) == []
    assert len(open_windows(tmp_path, "train")) == sum(result.windows for result in results)
    for result in results:
        assert result.windows + total(result.sidecar.dropped) == result.sidecar.candidates == 12
        assert result.hours == pytest.approx(result.windows * 10 / 3600)
    index = index_of(tmp_path)
    assert index["totals"]["candidates"] == 60
    assert 0 < index["totals"]["windows"] < 60
    assert total(index["dropped"]) == 60 - index["totals"]["windows"]
    assert index["synthetic"] is True and index["source"] == cohort().describe()


def test_two_workers_give_the_bytes_of_one(tmp_path, undisturbed):
    build(tmp_path, workers=2)
    assert bytes_of(tmp_path) == undisturbed


def test_nothing_in_the_store_depends_on_where_it_lies_or_the_order_of_the_cases(tmp_path, undisturbed):
    build(tmp_path / "elsewhere", entries=entries_of(cohort())[::-1])
    assert bytes_of(tmp_path / "elsewhere") == undisturbed


def test_a_second_run_builds_nothing_and_changes_nothing(tmp_path, undisturbed):
    build(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").glob("syn*")}
    assert set(statuses(build(tmp_path)).values()) == {"unchanged"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "train").glob("syn*")} == before
    assert bytes_of(tmp_path) == undisturbed


def damage_npz(directory: Path) -> None:
    path = directory / "syn0002_1.npz"
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_npz,
        lambda directory: (directory / "syn0002_1.npz").unlink(),
        lambda directory: (directory / "syn0002_1.json").unlink(),
        lambda directory: (directory / "syn0002_1.json").write_text("{"),
        lambda directory: (directory / "syn0002_1.json").write_text("[]"),
        lambda directory: os.truncate(directory / "syn0002_1.npz", 1000),
    ],
)
def test_a_damaged_case_is_built_again_and_no_other(tmp_path, undisturbed, damage):
    build(tmp_path)
    damage(tmp_path / "train")
    found = statuses(build(tmp_path))
    assert [case_id for case_id, status in found.items() if status == "built"] == ["syn0002_1"]
    assert bytes_of(tmp_path) == undisturbed


@pytest.mark.parametrize(
    "change",
    [
        {"max_gap_seconds": 0.5},
        {"dtype": "float32"},
        {"window_seconds": 8.0},
        {"sfreq": 100.0},
        {"channels": (ECG, PPG)},
        {"channels": (PPG, replace(ECG, quality_threshold=0.6))},
        {"channels": (PPG, replace(ECG, tracks=("II", "ECG")))},
    ],
)
def test_a_changed_setting_builds_every_case_again_into_what_a_new_store_holds(tmp_path, change):
    build(tmp_path / "old")
    results = build(tmp_path / "old", **change)
    assert set(statuses(results).values()) == {"built"}
    build(tmp_path / "new", **change)
    assert bytes_of(tmp_path / "old") == bytes_of(tmp_path / "new")


SHORT = {"source": cohort(subjects=2, minutes=0.5)}


@pytest.fixture(scope="module")
def short_store(tmp_path_factory):
    outdir = tmp_path_factory.mktemp("short")
    build(outdir, **SHORT)
    return outdir


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dtype": "float32"}, r"dtype \(2 cases\)"),
        ({"channels": (ECG, PPG)}, "channels"),
        ({"channels": (PPG, replace(ECG, tracks=("II", "ECG")))}, "tracks of the channels"),
        ({"entries": entries_of(cohort(subjects=1))}, r"cases \(1 cases\)"),
        ({"source": cohort(subjects=2, minutes=0.5, seed=2)}, "source"),
    ],
)
def test_windows_of_another_build_are_replaced_only_when_told(short_store, tmp_path, change, named, whole):
    outdir = tmp_path / "store"
    shutil.copytree(short_store, outdir)
    if not whole:  # as a killed build leaves it
        (outdir / "train" / "index.json").unlink()
    if whole or named != "source":  # which other cohort it was only the index says
        before = bytes_of(outdir)
        with pytest.raises(DataError, match=rf"train: .*{named}.*--outdir.*--overwrite"):
            building(outdir, **{**SHORT, **change}, overwrite=False)
        assert bytes_of(outdir) == before
    building(outdir, **{**SHORT, **change}, overwrite=True).close()
    more = entries_of(cohort(subjects=3))
    building(outdir, **SHORT, entries=more, overwrite=False).close()  # cases that are added replace nothing


def test_a_changed_source_or_subject_builds_the_case_again(tmp_path):
    build(tmp_path)
    assert set(statuses(build(tmp_path, source=cohort(seed=2))).values()) == {"built"}
    entries = entries_of(cohort(seed=2))
    entries[0] = SplitCase(case_id=entries[0].case_id, subject_id="somebody else")
    found = statuses(build(tmp_path, source=cohort(seed=2), entries=entries))
    assert [case_id for case_id, status in found.items() if status == "built"] == ["syn0001_1"]
    assert "somebody else" in open_windows(tmp_path, "train").subjects


def test_a_case_that_left_the_split_leaves_the_store_and_others_files_stay(tmp_path):
    build(tmp_path / "old")
    (tmp_path / "old" / "train" / "notes.json").write_text('{"mine": true}')
    (tmp_path / "old" / "train" / "deep.json").write_text("[" * 100_000)
    np.savez(tmp_path / "old" / "train" / "mine.npz", x=np.zeros(3))
    (tmp_path / "old" / "train" / "syn0005_1.json").unlink()  # as if killed between npz and sidecar
    entries = entries_of(cohort())[:2]
    build(tmp_path / "old", entries=entries)
    build(tmp_path / "new", entries=entries)
    left = bytes_of(tmp_path / "old")
    assert left.pop("train/notes.json") and left.pop("train/mine.npz") and left.pop("train/deep.json")
    assert left == bytes_of(tmp_path / "new")


def test_what_killed_runs_left_is_swept(tmp_path, undisturbed):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / ".syn0001_1.npz.abcd.partial").write_bytes(b"half")
    build(tmp_path)
    assert bytes_of(tmp_path) == undisturbed


@pytest.mark.parametrize("fewer", [False, True])
def test_the_index_goes_before_anything_changes(tmp_path, fewer):
    build(tmp_path)
    change = {"entries": entries_of(cohort())[:2]} if fewer else {"max_gap_seconds": 0.5}
    running = building(tmp_path, **change)
    assert next(running).status == ("unchanged" if fewer else "built")
    assert not (tmp_path / "train" / "index.json").exists()
    running.close()
    with pytest.raises(DataError, match=r"train: .*index\.json.*`biofound windows`"):
        open_windows(tmp_path, "train")


def test_a_build_that_is_stopped_early_goes_on_where_it_stopped(tmp_path, undisturbed):
    for workers in (1, 2):
        outdir = tmp_path / str(workers)
        running = building(outdir, workers=workers)
        first = next(running)
        running.close()
        assert not [name for name in bytes_of(outdir) if name.endswith(".partial")]
        assert statuses(build(outdir))[first.case_id] == "unchanged"
        assert bytes_of(outdir) == undisturbed


@pytest.mark.parametrize("workers", [1, 2])
def test_failed_cases_end_the_run_after_all_others_are_done(tmp_path, workers):
    source = like_cohort(FailingSource)
    with pytest.raises(FailedCasesError, match=r"1 of 5 (.|\n)*--skip-failed(.|\n)*syn0002_1") as failure:
        build(tmp_path, source=source, workers=workers)
    assert not (tmp_path / "train" / "index.json").exists()
    summary = inspect_store(tmp_path / "train", failure.value.index)
    assert (summary.cases, summary.failed_cases) == (4, ("syn0002_1",)) and summary.windows > 0
    found = statuses(build(tmp_path, source=source, skip_failed=True))
    assert found.pop("syn0002_1") == "failed"
    assert set(found.values()) == {"unchanged"}
    assert index_of(tmp_path)["failed_cases"] == ["syn0002_1"]
    assert len(open_windows(tmp_path, "train").subjects) == 4
    assert failed_checks(tmp_path) == []


def test_a_case_that_fails_now_and_was_built_before_leaves_the_store_when_skipped(tmp_path):
    build(tmp_path)
    build(tmp_path, source=like_cohort(FailingSource), max_gap_seconds=0.5, skip_failed=True)
    assert not list((tmp_path / "train").glob("syn0002_1*"))
    assert failed_checks(tmp_path) == []
    assert len(index_of(tmp_path)["cases"]) == 4


def test_a_failing_source_takes_no_finished_store_away(tmp_path, undisturbed):
    build(tmp_path)
    with pytest.raises(DataError, match="1 of 5 "):
        build(tmp_path, source=like_cohort(GoneSource))
    assert bytes_of(tmp_path) == undisturbed


class GoneSource(type(cohort())):
    """A cohort one case of which can no longer be found."""

    def fingerprint(self, case_id):
        if case_id == "syn0004_1":
            raise DataError(f"case {case_id}: file is gone")
        return super().fingerprint(case_id)


def test_a_worker_that_dies_costs_its_case_and_not_the_run(tmp_path, undisturbed):
    results = build(tmp_path, source=like_cohort(DeadlySource), workers=2, skip_failed=True)
    found = statuses(results)
    assert found.pop("syn0003_1") == "failed"
    assert set(found.values()) <= {"built", "unchanged"}
    (failed,) = [result for result in results if result.status == "failed"]
    assert "syn0003_1" in failed.error
    left = bytes_of(tmp_path)
    assert not [name for name in left if name.endswith(".partial")]
    for name, content in left.items():
        assert name == "train/index.json" or content == undisturbed[name]
    assert len(left) == len(undisturbed) - 2


def test_a_worker_that_is_killed_once_costs_nothing(tmp_path, undisturbed):
    source = like_cohort(OnceDeadlySource)
    source.tombstone = tmp_path / "tombstone"
    build(tmp_path / "store", source=source, workers=2)
    assert source.tombstone.exists()
    assert bytes_of(tmp_path / "store") == undisturbed


def test_a_split_of_which_nothing_is_kept_says_why(tmp_path):
    strict = tuple(replace(channel, quality_threshold=1.0) for channel in CHANNELS)
    noisy = cohort(subjects=2, minutes=0.5, artefacts=20.0)
    with pytest.raises(DataError, match=r"train.* 6 windows .*\w+ \d \((PPG|ECG) \d"):
        build(tmp_path, source=noisy, channels=strict)
    assert not (tmp_path / "train" / "index.json").exists()
    with pytest.raises(DataError, match="shorter than one window"):
        build(tmp_path, window_seconds=600.0)


def test_a_case_of_which_nothing_is_kept_stays_accounted_for(tmp_path):
    source = cohort(subjects=2)
    gone = EmptySource(seed=1, subjects=2, minutes=2.0, artefacts=3.0)
    build(tmp_path, source=gone, entries=entries_of(source))
    index = index_of(tmp_path)
    assert [case["windows"] > 0 for case in index["cases"]] == [False, True]
    assert index["totals"]["candidates"] == 24
    assert failed_checks(tmp_path) == []
    assert open_windows(tmp_path, "train").read(np.array([0])).shape == (1, 2, 1250)
    found = statuses(build(tmp_path, source=gone, entries=entries_of(source)))
    assert set(found.values()) == {"unchanged"}


class EmptySource(type(cohort())):
    """A cohort whose first case holds nothing but a flat line."""

    def read(self, case_id, channels):
        recording = super().read(case_id, channels)
        if case_id == "syn0001_1":
            for signal in recording.signals.values():
                signal.samples[:] = 0.0
        return recording


def hold(directory: Path, ready, done) -> None:
    from biofound.data.build import _only_builder

    with _only_builder(directory):
        ready.set()
        done.wait(30)


def test_two_builds_of_one_store_at_a_time_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=hold, args=(tmp_path / "train", ready, done))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(DataError, match="another"):
            build(tmp_path)
    finally:
        done.set()
        other.join()
    assert set(statuses(build(tmp_path)).values()) == {"built"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dtype": "int16"}, "dtype: .*'int16'"),
        ({"workers": 0}, "workers: .* got 0"),
        ({"window_seconds": 0.0123}, "window_seconds"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_touched(tmp_path, change, complaint):
    with pytest.raises(SettingsError, match=complaint):
        build(tmp_path, **change)
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_cases_or_with_one_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="no cases"):
        build(tmp_path, entries=[])
    with pytest.raises(DataError, match="syn0001_1"):
        build(tmp_path, entries=[*entries_of(cohort()), entries_of(cohort())[0]])


def test_a_disk_that_refuses_ends_the_run(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "syn0001_1.npz").mkdir()  # where the file is to go, something else stands
    with pytest.raises(DataError, match=r"syn0001_1\.npz"):
        build(tmp_path)
