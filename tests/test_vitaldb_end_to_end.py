"""From VitalDB's server to windows: `prepare` and `windows` as commands, whatever the server does.

The server is the loopback one of `tests/data/sources/vitaldb_server.py`; its `.vital` files are written by
the `vitaldb` package's own writer from recordings of the synthetic cohort.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vitaldb

from biofound.data.integrity import check_store
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.sources.vitaldb import VitalDBSource
from tests.chain import run
from tests.data.cohort import CHANNELS, bytes_of
from tests.data.sources.vitaldb_server import FLOAT, WORD, Fault, Server, Wave, serving, write_vital

BIS = sorted(vitaldb.caseids_bis)
NO_BIS = sorted(set(range(1, 6389)) - vitaldb.caseids_bis)
PLETH, ECG_II = "SNUADC/PLETH", "SNUADC/ECG_II"
BOTH = ("Solar8000/HR", PLETH, "SNUADC/ECG_V5", ECG_II)

# With seed 42 patient 2 is for validation, 10 for the test, the others for training.
PATIENTS = [1, 2, 3, 2, 10, 4, 3, 5, 10, 2]
SUBJECTS = dict(zip(BIS, PATIENTS, strict=False)) | {NO_BIS[0]: 6, NO_BIS[1]: 10}
WITHOUT_PLETH = BIS[7]
TRACKS = dict.fromkeys(SUBJECTS, BOTH) | {WITHOUT_PLETH: (ECG_II, "Solar8000/HR")}
ELIGIBLE = [case for case in BIS[: len(PATIENTS)] if case != WITHOUT_PLETH]
TRAIN = [case for case in ELIGIBLE if SUBJECTS[case] not in (2, 10)]


def file_of(case: int) -> str:
    return f"/1.0.1/{case}.vital"


def waves_of(number: int) -> list[Wave]:
    """The waves of one patient: gaps, two formats, a track that nobody asked for, another device's PLETH."""
    made = SyntheticSource(seed=5, subjects=4, minutes=0.7, artefacts=0.0)
    signals = made.read(f"syn{1 + number % 4:04d}_1", CHANNELS).signals
    pleth, ecg = (signals[name].samples.astype(np.float64) for name in ("PPG", "ECG"))
    pleth[6000:9000] = np.nan
    fmt = FLOAT if number % 2 else WORD
    return [
        Wave(name="BSNUADC/PLETH", samples=ecg, sfreq=500.0),
        Wave(name=PLETH, samples=pleth * 50, unit="", start_s=0.1 + 0.1 * number),
        Wave(name="SNUADC/ECG_V5", samples=ecg[::2], sfreq=250.0, gain=1e-3, offset=-5.0),
        Wave(name=ECG_II, samples=ecg, fmt=fmt, gain=1e-3, offset=-5.0),
    ]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """A `.vital` file for each case, packed as VitalDB's are or in packets of a second."""
    directory = tmp_path_factory.mktemp("recordings")
    return {
        case: write_vital(directory / f"{case}.vital", waves_of(n), packed=n % 3 > 0).read_bytes()
        for n, case in enumerate(SUBJECTS)
    }


@pytest.fixture
def server(recordings: Mapping[int, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # A program that waits for a server is right to; a test has no time.
    monkeypatch.setitem(VitalDBSource.__init__.__kwdefaults__, "backoff_s", 0.01)
    monkeypatch.setitem(VitalDBSource.__init__.__kwdefaults__, "timeout_s", 1.0)
    with serving() as running:
        running.add_tables(SUBJECTS, TRACKS, compressed=True)
        for case, content in recordings.items():
            running.add_case(case, content)
        monkeypatch.setenv("BIOFOUND_VITALDB_URL", running.url)
        yield running


def invoke(*arguments: object, exit_code: int = 0) -> tuple[Any, str]:
    """What a command says on standard output (JSON, or None) and on standard error."""
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.stderr
    return json.loads(result.stdout) if result.stdout else None, result.stderr


def prepare(directory: Path, *more: object, **kwargs: Any) -> tuple[Any, str]:
    arguments = ("--source", "vitaldb", "--mode", "full", "--cache-dir", directory / "cache")
    return invoke("prepare", *arguments, "--output", directory, *more, **kwargs)


def windows(directory: Path, *more: object, outdir: str = "store", **kwargs: Any) -> tuple[Any, str]:
    arguments = ("--split-file", directory / "splits_full.json", "--outdir", directory / outdir)
    return invoke("windows", *arguments, "--workers", 1, *more, **kwargs)


def cases_of(directory: Path) -> dict[int, tuple[str, str]]:
    """Case to its split and subject, from the splits file."""
    splits = json.loads((directory / "splits_full.json").read_text())["splits"]
    return {
        int(case["case_id"]): (name, case["subject_id"]) for name, cases in splits.items() for case in cases
    }


def without_index(directory: Path) -> dict[str, bytes]:
    """A store's bytes but for the indices, which name the server and the cache."""
    return {name: content for name, content in bytes_of(directory).items() if "index" not in name}


@pytest.fixture(scope="module")
def undisturbed(
    recordings: Mapping[int, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The store as a server without faults gives it."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with serving() as running:
        running.add_tables(SUBJECTS, TRACKS)
        for case, content in recordings.items():
            running.add_case(case, content)
        prepare(directory, "--vitaldb-url", running.url)
        summary, _ = windows(directory)
        assert {split["cases"] for split in summary.values()} == {4, 3, 2}
    return without_index(directory / "store")


def test_a_misbehaving_server_gives_the_windows_of_a_good_one(
    server: Server, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    server.misbehave("/cases", Fault(kind="status", value=500), Fault(kind="cut"), Fault(kind="corrupt"))
    server.misbehave("/trks", Fault(kind="retry-after", value="0"), Fault(kind="cut-unnoticed"))
    faults = [
        (Fault(kind="cut"), Fault(kind="status", value=500)),
        (Fault(kind="retry-after", value="1"),),
        (Fault(kind="corrupt"), Fault(kind="cut-unnoticed")),
        (Fault(kind="short-length"),),
        (Fault(kind="status", value=503), Fault(kind="not-the-file")),
        (Fault(kind="silent", value=1.2),),
        (Fault(kind="crawl", value=0.001),),
    ]
    for case, misbehaviour in zip(ELIGIBLE, faults, strict=False):
        server.misbehave(file_of(case), *misbehaviour)
    prepare(tmp_path)
    summary, _ = windows(tmp_path, "--workers", 2)
    assert without_index(tmp_path / "store") == undisturbed
    assert not [fault for waiting in server.faults.values() for fault in waiting]
    assert server.most_at_once <= 4
    assert not list(tmp_path.rglob("*.partial"))
    assert [check for check in check_store(tmp_path / "store") if not check.passed] == []
    for split in summary.values():
        assert split["windows"] > 0 and not split["synthetic"]
        assert split["dropped"]["gap"] == {"PPG": split["cases"] * 2}


def test_with_a_warm_cache_no_network_is_needed(
    server: Server, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    prepare(tmp_path)
    windows(tmp_path)
    asked = dict(server.asked)
    assert set(asked) == {"/cases", "/trks", *map(file_of, ELIGIBLE)}
    assert set(asked.values()) == {1}
    splits = (tmp_path / "splits_full.json").read_text()
    unreachable = ("--vitaldb-url", "http://127.0.0.1:9")
    prepare(tmp_path, *unreachable)
    assert (tmp_path / "splits_full.json").read_text() == splits.replace(server.url, unreachable[1])
    windows(tmp_path, *unreachable, outdir="again")
    assert without_index(tmp_path / "again") == undisturbed
    assert dict(server.asked) == asked


@pytest.mark.parametrize("skip", [False, True])
def test_cases_that_cannot_be_had_are_listed_and_skipped_only_when_allowed(
    server: Server, recordings: Mapping[int, bytes], tmp_path: Path, undisturbed: dict[str, bytes], skip: bool
) -> None:
    gone, lacking = TRAIN[0], TRAIN[1]
    del server.files[file_of(gone)]
    only_ecg = write_vital(tmp_path / "lacking.vital", waves_of(lacking)[-1:])
    server.add_case(lacking, only_ecg.read_bytes())
    prepare(tmp_path)
    summary, said = windows(tmp_path, *(["--skip-failed"] if skip else []), exit_code=0 if skip else 1)
    assert f"case {gone}: {server.url}{file_of(gone)} answered 404" in said
    assert f"case {lacking}, channel PPG: " in said and PLETH in said
    assert said.count(f"case {gone}") == 1
    failed = sorted([str(gone), str(lacking)])
    expected = {name: content for name, content in undisturbed.items() if Path(name).stem not in failed}
    assert without_index(tmp_path / "store") == expected  # all other cases are done
    index = tmp_path / "store" / "train" / "index.json"
    if not skip:
        assert "2 of 4 cases" in said and "--skip-failed" in said
        assert summary["train"]["failed_cases"] == failed and not index.exists()
        server.add_case(gone, recordings[gone])
        server.add_case(lacking, recordings[lacking])
        (tmp_path / "cache" / "1.0.1" / f"{lacking}.vital").unlink()
        windows(tmp_path)
        assert without_index(tmp_path / "store") == undisturbed
        return
    assert summary["train"]["failed_cases"] == json.loads(index.read_text())["failed_cases"] == failed
    assert [check for check in check_store(tmp_path / "store") if not check.passed] == []


@pytest.mark.slow
def test_windows_killed_while_it_downloads_ends_in_the_same_bytes_and_leaves_nothing_half_done(
    server: Server, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    prepare(tmp_path)
    for case in ELIGIBLE:  # a byte now and then: about a second a case
        server.misbehave(file_of(case), *[Fault(kind="crawl", value=0.01)] * 20)
    arguments = ("--split-file", tmp_path / "splits_full.json", "--outdir", tmp_path / "store")
    command = [sys.executable, "-m", "biofound", "windows", *map(str, arguments), "--workers", "2"]
    moments, half_done = random.Random(0), 0
    for _ in range(4):
        before = sum(server.asked.values())
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
            deadline = time.monotonic() + 60
            while sum(server.asked.values()) == before and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(moments.uniform(0.1, 1.5))
            os.killpg(process.pid, signal.SIGKILL)
        half_done += len(list((tmp_path / "cache").rglob("*.partial")))
    assert half_done > 0
    server.faults.clear()
    windows(tmp_path, "--workers", 2)
    assert without_index(tmp_path / "store") == undisturbed
    assert not list(tmp_path.rglob("*.partial"))


def test_full_says_that_the_case_set_limits_it_unless_all_cases_are_asked_for(
    server: Server, tmp_path: Path
) -> None:
    result, said = prepare(tmp_path)
    assert "5,523" in said and "--case-set all" in said
    assert result["source"]["case_set"] == "bis"
    assert sorted(cases_of(tmp_path)) == ELIGIBLE
    _, said = prepare(tmp_path, "--case-set", "all", "--overwrite")
    assert "--case-set" not in said
    assert sorted(cases_of(tmp_path)) == sorted([*ELIGIBLE, *NO_BIS[:2]])
    _, said = prepare(tmp_path, "--mode", "fasttrack")
    assert "--case-set" not in said
    _, said = prepare(tmp_path, "--case-set", "biss", exit_code=2)
    assert "--case-set" in said and "tiva" in said


def test_no_patient_straddles_and_cases_that_are_added_move_nobody(server: Server, tmp_path: Path) -> None:
    prepare(tmp_path)
    before = cases_of(tmp_path)
    split_of = {subject: split for split, subject in before.values()}
    assert len(set(before.values())) == len(split_of) == 5
    assert split_of["2"] == "val" and split_of["10"] == "test"
    assert sum(subject == "2" for _, subject in before.values()) == 3
    # Case numbers and patients come before, between and after the old ones.
    more = {case: 1 + case % 60 for case in BIS[len(PATIENTS) : 400]} | SUBJECTS
    server.add_tables(more, dict.fromkeys(more, BOTH) | TRACKS)
    for table in ("cases.csv", "trks.csv"):
        (tmp_path / "cache" / table).unlink()
    prepare(tmp_path)
    after = cases_of(tmp_path)
    assert len(after) == 399
    assert {case: after[case] for case in before} == before
    assert len(set(after.values())) == len({subject for _, subject in after.values()}) == 60


def test_windows_warns_when_the_data_set_is_no_longer_that_of_the_splits(
    server: Server, tmp_path: Path
) -> None:
    prepare(tmp_path)
    server.add_tables(SUBJECTS | {BIS[20]: 7}, TRACKS | {BIS[20]: BOTH})
    for table in ("cases.csv", "trks.csv"):
        (tmp_path / "cache" / table).unlink()
    _, said = windows(tmp_path, "--split", "val")
    assert "changed" in said


def test_a_directory_of_vital_files_gives_the_windows_that_vitaldb_gives(
    recordings: Mapping[int, bytes], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    root = tmp_path / "recordings"
    root.mkdir()
    for case in ELIGIBLE:
        (root / f"{case}.vital").write_bytes(recordings[case])
    source = ("prepare", "--source", "vital", "--root", root, "--mode", "full", "--output", tmp_path)
    _, said = invoke(*source, exit_code=1)
    assert "9 of 9 cases" in said
    invoke(*source, "--record-is-subject")
    assert {(str(case), subject) for case, (_, subject) in cases_of(tmp_path).items()} == {
        (str(case), str(case)) for case in ELIGIBLE
    }
    (root / "subjects.csv").write_text(
        "file,subject\n" + "".join(f"{case}.vital,{SUBJECTS[case]}\n" for case in ELIGIBLE)
    )
    invoke(*source, "--overwrite")
    summary, _ = windows(tmp_path)
    store = without_index(tmp_path / "store")
    assert store.keys() == undisturbed.keys()
    for name, content in store.items():
        if name.endswith(".npz"):
            assert content == undisturbed[name]
    assert summary["train"]["dropped"]["gap"] == {"PPG": 8}


def test_a_clock_that_drifts_and_packets_that_contradict_each_other_are_listed(tmp_path: Path) -> None:
    root = tmp_path / "recordings"
    wave = waves_of(0)[3]
    assert wave.samples is not None
    counts = np.full(len(wave.samples) // 50, 50)
    packets = np.split(wave.samples[: counts.sum()], len(counts))
    for name, true in (("drifts", 495.0), ("steady", 500.0)):
        stored = [(50 * k / true, packet) for k, packet in enumerate(packets)]
        if name == "steady":
            stored.append((20.0, packets[7]))
        ecg = Wave(name=ECG_II, packets=stored, gain=1e-3, offset=-5.0)
        write_vital(root / f"{name}.vital", [ecg, replace(ecg, name=PLETH)], packed=False)
    source = ("--source", "vital", "--root", root, "--record-is-subject", "--fractions", "1,0,0")
    invoke("prepare", *source, "--output", tmp_path)
    summary, _ = windows(tmp_path)
    timing = summary["train"]["timing"]
    assert timing["drifts"]["ECG"] == {
        "track": ECG_II,
        "samples": counts.sum(),
        "header_sfreq": 500.0,
        "sfreq": pytest.approx(495.0, rel=1e-6),
        "bridged_samples": 0,
        "overlapping_samples": 0,
        "doubtful_samples": 0,
    }
    assert timing["steady"]["PPG"]["overlapping_samples"] >= 40  # equal samples do not contradict each other
    shown = run("windows", "--inspect", tmp_path / "store").stderr
    assert "drifts" in shown and ECG_II in shown and "495" in shown and "contradicting" in shown


def test_prepare_says_what_vitaldb_costs_before_a_case_is_downloaded(server: Server, tmp_path: Path) -> None:
    answer, _ = prepare(tmp_path)
    costs = answer["costs"]
    assert list(costs) == ["fasttrack", "bis", "all"]
    assert costs["all"]["cases"] == 11 and costs["bis"]["cases"] == 9
    shown = run(
        "prepare", "--source", "vitaldb", "--cache-dir", tmp_path / "cache", "--output", tmp_path
    ).stderr
    assert "download GB" in shown and "fasttrack" in shown
    assert set(server.asked) == {"/cases", "/trks"}


def test_offline_prepare_says_at_once_that_it_tries_again(server: Server, tmp_path: Path) -> None:
    _, said = prepare(tmp_path, "--vitaldb-url", "http://127.0.0.1:9", exit_code=1)
    first = said.splitlines()[0]
    assert "the clinical table: http://127.0.0.1:9/cases could not be downloaded" in said
    assert "up to 5 times, until " in " ".join(said.split()) and "error" not in first
    assert "in 6 attempts" in " ".join(said.split())


def test_tracks_are_listed_with_rates_and_hours_of_signal(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "recordings"
    first, second = waves_of(1)[:2], waves_of(2)[2:]
    write_vital(root / "ward" / "a.vital", first)
    write_vital(root / "b.vital", second)
    (root / "c.vital").write_bytes((root / "b.vital").read_bytes()[:-20])
    arguments = ("--source", "vital", "--root", root, "--list-tracks")
    answer, _ = invoke("prepare", *arguments)
    assert sorted(answer["tracks"]) == ["b", "ward__a"] and list(answer["refused"]) == ["c"]
    pleth = answer["tracks"]["ward__a"][-1]
    assert first[1].samples is not None
    seconds = np.count_nonzero(~np.isnan(first[1].samples)) / 500
    assert pleth == {"name": PLETH, "sfreq": 500.0, "unit": "", "duration_s": pytest.approx(seconds)}
    said = run("prepare", *arguments).stderr
    assert "ward__a" in said and f"{PLETH} 500 Hz" in said and "c.vital is cut short" in said
    assert not list(tmp_path.glob("splits*"))
    answer, _ = prepare(tmp_path, "--list-tracks")
    assert {track["name"]: track["sfreq"] for track in answer["tracks"][str(WITHOUT_PLETH)]} == {
        ECG_II: 500.0,
        "Solar8000/HR": None,
    }


def test_files_without_a_channel_are_left_out_by_name_and_hours_are_hours_of_signal(tmp_path: Path) -> None:
    root = tmp_path / "recordings"
    write_vital(root / "both.vital", [replace(wave, packets=()) for wave in waves_of(1)[1:]])
    write_vital(root / "only_ecg.vital", waves_of(2)[2:])
    source = ("--source", "vital", "--root", root, "--record-is-subject", "--fractions", "1,0,0")
    answer, _ = invoke("prepare", *source, "--output", tmp_path)
    assert answer["left_out"] == {"only_ecg": ["PPG"]}
    pleth = waves_of(1)[1].samples
    assert pleth is not None
    assert answer["splits"]["train"]["hours"] == pytest.approx(np.sum(~np.isnan(pleth)) / 500 / 3600)
    assert "only_ecg" in run("prepare", *source, "--output", tmp_path / "again").stderr
