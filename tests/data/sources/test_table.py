"""Tables of samples: CSV, Parquet and npz files, their times, units, subjects, and what is refused."""

import csv
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from biofound.data.channels import Channel, PassBand
from biofound.data.extract import extract_windows
from biofound.data.sources.registry import open_source
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.sources.table import TableSource
from biofound.data.sources.wfdb import WfdbSource
from biofound.errors import DataError, SettingsError
from tests.data.sources.test_wfdb import write as write_wfdb

BAND = PassBand(low_hz=0.5, high_hz=8.0, order=2)


def channel(name: str, *tracks: str, unit: str = "NU", **more: Any) -> Channel:
    return Channel(name=name, tracks=tracks or (name,), unit=unit, band=BAND, quality_threshold=0.5, **more)


PPG, ECG = channel("PPG"), channel("ECG", unit="mV")
RNG = np.random.default_rng(0)
X = np.round(RNG.uniform(-2, 2, (500, 2)), 3)


def write_csv(path: Path, columns: dict[str, Any], *, delimiter: str = ",", decimal: str = ".") -> Path:
    """A CSV as other programs write it, NaN as an empty cell."""

    def cell(value: Any) -> str:
        if isinstance(value, float | np.floating):
            return "" if np.isnan(value) else repr(float(value)).replace(".", decimal)
        return str(value)

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows([cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    return path


def signals(root: Path, *channels: Channel, case: str = "r1", **settings: Any) -> Any:
    return TableSource(root=root, **settings).read(case, channels or (PPG, ECG)).signals


def samples(root: Path, **settings: Any) -> Any:
    return signals(root, PPG, **settings)["PPG"].samples


# ---- The same samples from every format


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "bom", "parquet", "npz", "compressed"])
def test_every_format_gives_the_samples_that_were_written(tmp_path: Path, kind: str) -> None:
    time = np.arange(500) / 125
    columns = {"Time": time, "ppg": X[:, 0], "ECG [uV]": X[:, 1] * 1000}
    if kind == "parquet":
        parquet.write_table(pa.table(columns), tmp_path / "r1.parquet")
    elif kind in ("npz", "compressed"):
        (np.savez if kind == "npz" else np.savez_compressed)(tmp_path / "r1.npz", **columns)
    else:
        mark = {"tsv": "\t", "semicolon": ";"}.get(kind, ",")
        path = tmp_path / ("r1.tsv" if kind == "tsv" else "r1.csv")
        write_csv(path, columns, delimiter=mark, decimal="," if kind == "semicolon" else ".")
        if kind == "bom":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = signals(tmp_path)
    for column, name in enumerate(("PPG", "ECG")):
        assert found[name].samples.dtype == np.float32
        assert found[name].sfreq == 125.0
        np.testing.assert_allclose(found[name].samples, X[:, column], atol=1e-6)
    assert (found["PPG"].unit, found["ECG"].unit, found["ECG"].track) == ("NU", "mV", "ECG")


@pytest.fixture(scope="module")
def synthetic_recording() -> np.ndarray:
    recording = SyntheticSource(seed=3, subjects=3, minutes=1.0).read("syn0001_1", [PPG, ECG])
    return np.stack([recording.signals[name].samples[::4] for name in ("PPG", "ECG")], axis=1)


def test_windows_are_those_of_the_same_recording_in_wfdb(tmp_path: Path, synthetic_recording: Any) -> None:
    x = write_wfdb(tmp_path, x=np.round(synthetic_recording.astype(np.float64), 3), names=("PPG", "ECG"))
    times = [f"{k / 125:.3f}" for k in range(len(x))]
    write_csv(tmp_path / "r1.csv", {"time": times, "PPG": x[:, 0], "ECG": x[:, 1]})
    windows = [
        extract_windows(
            source.read("r1", [PPG, ECG]),
            [PPG, ECG],
            sfreq=125.0,
            window_samples=1250,
            max_gap_seconds=0.1,
            dtype="float32",
        )
        for source in (WfdbSource(root=tmp_path), TableSource(root=tmp_path))
    ]
    assert len(windows[0].x) >= 4
    assert np.array_equal(windows[0].start_s, windows[1].start_s)
    np.testing.assert_allclose(windows[0].x, windows[1].x, atol=1e-5)


def test_large_csv_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biofound.data.sources.table_file._BLOCK_BYTES", 1000)
    write_csv(tmp_path / "r1.csv", {"time": np.arange(500) / 125, "PPG": X[:, 0], "note": ["x"] * 500})
    np.testing.assert_allclose(samples(tmp_path), X[:, 0], atol=1e-6)
    monkeypatch.setattr("biofound.data.sources.table_file.MOST_SAMPLES", 400)
    with pytest.raises(DataError, match=r"case r1: .*r1\.csv: more than 400 rows; split it"):
        samples(tmp_path)


# ---- Times


@pytest.mark.parametrize("sfreq", [25.0, 64.0, 100.0, 128.0, 256.0, 500.0])
def test_rate_is_found_from_times_in_whole_milliseconds(tmp_path: Path, sfreq: float) -> None:
    k = np.arange(3000)
    x = np.sin(k).astype(np.float32)
    np.savez(tmp_path / "r1.npz", timestamp=np.floor(k / sfreq * 1000), PPG=x)
    (found,) = signals(tmp_path, PPG, time_unit="ms").values()
    assert found.sfreq == sfreq
    assert np.array_equal(found.samples, x)


def test_a_clock_that_drifts_gives_its_true_rate(tmp_path: Path) -> None:
    k = np.arange(20_000)
    np.savez(tmp_path / "r1.npz", time=k / 125.3, PPG=np.sin(k))
    (given,) = signals(tmp_path, PPG, sfreq=125.0).values()
    (found,) = signals(tmp_path, PPG).values()
    assert given.sfreq == pytest.approx(125.3, rel=1e-6) and given.header_sfreq == 125.0
    assert found.sfreq == 125.3 and len(found.samples) == len(given.samples) == 20_000


def test_jitter_moves_no_sample_and_gaps_are_where_they_were(tmp_path: Path) -> None:
    k = np.r_[np.arange(300), np.arange(340, 1000), np.arange(1001, 1500)]
    jitter = RNG.uniform(-0.2, 0.2, len(k))
    x = np.sin(k).astype(np.float32)
    np.savez(tmp_path / "r1.npz", time=100.0 + (k + jitter) / 125, PPG=x)
    (found,) = signals(tmp_path, PPG, sfreq=125.0).values()
    expected = np.full(1500, np.nan, np.float32)
    expected[k] = x
    gaps = np.isnan(found.samples)
    assert len(found.samples) == 1500 and gaps.sum() == 41
    assert np.array_equal(found.samples[:1000], expected[:1000], equal_nan=True)
    # that one sample is missing shows when a stamp is early enough
    assert np.array_equal(found.samples[1060:], expected[1060:], equal_nan=True)


def test_times_to_the_second_stand_for_a_packet_of_samples(tmp_path: Path) -> None:
    k = np.r_[np.arange(250), np.arange(375, 1000)]
    x = np.sin(k).astype(np.float32)
    np.savez(tmp_path / "r1.npz", time=k // 125, PPG=x)
    (found,) = signals(tmp_path, PPG).values()
    expected = np.full(1000, np.nan, np.float32)
    expected[k] = x
    assert found.sfreq == 125.0
    assert np.array_equal(found.samples, expected, equal_nan=True)


@pytest.mark.parametrize("form", ["utc", "zone", "naive", "parquet", "datetime64"])
def test_time_stamps_have_no_daylight_saving(tmp_path: Path, form: str) -> None:
    """Berlin puts its clocks back at 01:00 UTC on 2024-10-27, in the middle of this recording."""
    start = datetime.datetime(2024, 10, 27, 0, 59, 58, tzinfo=datetime.UTC)
    stamps = [start + datetime.timedelta(milliseconds=8 * k) for k in range(500)]
    if form == "zone":
        winter = datetime.datetime(2024, 10, 27, 1, tzinfo=datetime.UTC)
        zones = [datetime.timezone(datetime.timedelta(hours=2 if t < winter else 1)) for t in stamps]
        texts = [t.astimezone(zone).isoformat(timespec="milliseconds") for t, zone in zip(stamps, zones)]  # noqa: B905
    else:
        texts = [t.replace(tzinfo=None).isoformat(timespec="milliseconds") for t in stamps]
        texts = [text + "Z" for text in texts] if form == "utc" else texts
    if form == "parquet":
        times = pa.array(stamps, pa.timestamp("us", tz="Europe/Berlin"))
        parquet.write_table(pa.table({"timestamp": times, "PPG": X[:, 0]}), tmp_path / "r1.parquet")
    elif form == "datetime64":
        np.savez(tmp_path / "r1.npz", timestamp=np.array(texts, "datetime64[ms]"), PPG=X[:, 0])
    else:
        write_csv(tmp_path / "r1.csv", {"timestamp": texts, "PPG": X[:, 0]})
    (found,) = signals(tmp_path, PPG).values()
    assert found.sfreq == 125.0
    np.testing.assert_allclose(found.samples, X[:, 0], atol=1e-6)


def test_local_times_that_are_set_back_are_refused(tmp_path: Path) -> None:
    times = [f"2024-10-27T02:59:{s:02d}" for s in range(58, 60)]
    times += [f"2024-10-27T02:00:{s:02d}" for s in range(8)]
    write_csv(tmp_path / "r1.csv", {"time": times, "PPG": X[:10, 0]})
    with pytest.raises(DataError, match=r"time: the time goes back by 3599 s from row 2 to row 3 .* UTC"):
        samples(tmp_path)


def test_columns_of_different_rates_keep_them_and_start_together(tmp_path: Path) -> None:
    """A slow column beside a fast one has empty cells; an outer join of two has them on both sides."""
    fast, slow = np.arange(400) / 100, 0.003 + np.arange(120) / 30
    times = np.union1d(fast, slow)
    ppg, ecg = np.full(len(times), np.nan), np.full(len(times), np.nan)
    ppg[np.searchsorted(times, slow)], ecg[np.searchsorted(times, fast)] = X[:120, 0], X[:400, 1]
    write_csv(tmp_path / "r1.csv", {"time": times, "PPG": ppg, "ECG": ecg})
    found = signals(tmp_path)
    assert (found["PPG"].sfreq, found["ECG"].sfreq) == (30.0, 100.0)
    np.testing.assert_allclose(found["PPG"].samples, X[:120, 0], atol=1e-6)
    np.testing.assert_allclose(found["ECG"].samples, X[:400, 1], atol=1e-6)


def test_rates_of_an_npz_are_its_own_else_those_given(tmp_path: Path) -> None:
    np.savez(tmp_path / "r1.npz", PPG=X[:100, 0], ECG=X[:400, 1], sfreq=100.0, sfreq_PPG=25.0)
    found = signals(tmp_path)
    assert (found["PPG"].sfreq, found["ECG"].sfreq) == (25.0, 100.0)
    listed = TableSource(root=tmp_path).tracks().tracks["r1"]
    assert [(one.name, one.sfreq, one.duration_s) for one in listed] == [
        ("PPG", 25.0, 4.0),
        ("ECG", 100.0, 4.0),
    ]
    np.savez(tmp_path / "r1.npz", PPG=X[:400, 0], ECG=X[:400, 1])
    assert signals(tmp_path, sfreq=50.0)["ECG"].sfreq == 50.0


def test_empty_cells_without_times_are_gaps(tmp_path: Path) -> None:
    x = np.where(np.arange(500) % 100 < 7, np.nan, X[:, 0])
    write_csv(tmp_path / "r1.csv", {"PPG": x})
    found = samples(tmp_path, sfreq=125.0)
    assert np.array_equal(np.isnan(found), np.isnan(x))


# ---- Who was recorded, and what is listed


def test_subjects_come_from_path_column_or_csv(tmp_path: Path) -> None:
    for name in ("s1/a", "s1/b", "s2/a"):
        person = [name[:2].upper()] * 500
        write_csv(tmp_path / f"{name}.csv", {"time": np.arange(500) / 125, "PPG": X[:, 0], "who": person})

    def subjects(**settings: Any) -> list[str | None]:
        return [case.subject_id for case in TableSource(root=tmp_path, **settings).cases([PPG])]

    assert subjects() == [None] * 3
    assert subjects(subject_pattern=r"^(s\d)/") == ["s1", "s1", "s2"]
    assert subjects(subject_column="who") == ["S1", "S1", "S2"]
    assert subjects(record_is_subject=True) == ["s1__a", "s1__b", "s2__a"]
    (tmp_path / "subjects.csv").write_text("\ufefffile,subject\ns1/a.csv,x\ns1/b,x\ns2/a,y\n")
    assert subjects() == ["x", "x", "y"]
    with pytest.raises(SettingsError, match="subject_column"):
        subjects(subject_column="who", subject_pattern="(s)")
    source = TableSource(root=tmp_path, subject_column="who", time_unit="s")
    assert open_source(**source.describe()).describe() == source.describe()
    write_csv(tmp_path / "s2/a.csv", {"time": [0, 1, 2], "PPG": [1.0, 2.0, 3.0], "who": ["A", "B", "A"]})
    with pytest.raises(DataError, match=r"column who: expected one subject in all rows, got 2: A, B"):
        subjects(subject_column="who")


def test_survey_lists_columns_leaves_out_and_refuses(tmp_path: Path) -> None:
    time = np.arange(500) / 125
    write_csv(tmp_path / "a.csv", {"time": time, "PPG": X[:, 0], "ECG": X[:, 1], "note": ["x"] * 500})
    write_csv(tmp_path / "b.csv", {"time": time, "PPG": X[:, 0]})
    write_csv(tmp_path / "c.csv", {"0.1": X[:, 0], "0.2": X[:, 1]})
    source = TableSource(root=tmp_path)
    found = source.survey([PPG, ECG])
    assert [case.case_id for case in found.cases] == ["a"]
    assert found.left_out == {"b": ("ECG",)}
    assert "expected names of columns, got 0.1, 0.2" in found.refused["c"]
    listed = source.tracks()
    assert [(one.name, one.sfreq) for one in listed.tracks["a"]] == [("PPG", 125.0), ("ECG", 125.0)]
    assert list(listed.refused) == ["c"]


# ---- What is refused


def text(content: str) -> Any:
    return lambda path: (path / "r1.csv").write_bytes(content.encode("latin-1"))


def npz(**arrays: Any) -> Any:
    return lambda path: np.savez(path / "r1.npz", **arrays)


def damage(path: Path, *, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + 40] = bytes(40)
    path.write_bytes(content)


def rows(*cells: str) -> str:
    return "time,PPG,ECG\n" + "".join(f"{k / 125},{cell}\n" for k, cell in enumerate(cells))


def arrow_table(time: Any, *, repeats: int = 1) -> Any:
    """A table of six rows, or so many times six, with this column of times."""

    def write(path: Path) -> None:
        table = pa.table({"time": time, "PPG": pa.array(X[:6, 0]), "ECG": pa.array(X[:6, 1])})
        index = pa.array(np.tile(np.arange(6), repeats))
        parquet.write_table(table.take(index), path / "r1.parquet")

    return write


GOOD = ("1,2", "2,3", "3,4", "4,5")
REFUSED = {
    "word": (text(rows(*GOOD, "x7,1")), r"r1\.csv: line 6, column PPG: expected a number, got 'x7'"),
    "short row": (text(rows(*GOOD, "1")), r"r1\.csv: line 6: expected 3 cells, got 2"),
    "long row": (text(rows(*GOOD, "1,2,3")), r"r1\.csv: line 6: expected 3 cells, got 4"),
    "decimal comma": (
        text("time;PPG;ECG\n0,00;1,5;1\n0,01;1,5;1\n0,02;1.5;1\n0,03;1,5;1\n"),
        r"line 4, column PPG: expected a number, got '1\.5'",
    ),
    "no header": (text("0.1,2,3\n0.2,2,3\n"), r"line 1: expected names of columns, got 0\.1, 2, 3"),
    "channels in rows": (text("name,0,1,2\nPPG,5,6,7\n"), "channels in rows; write one column a channel"),
    "same name": (text("time,PPG,PPG\n0,1,2\n"), "columns of different names, got PPG more than once"),
    "utf-16": (lambda p: (p / "r1.csv").write_bytes(rows(*GOOD).encode("utf-16")), "save it as UTF-8"),
    "latin-1": (text("time,PPG,ECG [\xb5V]\n0,1,2\n"), "save it as UTF-8"),
    "empty": (text(""), "line 1: expected names of columns, got none"),
    "header only": (text("time,PPG,ECG\n"), "no row below its header"),
    "no time": (text("PPG,ECG\n1,2\n2,3\n"), r"no column of times .* --time-column, .* --sfreq"),
    "time missing": (text("time,PPG,ECG\n0,1,2\n,2,3\n1,2,3\n"), "row 2 below the header has no time"),
    "time back": (text("time,PPG,ECG\n0,1,2\n1,1,3\n2,1,3\n0,2,3\n"), "goes back by 2 s from row 3 to row 4"),
    "bad stamp": (
        text("time,PPG,ECG\n2024-01-01T00:00:00Z,1,2\nsoon,1,2\n"),
        "line 3, column time: expected a time stamp like the first, got 'soon'",
    ),
    "no value": (text("time,PPG,ECG\n0,,1\n1,,1\n2,,3\n3,,3\n"), "column PPG holds no value"),
    "years": (text(rows(*GOOD) + "1e9,1,2\n"), "a time is wrong, or the file must be split"),
    "two axes": (npz(x=X, sfreq=125.0), r"array x: .*\(samples,\) a channel, got the shape \(500, 2\)"),
    "short": (npz(time=np.arange(9), PPG=X[:9, 0], ECG=X[:8, 1]), "ECG: expected 9 samples, .* time, got 8"),
    "other rate": (npz(PPG=X[:, 0], ECG=X[:100, 1], sfreq=100.0), "one length in time, got PPG 500 .* 1 s"),
    "rate 0": (npz(PPG=X[:, 0], ECG=X[:, 1], sfreq=0.0), "sfreq: expected one number of Hz above 0"),
    "words": (npz(PPG=np.array(["a", "b"]), ECG=X[:2, 1], sfreq=9.0), "expected a column named PPG|numbers"),
    "no zip": (lambda p: (p / "r1.npz").write_bytes(b"PK nothing"), "not a readable npz"),
    "huge cell": (text(rows(*GOOD, "1," + "2" * 200_000)), "it is no table .*field larger than"),
    "dates": (
        arrow_table(pa.array([1] * 6, pa.date32())),
        r"expected numbers or .*, got date32",
    ),
    "nested": (arrow_table(pa.array([{"a": 1.0}] * 6)), "column time: expected numbers or .*, got struct"),
    "long stamps": (
        arrow_table(pa.array(["2024-01-01" + "x" * 1000] * 6)),
        r"got text of 1,010 char",
    ),
    "bomb": (arrow_table(pa.array(np.zeros(6)), repeats=30_000), "180,000 rows, more than 100,000; split it"),
    "pages": (
        lambda p: (arrow_table(pa.array(np.arange(6.0)))(p), damage(p / "r1.parquet", at=40)),
        r"r1\.parquet: it is damaged or cut short \(.*\); copy it again",
    ),
    "no parquet": (lambda p: (p / "r1.parquet").write_bytes(b"PAR1 nothing"), "not a readable Parquet"),
    "bursts": (
        npz(time=np.repeat(np.arange(50) * 0.16, 20) + np.tile(np.arange(20) * 1e-4, 50), PPG=np.arange(1e3)),
        "times do not continue the one before at 10000 Hz",
    ),
    "jitter": (
        npz(time=np.sort(np.arange(500) / 125 + RNG.uniform(0, 0.04, 500)), PPG=X[:, 0]),
        "they jitter by more than a sample",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_cannot_be_used_are_refused_by_name_and_place(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = REFUSED[name]
    make(tmp_path)
    if name == "bomb":
        monkeypatch.setattr("biofound.data.sources.table_file.MOST_SAMPLES", 100_000)
    with pytest.raises(DataError, match=message) as caught:
        TableSource(root=tmp_path).read("r1", (PPG,) if name in ("bursts", "jitter") else (PPG, ECG))
    assert str(caught.value).startswith("case r1")
    assert "r1." in str(caught.value) or "column PPG" in str(caught.value)


def test_units_and_rates_that_contradict_are_refused(tmp_path: Path) -> None:
    columns = {"time": np.arange(500) / 125, "PPG": X[:, 0], "ECG [mmHg]": X[:, 1]}
    write_csv(tmp_path / "r1.csv", columns)
    with pytest.raises(DataError, match=r"channel ECG: expected mV .* mmHg"):
        signals(tmp_path)
    with pytest.raises(DataError, match=r"column PPG: the header says 500 Hz, but .* 125 samples"):
        samples(tmp_path, sfreq=500.0)
    with pytest.raises(DataError, match=r"no column clock \(time_column\); it has time, PPG"):
        samples(tmp_path, time_column="clock")
