import datetime as dt
import re

import numpy as np
import pytest
import wfdb

from biofound.data.labels import (
    LabelRows,
    WindowTimes,
    label_windows,
    labels_from_annotations,
    labels_from_csv,
    labels_from_numerics,
    labels_from_truth,
)
from biofound.data.sources.wfdb import WfdbSource
from biofound.errors import DataError

from .test_stream import stream

# wfdb's writers, which only tests use, do what pandas 3 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")


def times(*places, seconds=10.0):
    return WindowTimes(
        case_id=np.array([case for case, _ in places]),
        start_s=np.array([start for _, start in places], dtype=float),
        window_seconds=seconds,
    )


def rows(*intervals):
    start, end, values = zip(*intervals, strict=True)
    kind = object if isinstance(values[0], str) else float
    return LabelRows(
        start_s=np.array(start, float), end_s=np.array(end, float), values=np.array(values, kind)
    )


def csv_file(tmp_path, *lines, header="case_id,start_s,end_s,HR,rhythm"):
    path = tmp_path / "labels.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


# ---------------------------------------------------------------- overlap, in closed form


def test_a_window_takes_the_mean_of_the_rows_that_overlap_it_by_seconds():
    labels = label_windows(
        {"a": rows((0, 5, 60.0), (5, 12, 80.0), (12, 20, 100.0))},
        times(("a", 0), ("a", 10), ("a", 19), ("a", 20), ("b", 0)),
        target="HR",
        numeric=True,
    )
    np.testing.assert_allclose(labels.values, [70, (2 * 80 + 8 * 100) / 10, 100, np.nan, np.nan])
    assert labels.missing == 2
    assert labels.known.tolist() == [True, True, True, False, False]


def test_a_window_takes_the_word_that_fills_most_of_it_and_of_equals_the_first():
    labels = label_windows(
        {"a": rows((0, 4, "AFIB"), (4, 10, "N"), (10, 15, "N"), (15, 20, "AFIB"))},
        times(("a", 0), ("a", 10), ("a", -7), ("c", 0)),
        target="rhythm",
        numeric=False,
    )
    assert labels.values.tolist() == ["N", "N", "AFIB", None]
    assert labels.missing == 1


def test_overlap_agrees_with_a_brute_force_over_rows_that_overlap_one_another():
    generator = np.random.default_rng(0)
    start = generator.uniform(0, 200, 300)
    end = start + generator.uniform(0.1, 40, 300)
    values = generator.normal(size=300)
    places = generator.uniform(-20, 220, 100)
    labels = label_windows(
        {"a": LabelRows(start_s=start, end_s=end, values=values)},
        times(*[("a", place) for place in places]),
        target="y",
        numeric=True,
    )
    for place, got in zip(places, labels.values, strict=True):
        overlap = np.clip(np.minimum(end, place + 10) - np.maximum(start, place), 0, None)
        assert got == pytest.approx(
            overlap @ values / overlap.sum() if overlap.sum() else np.nan, nan_ok=True
        )


def test_rows_that_only_touch_a_window_are_none_of_its():
    labels = label_windows(
        {"a": rows((0, 0.1 + 0.2, 1.0), (10.3, 20, 2.0))}, times(("a", 0.3)), target="y", numeric=True
    )
    assert labels.missing == 1


# ---------------------------------------------------------------- CSV


def test_a_csv_gives_numbers_or_words_and_leaves_out_empty_cells(tmp_path):
    path = csv_file(tmp_path, "a,0,10,60,N", "a,10,20,,AFIB", "z,0,10,90,N")
    places = times(("a", 0), ("a", 10))
    rate = labels_from_csv(path, "HR", windows=places)
    assert rate.numeric
    np.testing.assert_array_equal(rate.values, [60, np.nan])
    assert labels_from_csv(path, "rhythm", windows=places).values.tolist() == ["N", "AFIB"]
    assert labels_from_csv(path, "HR", windows=places, words=True).values.tolist() == ["60", None]


def test_rows_outside_the_time_of_their_recording_are_counted_and_the_first_is_named(tmp_path):
    path = csv_file(
        tmp_path, "a,0,10,60,N", "b,-5,5,61,N", "b,110,120,62,N", "b,90,120,63,N", "a,-9,0,64,N", "z,0,9,1,N"
    )
    labels = labels_from_csv(path, "HR", windows=times(("a", 0), ("b", 100), ("b", 0)))
    np.testing.assert_array_equal(labels.values, [60, 63, 61])
    assert labels.outside == (
        f"{path}: 2 of 5 rows label nothing, as they lie before the first or after the last window of their "
        "recording. The first is in line 4: b, 110 to 120 s, whose windows span 0 to 110 s. Seconds count "
        "from the start of the recording"
    )
    assert labels_from_csv(csv_file(tmp_path, "a,0,10,60,N"), "HR", windows=times(("a", 0))).outside == ""


@pytest.mark.parametrize(
    ("line", "where", "said"),
    [
        ("a,0,10,72x,N", ":2", "72x"),
        ("a,0,10,nan,N", ":2", "nan"),
        ("a,10,10,60,N", ":2", "end_s after start_s"),
        ("a,zero,10,60,N", ":2", "zero"),
        (",0,10,60,N", ":2", "case id"),
        ("a,0,10,60", ":2", "cells"),
        ("a,0,10,60,N,more", ":2", "cells"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, where, said):
    path = csv_file(tmp_path, line, "a,10,20,60,N")
    with pytest.raises(DataError, match=re.escape(f"{path}{where}")) as caught:
        labels_from_csv(path, "HR", windows=times(("a", 0)))
    assert said in str(caught.value)


def test_missing_columns_unknown_targets_and_strange_cases_are_refused(tmp_path):
    places = times(("a", 0))
    with pytest.raises(DataError, match=r":1.*start_s"):
        labels_from_csv(csv_file(tmp_path, "a,0", header="case_id,HR"), "HR", windows=places)
    path = csv_file(tmp_path, "b,0,10,60,N")
    with pytest.raises(DataError, match=r"'BP'.*HR, rhythm"):
        labels_from_csv(path, "BP", windows=places)
    with pytest.raises(DataError, match=r"case ids such as a, got b"):
        labels_from_csv(path, "HR", windows=places)
    with pytest.raises(DataError, match="none"):
        labels_from_csv(csv_file(tmp_path, "a,0,10,,N"), "HR", windows=places)
    with pytest.raises(DataError, match="cannot be read"):
        labels_from_csv(tmp_path / "absent.csv", "HR", windows=places)


# ---------------------------------------------------------------- WFDB


def write_record(root, name, *, seconds=60, sfreq=100, names=("II",), samples=None, **more):
    if samples is None:
        samples = np.sin(np.arange(seconds * sfreq) / 10)[:, None].repeat(len(names), axis=1)
    units = ["mV"] * len(names)
    wfdb.wrsamp(
        name,
        fs=sfreq,
        units=units,
        sig_name=list(names),
        p_signal=samples,
        fmt=["16"] * len(names),
        write_dir=str(root),
        **more,
    )


def test_numerics_hold_until_the_next_and_a_rate_of_0_is_none(tmp_path):
    write_record(tmp_path, "r1")
    rate = np.concatenate([np.full(10, 60.0), np.full(5, 0.0), np.full(15, 90.0), np.full(30, np.nan)])
    write_record(tmp_path, "r1n", sfreq=1, names=("HR", "ST"), samples=np.stack([rate, rate], axis=1))
    write_record(tmp_path, "r2")
    places = times(("r1", 0), ("r1", 10), ("r1", 30), ("r2", 0))
    source = WfdbSource(root=tmp_path, record_is_subject=True)
    values = labels_from_numerics(source, "HR", windows=places).values
    np.testing.assert_allclose(values, [60, 90, np.nan, np.nan], atol=0.01)
    # Other numerics may well be 0.
    np.testing.assert_allclose(
        labels_from_numerics(source, "ST", windows=places).values, [60, 45, np.nan, np.nan], atol=0.01
    )
    with pytest.raises(DataError, match=r"SpO2.*HR, ST"):
        labels_from_numerics(source, "SpO2", windows=places)


def test_numerics_without_a_signal_or_its_name_have_no_labels(tmp_path):
    write_record(tmp_path, "r1")
    write_record(tmp_path, "r1n", sfreq=1, names=("HR",), samples=np.full((60, 1), 70.0))
    source = WfdbSource(root=tmp_path, record_is_subject=True)
    header = (tmp_path / "r1n.hea").read_text()
    for damaged in ("r1n 0 1 60\n", header.removesuffix(" HR\n") + "\n"):
        (tmp_path / "r1n.hea").write_text(damaged)
        with pytest.raises(DataError, match="HR"):
            labels_from_numerics(source, "HR", windows=times(("r1", 0)))


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        ("r1n 30 1 60", "promises 30 signals of 60 samples but describes 1"),
        ("r1n 1 1 400000", "promises 400000 samples of 1 signal"),
    ],
)
def test_numerics_whose_header_promises_more_than_the_file_are_refused(tmp_path, promise, message):
    write_record(tmp_path, "r1")
    write_record(tmp_path, "r1n", sfreq=1, names=("HR",), samples=np.full((60, 1), 70.0))
    header = tmp_path / "r1n.hea"
    header.write_text("\n".join([promise, *header.read_text().splitlines()[1:]]))
    source = WfdbSource(root=tmp_path, record_is_subject=True)
    with pytest.raises(DataError, match=message):
        labels_from_numerics(source, "HR", windows=times(("r1", 0)))


def test_numerics_that_start_later_than_their_record_are_moved(tmp_path):
    day = dt.date(2020, 1, 1)
    write_record(tmp_path, "r1", base_date=day, base_time=dt.time(12, 0, 0))
    samples = np.arange(40.0)[:, None] + 50
    write_record(
        tmp_path, "r1n", sfreq=1, names=("HR",), samples=samples, base_date=day, base_time=dt.time(12, 0, 5)
    )
    labels = labels_from_numerics(
        WfdbSource(root=tmp_path, record_is_subject=True), "HR", windows=times(("r1", 0), ("r1", 10))
    )
    np.testing.assert_allclose(labels.values, [52, 59.5], atol=0.01)


def test_beats_give_the_rate_and_changes_of_rhythm_its_word(tmp_path):
    write_record(tmp_path, "r1")
    # 60 a minute for 30 s, then 120; a change of rhythm at 24 s; a "~" that is no beat.
    beat = np.concatenate([np.arange(0, 30, 1.0), np.arange(30, 58, 0.5)])
    at = np.concatenate([beat, [0.2, 24.0, 25.3]])
    symbols = np.array(["N"] * len(beat) + ["+", "+", "~"])
    notes = np.array([""] * len(beat) + ["(N", "(AFIB", ""])
    order = np.argsort(at, kind="stable")
    wfdb.wrann(
        "r1",
        "atr",
        sample=np.rint(at[order] * 100).astype(int),
        symbol=symbols[order].tolist(),
        aux_note=notes[order].tolist(),
        fs=100,
        write_dir=str(tmp_path),
    )
    source = WfdbSource(root=tmp_path, record_is_subject=True)
    places = times(("r1", 0), ("r1", 20), ("r1", 28), ("r1", 45))
    np.testing.assert_allclose(
        labels_from_annotations(source, "HR", windows=places).values, [60, 60, (2 * 60 + 8 * 120) / 10, 120]
    )
    rhythm = labels_from_annotations(source, "rhythm", windows=places).values.tolist()
    assert rhythm == ["N", "AFIB", "AFIB", "AFIB"]
    with pytest.raises(DataError, match="HR or rhythm"):
        labels_from_annotations(source, "SpO2", windows=places)
    with pytest.raises(DataError, match=r"<record>\.qrs"):
        labels_from_annotations(source, "HR", windows=places, annotator="qrs")


@pytest.mark.parametrize("note", ["## a remark", "## time resolution: fast", "## time resolution: 125"])
def test_a_note_that_wfdb_would_read_for_ever_is_refused(tmp_path, note):
    write_record(tmp_path, "r1")
    wfdb.wrann(
        "r1",
        "atr",
        sample=np.array([0, 0, 100, 200]),
        symbol=['"', '"', "N", "N"],
        aux_note=[note, "a second note at the start", "", ""],
        fs=100,  # which wfdb writes as the first of these notes
        write_dir=str(tmp_path),
    )
    source = WfdbSource(root=tmp_path, record_is_subject=True)
    with pytest.raises(DataError, match=r"r1\.atr: expected notes that begin with '## '"):
        labels_from_annotations(source, "HR", windows=times(("r1", 0)))


def test_bidmc_numerics_agree_with_a_mean_by_hand(bidmc_dir):
    source = WfdbSource(root=bidmc_dir)
    places = times(("bidmc01", 0), ("bidmc01", 100), ("bidmc22", 470))
    for target in ("HR", "PULSE", "RESP", "SpO2"):
        got = labels_from_numerics(source, target, windows=places).values
        for value, case, start in zip(got, places.case_id, places.start_s.astype(int), strict=True):
            record = wfdb.rdrecord(str(bidmc_dir / f"{case}n"))
            column = record.p_signal[:, record.sig_name.index(f"{target},")]
            assert value == pytest.approx(np.nanmean(column[start : start + 10]))


def test_bidmc_numerics_of_a_monitor_that_measured_nothing_are_none(bidmc_dir):
    source = WfdbSource(root=bidmc_dir)
    places = times(*[("bidmc13", start) for start in range(0, 480, 10)])
    values = labels_from_numerics(source, "RESP", windows=places).values
    assert np.nanmin(values) > 0


# ---------------------------------------------------------------- Synthetic windows


def test_the_truth_of_synthetic_windows_gives_numbers_and_words():
    truth = stream().truth(np.arange(12))
    np.testing.assert_array_equal(labels_from_truth(truth, "HR").values, truth.heart_rate)
    rhythm = labels_from_truth(truth, "rhythm")
    assert not rhythm.numeric and rhythm.values.tolist() == truth.rhythm.tolist()
    with pytest.raises(DataError, match=r"'SpO2'.*HR, RESP, rhythm"):
        labels_from_truth(truth, "SpO2")
