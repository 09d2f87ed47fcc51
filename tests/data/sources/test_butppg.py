"""BUT PPG: samples, tracks, subjects and labels; transposed headers repaired or refused; the fixture."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from biofound.cli import app
from biofound.commands.probe_data import LabelRequest, read_labels
from biofound.data.channels import FINETUNE_CHANNELS
from biofound.data.extract import extract_windows
from biofound.data.labels import WindowTimes, labels_from_butppg
from biofound.data.sources.butppg import ButppgSource
from biofound.data.sources.butppg_fixture import write_fixture
from biofound.data.sources.registry import open_source
from biofound.data.sources.wfdb import import_wfdb
from biofound.data.windows import open_windows
from biofound.errors import DataError
from biofound.settings import resolve_channels

wfdb = import_wfdb()
FIRST, LATER = "100001", "112001"
"""A record of the first release, which has transposed headers and no acceleration, and a later one."""


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects of the second release and one of the first, two records each."""
    root = tmp_path_factory.mktemp("butppg") / "data set"
    write_fixture(root, subjects=2, records=2, transposed=1)
    return root


@pytest.fixture
def root(fixture: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return shutil.copytree(fixture, tmp_path / "butppg")


def channels(directory: Path, **tracks: str):
    """The channels for fine-tuning, none of them required, with other tracks for some."""
    path = directory / "channels.yaml"
    lines = [f"  {name}: {{required: false, tracks: [{track}]}}\n" for name, track in tracks.items()]
    others = [f"  {name}: {{required: false}}\n" for name in FINETUNE_CHANNELS if name not in tracks]
    path.write_text("finetune:\n" + "".join([*lines, *others]))
    return resolve_channels(path, "finetune").channels


def header(root: Path, case_id: str, kind: str) -> Path:
    return root / case_id / f"{case_id}_{kind}.hea"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_samples_are_those_that_wfdb_decodes(fixture: Path, tmp_path: Path) -> None:
    """Of transposed headers it gives one sample of each of 300 or 10,000 signals."""
    source = ButppgSource(root=fixture)
    found = source.read(LATER, channels(tmp_path)).signals
    expected = {
        kind: wfdb.rdrecord(str(fixture / LATER / f"{LATER}_{kind}")).p_signal
        for kind in ("PPG", "ECG", "ACC")
    }
    assert [(found[name].sfreq, len(found[name].samples)) for name in ("PPG", "ECG", "ACC_Z")] == [
        (30.0, 300),
        (1000.0, 10_000),
        (100.0, 1000),
    ]
    np.testing.assert_allclose(found["PPG"].samples, -expected["PPG"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(found["ECG"].samples, expected["ECG"][:, 0], rtol=1e-6)
    for column, name in enumerate(("ACC_X", "ACC_Y", "ACC_Z")):
        np.testing.assert_allclose(found[name].samples, expected["ACC"][:, column], rtol=1e-6)
    green = source.read(LATER, channels(tmp_path, PPG="PPG_G")).signals["PPG"]
    np.testing.assert_allclose(green.samples, expected["PPG"][:, 1], rtol=1e-6)
    early = source.read(FIRST, channels(tmp_path)).signals
    assert set(early) == {"PPG", "ECG"}
    one_sample = wfdb.rdrecord(str(fixture / FIRST / f"{FIRST}_PPG")).p_signal
    assert one_sample.shape == (1, 300)
    np.testing.assert_allclose(early["PPG"].samples, one_sample[0], rtol=1e-6)
    assert len(early["ECG"].samples) == 10_000


def test_repaired_header_gives_the_samples_of_the_one_that_was_right(root: Path, tmp_path: Path) -> None:
    """Only the two numbers of the first line exchanged, here of three signals in one file."""
    source = ButppgSource(root=root)
    table = channels(tmp_path)
    before = source.read(LATER, table).signals
    edit(header(root, LATER, "ACC"), "_ACC 3 100 1000\n", "_ACC 1000 100 3\n")
    edit(header(root, LATER, "ECG"), "_ECG 1 1000 10000\n", "_ECG 10000 1000 1\n")
    after = source.read(LATER, table).signals
    for name in FINETUNE_CHANNELS:
        assert np.array_equal(before[name].samples, after[name].samples)
    survey = source.survey(table)
    assert survey.repaired == {
        "100001": "100001_PPG.hea, 100001_ECG.hea",
        "100002": "100002_PPG.hea, 100002_ECG.hea",
        "112001": "112001_ECG.hea, 112001_ACC.hea",
    }
    assert survey.refused == {} and len(survey.cases) == 6


@pytest.mark.parametrize(
    ("kind", "old", "new", "words"),
    [
        ("ACC", "_ACC 3 100 1000\n", "_ACC 1000 100 1\n", ("1000 signals of 1", "describes 3 signals")),
        ("ACC", "_ACC 3 100 1000\n", "_ACC 999 100 3\n", ("999 signals of 3", "expected 5994")),
        ("ACC", "_ACC 3 100 1000\n", "_ACC 3 100 1001\n", ("3 signals of 1001", "6000 bytes")),
        ("ECG", "_ECG 1 1000 10000\n", "_ECG 1 1000 1\n", ("1 signals of 1 samples",)),
        ("ECG", ".dat 16 ", ".dat 212 ", ("format 16, 32, 61", "212")),
        ("ECG", f"{LATER}_ECG.dat", "../x.dat", ("../x.dat",)),
        ("ECG", f"{LATER}_ECG.dat", "x.dat", ("x.dat is missing",)),
        ("ECG", "/mV", "/kPa", ("channel ECG", "kPa")),
        ("ECG", " 1000 10000\n", " nan 10000\n", ("rate above 0",)),
        ("ECG", " 1000 10000\n", "\n", ("expected a WFDB header",)),
    ],
)
def test_header_that_cannot_be_true_is_refused_among_the_others(
    root: Path, tmp_path: Path, kind: str, old: str, new: str, words: tuple[str, ...]
) -> None:
    edit(header(root, LATER, kind), old, new)
    survey = ButppgSource(root=root).survey(channels(tmp_path))
    assert list(survey.refused) == [LATER] and len(survey.cases) == 5
    for word in words:
        assert word in survey.refused[LATER]
    with pytest.raises(DataError, match=r"1 of 6 recordings cannot be used"):
        survey.usable()


def test_samples_that_contradict_the_checksum_are_refused_unless_told_otherwise(
    root: Path, tmp_path: Path
) -> None:
    data = root / LATER / f"{LATER}_ECG.dat"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(bytes(content))
    table = channels(tmp_path)
    with pytest.raises(DataError, match=r"channel ECG: the samples in 112001_ECG.dat have another checksum"):
        ButppgSource(root=root).read(LATER, table)
    assert (
        len(ButppgSource(root=root, ignore_checksums=True).read(LATER, table).signals["ECG"].samples)
        == 10_000
    )


def test_fingerprint_and_version_change_with_the_files(root: Path) -> None:
    source = ButppgSource(root=root)
    again = open_source(**source.describe())
    assert (again.version(), again.fingerprint(LATER)) == (source.version(), source.fingerprint(LATER))
    before = source.version()
    edit(header(root, LATER, "PPG"), "100(0)", "101(0)")
    assert ButppgSource(root=root).version() != before
    changed = source.fingerprint(LATER)
    assert changed != again.fingerprint(FIRST)
    (root / LATER / f"{LATER}_PPG.dat").write_bytes(bytes(1800))
    assert source.fingerprint(LATER) != changed


def test_each_record_is_one_window_and_its_subject_the_first_three_digits(
    fixture: Path, tmp_path: Path
) -> None:
    table = channels(tmp_path)
    source = ButppgSource(root=fixture)
    survey = source.survey(resolve_channels(None, "finetune").channels)
    assert survey.left_out == dict.fromkeys(["100001", "100002"], ("ACC_X", "ACC_Y", "ACC_Z"))
    cases = source.cases(table)
    assert [(case.case_id, case.subject_id, case.duration_s) for case in cases][::2] == [
        ("100001", "100", 10.0),
        ("112001", "112", 10.0),
        ("113001", "113", 10.0),
    ]
    for case in cases:
        cut = extract_windows(
            source.read(case.case_id, table),
            table,
            sfreq=125.0,
            window_samples=1250,
            max_gap_seconds=1.0,
            dtype="float32",
        )
        assert (cut.candidates, cut.x.shape) == (1, (1, 5, 1250))
        absent = np.isnan(cut.x[0]).all(axis=1)
        assert absent[:3].tolist() == 3 * [case.subject_id == "100"]


def times(*case_ids: str) -> WindowTimes:
    return WindowTimes(case_id=np.array(case_ids), start_s=np.zeros(len(case_ids)), window_seconds=10.0)


def test_labels_are_those_of_the_tables(root: Path) -> None:
    (root / "quality-hr-ann.csv").write_text("\ufeffID,Quality,HR\n100001,0,61.5\n112001,1,80\n", "utf-8")
    source, windows = ButppgSource(root=root), times(LATER, FIRST, "113001")
    rates = labels_from_butppg(source, "hr", windows=windows)
    assert rates.numeric
    np.testing.assert_array_equal(rates.values, [80.0, 61.5, np.nan])
    quality = labels_from_butppg(source, "Quality", windows=windows)
    assert (quality.values.tolist(), quality.missing) == (["1", "0", None], 1)
    assert labels_from_butppg(source, "motion", windows=windows).values.tolist() == ["0", "0", "0"]
    with pytest.raises(DataError, match=r"no label 'rate'; its tables have Quality, HR, Gender, Age, Ear"):
        labels_from_butppg(source, "rate", windows=windows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("ID,Quality,HR\n1,1,60\n1,0,61\n", "csv:3: expected a record's ID, each once; got '1'"),
        ("ID,Quality,HR\n1,1\n", "csv:2: expected as many cells"),
        ("Name,Quality\n", "csv:1: expected the column ID"),
        ("ID,Quality,Motion\n1,1,2\n", "the column Motion is in quality-hr-ann.csv, too"),
        ("ID,\0\xff\n", "csv"),
    ],
)
def test_damaged_tables_are_refused_by_line(root: Path, content: str, words: str) -> None:
    (root / "quality-hr-ann.csv").write_text(content, "latin-1")
    with pytest.raises(DataError) as refused:
        labels_from_butppg(ButppgSource(root=root), "quality", windows=times(LATER))
    assert words in str(refused.value)


def test_commands_lead_from_records_to_labelled_windows(fixture: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    table = tmp_path / "channels.yaml"
    channels(tmp_path)
    common = ("--channels-yaml", table, "--section", "finetune")
    more = ("--source", "butppg", "--root", fixture, "--mode", "full", "--output", tmp_path)
    told = run("prepare", *more, *common)
    assert "2 recordings have headers with signals and samples transposed" in told.replace("\n", " ")
    answer = json.loads(run("prepare", *more, *common, "--json"))
    assert list(answer["repaired"]) == ["100001", "100002"]
    splits = tmp_path / "splits_full.json"
    run("windows", "--split-file", splits, "--outdir", tmp_path / "windows", "--workers", "1", *common)
    parts = [open_windows(tmp_path / "windows", split) for split in ("train", "val", "test")]
    wanted = LabelRequest(labels="annotations", target="quality")
    labels, subjects = read_labels(wanted, parts, where="here")
    assert sorted(subjects.tolist()) == ["100", "100", "112", "112", "113", "113"]
    assert labels.missing == 0 and set(labels.values) <= {"0", "1"}


def test_fixture_is_the_same_for_a_seed_and_replaces_nothing(fixture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_fixture(other, subjects=2, records=2, transposed=1)
    for path in sorted(fixture.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (other / path.relative_to(fixture)).read_bytes(), path
    with pytest.raises(FileExistsError, match="exists"):
        write_fixture(other)
    with pytest.raises(ValueError, match="2 to 999 records"):
        write_fixture(tmp_path / "third", records=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]
