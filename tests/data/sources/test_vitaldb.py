import gzip
import hashlib
import json
import pickle
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import vitaldb

from biofound.data.sources.registry import CASE_SETS, open_source
from biofound.data.sources.vitaldb import _TABLES, VitalDBSource, VitalFilesSource
from biofound.errors import DataError, SettingsError
from tests.data.sources.test_vital_file import ECG, ECG_II, PLETH, PPG, wander
from tests.data.sources.vitaldb_server import Fault, Wave, serving, write_vital

BIS = sorted(vitaldb.caseids_bis)[:4]
NO_BIS = min(set(range(1, 6389)) - vitaldb.caseids_bis)
SUBJECTS = {BIS[0]: 5955, BIS[1]: 2487, BIS[2]: 5955, BIS[3]: 77, NO_BIS: 88}
BOTH = (PLETH, ECG_II, "Solar8000/HR")
TRACKS = dict.fromkeys(SUBJECTS, BOTH) | {BIS[3]: (ECG_II, "Solar8000/HR")}
CHANNELS = (PPG, ECG)
HEART = wander(6), wander(6, seed=1)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of one whole case: 500 Hz, a gap in the PPG, packed."""
    pleth = HEART[0].copy()
    pleth[700:900] = np.nan
    waves = [Wave(name=PLETH, samples=pleth, unit=""), Wave(name=ECG_II, samples=HEART[1])]
    return write_vital(tmp_path_factory.mktemp("case") / "1.vital", waves).read_bytes()


@pytest.fixture
def server(content):
    with serving() as running:
        running.add_tables(SUBJECTS, TRACKS, compressed=True)
        for case_id in SUBJECTS:
            running.add_case(case_id, content)
        yield running


def source(server, cache, **settings):
    patience = {"timeout_s": 5.0, "retries": 2, "backoff_s": 0.01, "case_set": "bis"}
    return VitalDBSource(base_url=server.url, cache_dir=cache, **(patience | settings))


def case_ids(cases):
    return [case.case_id for case in cases]


# VitalDB


def test_eligible_are_the_cases_of_the_set_that_have_every_channel(server, tmp_path):
    assert case_ids(source(server, tmp_path).cases(CHANNELS)) == sorted(map(str, BIS[:3]))
    everything = source(server, tmp_path, case_set="all")
    assert case_ids(everything.cases(CHANNELS)) == sorted(map(str, [*BIS[:3], NO_BIS]))
    assert case_ids(everything.cases([ECG])) == sorted(map(str, [*BIS, NO_BIS]))
    assert server.asked == {"/cases": 1, "/trks": 1}
    assert {headers["Accept-Encoding"] for headers in server.headers} == {"gzip"}


def test_a_patient_with_several_cases_has_one_subject_id(server, tmp_path):
    cases = source(server, tmp_path, case_set="all").cases([ECG])
    assert {case.case_id: case.subject_id for case in cases} == {str(c): str(s) for c, s in SUBJECTS.items()}


def test_cases_have_their_tracks_and_the_length_that_the_clinical_table_gives(server, tmp_path):
    first = source(server, tmp_path).cases(CHANNELS)[0]
    assert first.tracks == BOTH
    assert first.duration_s == 100.0 + int(first.case_id)


def test_a_case_unknown_to_the_clinical_table_has_no_subject(server, tmp_path):
    server.add_tables({BIS[0]: 1}, {BIS[0]: BOTH, BIS[1]: BOTH})
    subjects = {case.case_id: case.subject_id for case in source(server, tmp_path).cases(CHANNELS)}
    assert subjects == {str(BIS[0]): "1", str(BIS[1]): None}


@pytest.mark.parametrize("case_set", [name for name in CASE_SETS if name != "all"])
def test_every_case_set_is_the_packages(server, tmp_path, case_set):
    expected = getattr(vitaldb, f"caseids_{case_set}")
    every = range(1, 6389)
    server.add_tables({case: case for case in every}, dict.fromkeys(every, BOTH))
    found = source(server, tmp_path, case_set=case_set).cases(CHANNELS)
    assert {int(case.case_id) for case in found} == expected
    assert case_ids(found) == sorted(case_ids(found))


def test_no_eligible_case_is_an_error_with_the_counts(server, tmp_path):
    nowhere = replace(PPG, name="ACC_X", tracks=("WATCH/ACC_X",))
    with pytest.raises(DataError, match=r" 5 cases.* 5, .*bis 4 .*WATCH/ACC_X"):
        source(server, tmp_path).cases([nowhere])


def test_a_case_is_read_at_its_native_rate_with_its_gaps_on_one_clock(server, tmp_path):
    recording = source(server, tmp_path).read(str(BIS[0]), CHANNELS)
    ppg, ecg = recording.signals["PPG"], recording.signals["ECG"]
    assert (ppg.sfreq, ecg.sfreq, ecg.unit) == (500.0, 500.0, "mV")
    assert ppg.samples.dtype == np.float32
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(ppg.samples)), np.arange(700, 900))
    assert np.nanmax(np.abs(ppg.samples - HEART[0])) <= 0.01
    assert np.abs(ecg.samples - HEART[1]).max() <= 0.01


def test_another_rate_than_the_data_sets_is_refused(server, tmp_path):
    waves = [Wave(name=PLETH, samples=wander(60, sfreq=1), sfreq=1.0), Wave(name=ECG_II, samples=HEART[1])]
    server.add_case(BIS[0], write_vital(tmp_path / "slow.vital", waves).read_bytes())
    with pytest.raises(DataError, match=rf"case {BIS[0]}, channel PPG, .* 500 Hz.* 1 Hz"):
        source(server, tmp_path).read(str(BIS[0]), CHANNELS)


def test_a_track_that_the_list_promises_but_the_file_lacks_is_an_error(server, tmp_path):
    lacking = write_vital(tmp_path / "lacking.vital", [Wave(name=PLETH, samples=HEART[0])])
    server.add_case(BIS[0], lacking.read_bytes())
    with pytest.raises(DataError, match=rf"case {BIS[0]}, channel ECG: .*{ECG_II}"):
        source(server, tmp_path).read(str(BIS[0]), CHANNELS)


@pytest.mark.parametrize("kind", ["cut", "cut-unnoticed", "corrupt", "short-length"])
@pytest.mark.parametrize("path", ["/cases", "/trks", f"/1.0.1/{BIS[0]}.vital"])
def test_nothing_incomplete_is_ever_taken_for_the_whole(server, tmp_path, kind, path):
    server.misbehave(path, Fault(kind=kind))
    expected_bytes = server.files[path]
    opened = source(server, tmp_path)
    assert len(opened.cases(CHANNELS)) == 3
    opened.read(str(BIS[0]), CHANNELS)
    assert server.asked[path] == 2
    name = Path(path).name if path.endswith(".vital") else f"{path[1:]}.csv"
    assert next(p for p in tmp_path.rglob(name)).read_bytes() == expected_bytes
    assert not list(tmp_path.rglob("*.partial"))


def test_a_case_that_the_server_lacks_is_an_error_that_names_it(server, tmp_path):
    del server.files[f"/1.0.1/{BIS[1]}.vital"]
    opened = source(server, tmp_path)
    with pytest.raises(DataError, match=rf"case {BIS[1]}: .*404"):
        opened.read(str(BIS[1]), CHANNELS)
    assert opened.read(str(BIS[0]), CHANNELS).case_id == str(BIS[0])


def test_a_sign_in_page_is_not_taken_for_a_table(server, tmp_path):
    server.misbehave("/cases", *[Fault(kind="not-the-file")] * 3)
    with pytest.raises(DataError, match=r"the clinical table.*caseid, subjectid.*<html>"):
        source(server, tmp_path).cases(CHANNELS)


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("/trks", "caseid,tname,tid\n1,SNUADC/PLETH,x\n2\n", r"track list .*line 3: .*'2'"),
        ("/trks", "caseid,tname,tid\n../1,SNUADC/PLETH,x\n", r"track list .*line 2: .*\.\./1"),
        ("/cases", "caseid,subjectid\n1,2\n\u00b2,2\n", r"clinical table .*line 3: .*\u00b2"),
        ("/cases", "caseid,age,subjectid\n1,2\n", r"clinical table .*line 2: .*subjectid"),
        ("/cases", "caseid,subjectid\n1,\0" + "2" * 200_000, r"clinical table .*damaged"),
        ("/cases", "caseid,subjectid\n", "clinical table.* no rows"),
        ("/cases", "caseid,subjectid\n1,2\n1,3\n", "clinical table lists case 1 twice"),
    ],
)
def test_a_table_with_rows_that_cannot_be_is_one_error(server, tmp_path, path, text, words):
    server.files[path] = gzip.compress(text.encode())
    with pytest.raises(DataError, match=words):
        source(server, tmp_path, retries=0).cases(CHANNELS)


def test_lengths_that_cannot_be_are_not_known(server, tmp_path):
    ends = dict(zip(BIS, ["1e999", "nan", "-5", "9e9"], strict=True)) | {NO_BIS: "7200"}
    rows = "".join(f"{case},1,0,{end}\n" for case, end in ends.items())
    server.files["/cases"] = gzip.compress(f"caseid,subjectid,casestart,caseend\n{rows}".encode())
    cases = source(server, tmp_path, case_set="all").cases([ECG])
    assert {case.case_id: case.duration_s for case in cases} == dict.fromkeys(map(str, BIS)) | {
        str(NO_BIS): 7200.0
    }


def test_a_table_that_unpacks_without_end_is_refused(server, tmp_path, monkeypatch):
    columns = ("caseid", "subjectid")
    monkeypatch.setitem(_TABLES, "cases", ("the clinical table", columns, 10_000))
    server.files["/cases"] = gzip.compress(b"caseid,subjectid\n" + b"1,1\n" * 5000)
    with pytest.raises(DataError, match=r"clinical table .*more than 10000 bytes"):
        source(server, tmp_path, retries=0).cases(CHANNELS)


def test_the_cost_of_sets_of_cases_is_that_of_their_hours_and_tracks(server, tmp_path, content):
    hours = dict(zip(BIS, [1, 2, 3, None], strict=True)) | {NO_BIS: 6}
    rows = "".join(f"{case},1,0,{3600 * h if h else ''}\n" for case, h in hours.items())
    server.files["/cases"] = gzip.compress(f"caseid,subjectid,casestart,caseend\n{rows}".encode())
    opened = source(server, tmp_path)
    costs = opened.costs([ECG])
    # Two waves of 500 Hz and a number, but one wave in the case of unknown length, which counts as the mean.
    both, one = 2 * 500 * 1.0 + 4, 500 * 1.0 + 4
    bytes_of = {"bis": 3600 * (6 * both + 2 * one), "all": 3600 * (12 * both + 3 * one)}
    for name, (cases, total) in {"bis": (4, 8), "all": (5, 15)}.items():
        assert (costs[name].cases, costs[name].hours) == (cases, total)
        assert costs[name].download_bytes == pytest.approx(bytes_of[name])
        assert costs[name].window_bytes == total * 3600 * 125 * 2
        assert costs[name].download_seconds == pytest.approx(bytes_of[name] / 10e6)
    assert costs["fasttrack"] == costs["bis"]  # fewer than 70 cases
    assert not any(case.endswith(".vital") for case in server.asked)
    opened.fetch(str(BIS[0]))  # an hour, which says how large files are
    assert opened.costs([ECG])["bis"].download_bytes == pytest.approx(
        bytes_of["bis"] * len(content) / (3600 * both)
    )


def test_fasttrack_costs_seventy_cases(server, tmp_path):
    every = sorted(vitaldb.caseids_bis)[:140]
    server.add_tables(dict.fromkeys(every, 1), dict.fromkeys(every, BOTH))
    costs = source(server, tmp_path).costs([ECG])
    assert costs["fasttrack"].cases == 70 and costs["bis"].cases == 140
    assert costs["fasttrack"].download_bytes == pytest.approx(costs["bis"].download_bytes / 2)


def test_a_damaged_file_in_the_cache_is_fetched_again(server, tmp_path):
    opened = source(server, tmp_path)
    path = opened.fetch(str(BIS[0]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])  # as a copy of the cache that was interrupted leaves it
    assert opened.fetch(str(BIS[0])).read_bytes() == whole
    assert server.asked[f"/1.0.1/{BIS[0]}.vital"] == 2


def test_a_cache_copied_without_its_records_is_checked_not_downloaded(server, tmp_path):
    opened = source(server, tmp_path / "here")
    digest = opened.fingerprint(str(BIS[0]))
    copied = tmp_path / "there" / "1.0.1" / f"{BIS[0]}.vital"
    copied.parent.mkdir(parents=True)
    copied.write_bytes(opened.fetch(str(BIS[0])).read_bytes())
    assert source(server, tmp_path / "there").fingerprint(str(BIS[0])) == digest
    assert server.asked[f"/1.0.1/{BIS[0]}.vital"] == 1


def test_a_directory_in_place_of_a_record_is_no_record(server, tmp_path):
    opened = source(server, tmp_path)
    record = opened.fetch(str(BIS[0])).with_suffix(".json")
    record.unlink()
    record.mkdir()
    with pytest.raises(DataError, match=r"cache .* cannot be written"):
        opened.fetch(str(BIS[0]))


def test_the_fingerprint_follows_the_file(server, tmp_path, content):
    other = write_vital(tmp_path / "other.vital", [Wave(name=PLETH, samples=HEART[1])]).read_bytes()
    server.add_case(BIS[1], other)
    opened = source(server, tmp_path)
    same, different = opened.fingerprint(str(BIS[0])), opened.fingerprint(str(BIS[1]))
    assert same != different
    assert opened.fingerprint(str(BIS[2])) == same
    path = opened.fetch(str(BIS[0]))
    path.write_bytes(other)
    assert opened.fingerprint(str(BIS[0])) == different


def test_a_removed_file_is_downloaded_again_to_be_read_but_not_to_be_told_apart(server, tmp_path):
    opened = source(server, tmp_path)
    digest = opened.fingerprint(str(BIS[0]))
    opened.fetch(str(BIS[0])).unlink()
    assert opened.fingerprint(str(BIS[0])) == digest
    assert server.asked[f"/1.0.1/{BIS[0]}.vital"] == 1
    opened.read(str(BIS[0]), CHANNELS)
    assert server.asked[f"/1.0.1/{BIS[0]}.vital"] == 2


def test_a_download_is_checked_once(server, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(
        "biofound.data.sources.vitaldb.check_complete", lambda path, what: checked.append(path.name)
    )
    opened = source(server, tmp_path)
    opened.read(str(BIS[0]), CHANNELS)
    opened.fingerprint(str(BIS[0]))
    assert len(checked) == 1 and checked[0].endswith(".partial")


def test_many_who_find_one_damaged_file_download_it_once(server, tmp_path):
    opened = source(server, tmp_path)
    path = opened.fetch(str(BIS[0]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    server.delay_s = 0.1
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(opened.fingerprint, [str(BIS[0])] * 8))
    assert set(found) == {hashlib.sha256(whole).hexdigest()}
    assert server.asked[f"/1.0.1/{BIS[0]}.vital"] == 2


@pytest.mark.parametrize("look", [1, 2])
def test_a_file_that_another_process_takes_away_after_any_look_is_downloaded_again(
    server, tmp_path, monkeypatch, look
):
    opened = source(server, tmp_path)
    path = opened.fetch(str(BIS[0]))
    whole = path.read_bytes()
    stat = Path.stat

    def gone(self, **how):
        status = stat(self, **how)
        if self == path:
            looks.append(path)
            if len(looks) == look:
                path.unlink()  # just after it was seen
        return status

    looks = []
    path.write_bytes(whole[:-100])
    monkeypatch.setattr(Path, "stat", gone)
    assert opened.fingerprint(str(BIS[0])) == hashlib.sha256(whole).hexdigest()
    assert len(looks) >= look


def test_the_version_follows_the_tables_not_how_they_are_sent(server, tmp_path):
    one = source(server, tmp_path / "a").version()
    server.encodings.clear()
    server.add_tables(SUBJECTS, TRACKS, compressed=False)
    assert source(server, tmp_path / "b").version() == one
    server.add_tables(SUBJECTS | {BIS[0]: 1}, TRACKS)
    assert source(server, tmp_path / "c").version() != one


def test_a_source_describes_and_pickles_itself(server, tmp_path):
    opened = source(server, tmp_path, at_once=2)
    opened.cases(CHANNELS)
    description = json.loads(json.dumps(opened.describe()))
    twin = open_source(**description)
    assert twin.describe() == opened.describe()
    patient = source(server, tmp_path, at_once=1, timeout_s=99.0, retries=9, backoff_s=9.0)
    assert patient.describe() == description  # what is read does not depend on how patiently
    pickled = pickle.dumps(opened)
    assert len(pickled) < 2000  # without the tables
    assert pickle.loads(pickled).cases(CHANNELS) == opened.cases(CHANNELS)


def test_another_version_of_the_data_set_lies_apart_in_the_cache(server, tmp_path, content):
    server.add_case(BIS[0], content, version="2.0.0")
    newer = source(server, tmp_path, dataset_version="2.0.0")
    assert newer.fetch(str(BIS[0])) == tmp_path / "2.0.0" / f"{BIS[0]}.vital"
    assert newer.version().startswith("2.0.0-")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"case_set": "biss"}, "bis, ppf.*biss"), ({"base_url": "ftp://x"}, "http.*ftp://x")],
)
def test_bad_settings_are_refused_at_once(tmp_path, settings, words):
    with pytest.raises(SettingsError, match=words):
        VitalDBSource(cache_dir=tmp_path, **settings)


def test_a_case_id_cannot_lead_out_of_the_cache(server, tmp_path):
    with pytest.raises(DataError, match=r"case ../../etc/passwd: "):
        source(server, tmp_path).read("../../etc/passwd", CHANNELS)
    assert not server.asked


def test_patience_and_the_number_of_downloads_at_a_time_are_settings(server, tmp_path):
    server.misbehave("/cases", Fault(kind="retry-after", value="86400"))
    opened = source(server, tmp_path, longest_wait_s=0.01, timeout_s=0.3, retries=1, at_once=3)
    opened.cases(CHANNELS)
    server.delay_s = 0.1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(opened.fetch, map(str, SUBJECTS)))
    assert server.most_at_once == 3
    server.add_case(9000, b"")
    server.delay_s = 1.0
    started = time.monotonic()
    with pytest.raises(DataError, match=r"case 9000: .*timed out"):
        opened.fetch("9000")
    assert time.monotonic() - started < 1.5


# What the package's own functions do with the same server


def test_a_case_cut_on_its_way_is_fetched_again_where_the_package_reads_on_in_silence(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(vitaldb.dataset, "api_url", server.url)
    waves = [Wave(name=name, samples=wander(60)) for name in (PLETH, ECG_II)]
    path = server.add_case(BIS[0], write_vital(tmp_path / "a.vital", waves, packed=False).read_bytes())

    server.misbehave(path, Fault(kind="cut"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the garbage collector
        naive = vitaldb.load_case(BIS[0], [PLETH, ECG_II], 1 / 500)
    assert len(naive) == 30_000 and np.isnan(naive).mean() > 0.4

    server.misbehave(path, Fault(kind="cut"))
    ours = source(server, tmp_path / "cache").read(str(BIS[0]), CHANNELS)
    for signal in ours.signals.values():
        assert len(signal.samples) == 30_000 and np.isfinite(signal.samples).all()


# Directories of .vital files


@pytest.fixture
def directory(tmp_path, content):
    root = tmp_path / "vital"
    for name in ("b.vital", "ward/a.vital", "ward/c.vital"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_vital(root / "only_ppg.vital", [Wave(name=PLETH, samples=HEART[0])])
    return root


def test_files_with_every_channel_are_cases_without_a_known_subject(directory):
    found = VitalFilesSource(root=directory).survey(CHANNELS)
    cases = found.usable()
    assert case_ids(cases) == ["b", "ward__a", "ward__c"]
    assert found.left_out == {"only_ppg": ("ECG",)}
    assert {case.subject_id for case in cases} == {None}
    assert cases[0].duration_s == 5.6  # of signal in the PPG, which has a gap; its file spans eight


def test_a_file_is_read_like_a_case_of_vitaldb(directory, server, tmp_path):
    ours = VitalFilesSource(root=directory).read("ward__a", CHANNELS)
    theirs = source(server, tmp_path / "cache").read(str(BIS[0]), CHANNELS)
    for name in ("PPG", "ECG"):
        np.testing.assert_array_equal(ours.signals[name].samples, theirs.signals[name].samples)


@pytest.mark.parametrize("column", ["file", "record"])
def test_subjects_come_from_a_table_and_are_unknown_where_it_has_none(directory, tmp_path, column):
    table = tmp_path / "who.csv"
    table.write_text(f"{column},subject\nb.vital,anna\nward/a,bert\nonly_ppg,carl\n")
    opened = VitalFilesSource(root=directory, subjects_csv=table)
    assert {c.case_id: c.subject_id for c in opened.cases(CHANNELS)} == {
        "b": "anna",
        "ward__a": "bert",
        "ward__c": None,
    }
    (directory / "subjects.csv").write_bytes(table.read_bytes())
    assert VitalFilesSource(root=directory).cases(CHANNELS) == opened.cases(CHANNELS)


def test_a_file_is_a_subject_on_the_users_word_only(directory):
    cases = VitalFilesSource(root=directory, record_is_subject=True).cases(CHANNELS)
    assert [case.subject_id for case in cases] == ["b", "ward__a", "ward__c"]
    (directory / "subjects.csv").write_text("file,subject\nb,anna\n")
    with pytest.raises(SettingsError, match=r"subjects\.csv.*record_is_subject"):
        VitalFilesSource(root=directory, record_is_subject=True)


def test_two_subjects_of_one_file_are_refused(directory, tmp_path):
    table = tmp_path / "who.csv"
    table.write_text("record,subject\nw/a,anna\nw__a.vital,bert\n")
    with pytest.raises(DataError, match=r"who\.csv:3: .*w__a.*anna.*bert"):
        VitalFilesSource(root=directory, subjects_csv=table)


def test_a_damaged_file_is_refused_by_name_when_listed_and_when_read(directory):
    opened = VitalFilesSource(root=directory)
    path = directory / "ward" / "c.vital"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"case ward__c: .*c\.vital"):
        opened.cases(CHANNELS)
    assert case_ids(opened.survey(CHANNELS).usable(skip_failed=True)) == ["b", "ward__a"]
    with pytest.raises(DataError, match=r"case ward__c: .*c\.vital"):
        opened.read("ward__c", CHANNELS)


def test_a_directory_without_usable_files_is_refused(directory, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        VitalFilesSource(root=tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=f"{empty}: .*vital"):
        VitalFilesSource(root=empty).cases(CHANNELS)
    (directory / "b.vital").unlink()
    for name in ("a", "c"):
        (directory / "ward" / f"{name}.vital").unlink()
    with pytest.raises(DataError, match=r"1 \.vital files.*SNUADC/PLETH"):
        VitalFilesSource(root=directory).cases(CHANNELS)
    with pytest.raises(DataError, match=f"case zz: {directory}"):
        VitalFilesSource(root=directory).read("zz", CHANNELS)


def test_two_files_of_one_case_id_are_refused(directory, content):
    (directory / "ward__a.vital").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.vital.*a\.vital.*case ward__a"):
        VitalFilesSource(root=directory).cases(CHANNELS)


def test_a_directory_describes_itself_and_its_fingerprints_follow_the_files(directory, content):
    opened = VitalFilesSource(root=directory, record_is_subject=True)
    twin = open_source(**json.loads(json.dumps(opened.describe())))
    assert twin.describe() == opened.describe()
    version, digest = opened.version(), opened.fingerprint("b")
    assert opened.fingerprint("ward__a") == digest
    (directory / "b.vital").write_bytes(gzip.compress(gzip.decompress(content)))
    assert opened.fingerprint("b") != digest
    assert VitalFilesSource(root=directory, record_is_subject=True).version() != version
