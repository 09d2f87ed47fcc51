"""WFDB records: samples, cases and subjects, and headers that contradict their files."""

import json
import os
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from biofound.data.channels import Channel, PassBand
from biofound.data.sources.registry import open_source
from biofound.data.sources.wfdb import WfdbSource, import_wfdb
from biofound.data.splits import load_splits, make_splits, save_splits
from biofound.errors import DataError, SettingsError

wfdb = import_wfdb()
BAND = PassBand(low_hz=0.5, high_hz=8.0, order=2)


def channel(name, *tracks, unit="NU"):
    return Channel(name=name, tracks=tracks, unit=unit, band=BAND, quality_threshold=0.5)


PPG = channel("PPG", "SNUADC/PLETH", "PLETH")
ECG = channel("ECG", "SNUADC/ECG_II", "II", "ECG", unit="mV")


def wrsamp(record, **fields):
    with warnings.catch_warnings():  # the writer, which only tests use, does what pandas 3 calls deprecated
        warnings.filterwarnings("ignore", "The inplace keyword", DeprecationWarning)
        wfdb.wrsamp(record, **fields)


def write(directory, record="r1", *, x=None, names=("PLETH,", "II, "), units=("NU", "mV"), fs=125, **more):
    """Write one record with wfdb's own writer: format 16 at 1000 units a physical one."""
    directory.mkdir(parents=True, exist_ok=True)
    if x is None:
        rng = np.random.default_rng(len(record))
        x = np.round(rng.uniform(-2, 2, (500, len(names))), 3)
    clean = [name.strip().rstrip(",") for name in names]
    more = {"fmt": ["16"] * len(names), **more}
    wrsamp(
        record,
        fs=fs,
        units=list(units),
        sig_name=clean,
        p_signal=x,
        adc_gain=[1000.0] * len(names),
        baseline=[0] * len(names),
        write_dir=str(directory),
        **more,
    )
    # The writer would refuse BIDMC's trailing commas.
    header = directory / f"{record}.hea"
    lines = header.read_text().splitlines()
    for i, (one, other) in enumerate(zip(clean, names, strict=True), start=1):
        lines[i] = lines[i].removesuffix(one) + other
    header.write_text("\n".join(lines) + "\n")
    return x


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def comment(directory, header, text):
    with (directory / f"{header}.hea").open("a") as file:
        file.write(f"#{text}\n")


def test_samples_come_back_as_written_whatever_commas_blanks_and_case_the_names_have(tmp_path):
    x = write(tmp_path, names=("Resp,", "pleth, ", "ii,"), units=("pm", "NU", "mV"))
    recording = WfdbSource(root=tmp_path).read("r1", [ECG, PPG])
    for name, column in (("PPG", 1), ("ECG", 2)):
        signal = recording.signals[name]
        assert signal.samples.dtype == np.float32
        assert signal.sfreq == 125.0
        np.testing.assert_allclose(signal.samples, x[:, column], atol=1e-6)
    assert (recording.signals["PPG"].unit, recording.signals["ECG"].unit) == ("NU", "mV")


def test_the_first_of_a_channels_tracks_that_is_there_wins(tmp_path):
    x = write(tmp_path, names=("V,", "II,"), units=("mV", "mV"))
    source = WfdbSource(root=tmp_path)
    for tracks, column in ((("III", "II", "V"), 1), (("V", "II"), 0)):
        signal = source.read("r1", [channel("ECG", *tracks, unit="mV")]).signals["ECG"]
        np.testing.assert_allclose(signal.samples, x[:, column], atol=1e-6)


def test_invalid_samples_are_gaps_exactly_where_they_were(tmp_path):
    x = np.round(np.random.default_rng(1).uniform(-2, 2, (300, 2)), 3)
    x[40:90, 0] = np.nan
    x[[0, 299], 1] = np.nan
    write(tmp_path, x=x)
    signals = WfdbSource(root=tmp_path).read("r1", [PPG, ECG]).signals
    assert np.array_equal(np.isnan(signals["PPG"].samples), np.isnan(x[:, 0]))
    assert np.array_equal(np.isnan(signals["ECG"].samples), np.isnan(x[:, 1]))


def test_signals_of_several_samples_a_frame_keep_their_own_rate(tmp_path):
    rng = np.random.default_rng(2)
    slow, fast = (np.round(rng.uniform(-1, 1, n), 3) for n in (250, 1000))
    wrsamp(
        "r1",
        fs=125,
        units=["NU", "mV"],
        sig_name=["PLETH", "II"],
        e_p_signal=[slow, fast],
        samps_per_frame=[1, 4],
        fmt=["16", "16"],
        adc_gain=[1000.0, 1000.0],
        baseline=[0, 0],
        write_dir=str(tmp_path),
    )
    source = WfdbSource(root=tmp_path)
    signals = source.read("r1", [PPG, ECG]).signals
    assert (signals["PPG"].sfreq, signals["ECG"].sfreq) == (125.0, 500.0)
    np.testing.assert_allclose(signals["ECG"].samples, fast, atol=1e-6)
    np.testing.assert_allclose(signals["PPG"].samples, slow, atol=1e-6)
    assert source.cases([PPG, ECG])[0].duration_s == 2.0
    (tmp_path / "r2.hea").write_text("not a header\n")
    listed = WfdbSource(root=tmp_path).tracks()
    assert [(track.name, track.sfreq, track.unit, track.duration_s) for track in listed.tracks["r1"]] == [
        ("PLETH", 125.0, "NU", 2.0),
        ("II", 500.0, "mV", 2.0),
    ]
    assert list(listed.refused) == ["r2"]


def test_a_multi_segment_record_is_one_case_with_a_gap_where_no_segment_is(tmp_path):
    x = write(tmp_path, "r1_1")
    y = write(tmp_path, "r1_2", x=x[:200])
    (tmp_path / "r1.hea").write_text("r1/3 2 125 750\nr1_1 500\n~ 50\nr1_2 200\n")
    source = WfdbSource(root=tmp_path)
    assert [case.case_id for case in source.cases([PPG, ECG])] == ["r1"]
    got = source.read("r1", [PPG, ECG]).signals["ECG"].samples
    np.testing.assert_allclose(got[:500], x[:, 1], atol=1e-6)
    assert np.isnan(got[500:550]).all()
    np.testing.assert_allclose(got[550:], y[:, 1], atol=1e-6)
    before = source.fingerprint("r1")
    (tmp_path / "r1_2.dat").write_bytes(b"\1" * 800)
    assert source.fingerprint("r1") != before


def test_a_segment_without_the_signal_is_a_gap_in_a_record_of_variable_layout(tmp_path):
    x = write(tmp_path, "r1_1")
    write(tmp_path, "r1_2", names=("II,",), units=("mV",), x=x[:100, 1:])
    layout = ["r1_layout 2 125 0", "~ 0 0/NU 0 0 0 0 0 PLETH", "~ 0 0/mV 0 0 0 0 0 II"]
    (tmp_path / "r1_layout.hea").write_text("\n".join(layout) + "\n")
    (tmp_path / "r1.hea").write_text("r1/4 2 125 620\nr1_layout 0\nr1_1 500\n~ 20\nr1_2 100\n")
    source = WfdbSource(root=tmp_path)
    assert [(c.case_id, c.duration_s) for c in source.cases([PPG, ECG])] == [("r1", 620 / 125)]
    assert [(t.name, t.sfreq, t.duration_s) for t in source.tracks().tracks["r1"]] == [
        ("PLETH", 125.0, 620 / 125),
        ("II", 125.0, 620 / 125),
    ]
    signals = source.read("r1", [PPG, ECG]).signals
    gap = np.full(20, np.nan)
    np.testing.assert_allclose(signals["ECG"].samples, np.r_[x[:, 1], gap, x[:100, 1]], atol=1e-6)
    np.testing.assert_allclose(signals["PPG"].samples, np.r_[x[:, 0], gap, np.full(100, np.nan)], atol=1e-6)
    assert len(source.fingerprint("r1")) == 64


def test_segments_of_different_rates_are_refused(tmp_path):
    write(tmp_path, "r1_1")
    write(tmp_path, "r1_2", fs=250)
    (tmp_path / "r1.hea").write_text("r1/2 2 125 1000\nr1_1 500\nr1_2 500\n")
    with pytest.raises(DataError, match=r"r1, signal PLETH: .*\(125 Hz NU, 250"):
        WfdbSource(root=tmp_path).read("r1", [PPG])


def test_a_record_that_is_its_own_segment_is_refused(tmp_path):
    (tmp_path / "RECORDS").write_text("r1\n")
    (tmp_path / "r1.hea").write_text("r1/1 2 125 500\nr1 500\n")
    refused_everywhere(tmp_path, r"r1: r1\.hea is a segment")


def test_a_short_segment_is_refused(tmp_path):
    write(tmp_path, "r1_1")
    (tmp_path / "r1.hea").write_text("r1/1 2 125 500\nr1_1 500\n")
    (tmp_path / "r1_1.dat").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match=r"case r1: .* 500 samples.*r1_1\.dat.* 100 bytes"):
        WfdbSource(root=tmp_path).read("r1", [PPG, ECG])


def test_records_comes_first_and_companions_without_the_channels_are_no_cases(tmp_path):
    for record in ("b1", "a1", "left_out"):
        write(tmp_path, record)
    write(tmp_path, "a1n", names=("HR,", "PULSE,"), units=("bpm", "bpm"), fs=1)
    (tmp_path / "RECORDS").write_text("b1\na1\na1n\n")
    assert [case.case_id for case in WfdbSource(root=tmp_path).cases([PPG, ECG])] == ["a1", "b1"]
    (tmp_path / "RECORDS").unlink()
    listed = [case.case_id for case in WfdbSource(root=tmp_path).cases([PPG, ECG])]
    assert listed == ["a1", "b1", "left_out"]


def test_records_in_directories_are_found_either_way_under_one_case_id(tmp_path):
    write(tmp_path / "p00" / "p0001", "r1")
    source = WfdbSource(root=tmp_path)
    assert [case.case_id for case in source.cases([PPG, ECG])] == ["p00__p0001__r1"]
    (tmp_path / "RECORDS").write_text("p00/p0001/\n")
    (tmp_path / "p00" / "p0001" / "RECORDS").write_text("r1\n")
    listed = WfdbSource(root=tmp_path)
    assert [case.case_id for case in listed.cases([PPG, ECG])] == ["p00__p0001__r1"]
    assert len(listed.read("p00__p0001__r1", [PPG]).signals["PPG"].samples) == 500


# Subjects


def test_the_subject_is_the_patient_in_the_numerics_header(tmp_path):
    write(tmp_path)
    write(tmp_path, "r1n", names=("HR,",), units=("bpm",), fs=1)
    comment(tmp_path, "r1", "<source>: https://physionet.org/physiobank/database/mimic2wdb/matched/s99999/")
    comment(
        tmp_path, "r1n", "<source>: http://physionet.org/physiobank/database/mimic2wdb/matched/s01182/3n.dat"
    )
    assert [c.subject_id for c in WfdbSource(root=tmp_path).cases([PPG])] == ["s01182"]
    (tmp_path / "r1n.hea").unlink()
    assert [c.subject_id for c in WfdbSource(root=tmp_path).cases([PPG])] == ["s99999"]


def test_a_source_that_does_not_know_the_subject_says_so(tmp_path):
    write(tmp_path)
    assert [c.subject_id for c in WfdbSource(root=tmp_path).cases([PPG])] == [None]
    told = WfdbSource(root=tmp_path, record_is_subject=True)
    assert [c.subject_id for c in told.cases([PPG])] == ["r1"]


def test_another_rule_finds_another_subject(tmp_path):
    write(tmp_path)
    comment(tmp_path, "r1", " Subject: 17, male")
    source = WfdbSource(root=tmp_path, subject_pattern=r"Subject: (\d+)")
    assert [c.subject_id for c in source.cases([PPG])] == ["17"]
    (tmp_path / "subjects.csv").write_text("record,subject\nr1,ann\n")  # which nobody asked for now
    again = open_source(**json.loads(json.dumps(source.describe())))
    assert again.cases([PPG]) == source.cases([PPG])


@pytest.mark.parametrize("given", [True, False])
def test_a_subjects_csv_is_believed_over_the_comments(tmp_path, given):
    for record in ("r1", "r2", "r3"):
        write(tmp_path / "data", record)
        comment(tmp_path / "data", record, "mimic2wdb/matched/s01182")
    path = (tmp_path if given else tmp_path / "data") / "subjects.csv"
    path.write_text("record,subject,age\nr1,ann,8\nr2,bob,9\n")
    source = WfdbSource(root=tmp_path / "data", subjects_csv=path if given else None)
    assert [c.subject_id for c in source.cases([PPG])] == ["ann", "bob", None]
    again = open_source(**json.loads(json.dumps(source.describe())))
    assert again.cases([PPG]) == source.cases([PPG])


def test_a_record_is_no_subject_where_a_csv_says_who_was_recorded(tmp_path):
    write(tmp_path)
    (tmp_path / "subjects.csv").write_text("record,subject\nr1,ann\n")
    with pytest.raises(SettingsError, match=r"subjects\.csv.*record_is_subject"):
        WfdbSource(root=tmp_path, record_is_subject=True)


@pytest.mark.parametrize("pattern", [r"s\d+", "(s"])
def test_a_pattern_without_a_group_is_refused(tmp_path, pattern):
    with pytest.raises(SettingsError, match="subject_pattern"):
        WfdbSource(root=tmp_path, subject_pattern=pattern)


# What is not what it says


def refused_everywhere(root, words, channels=(PPG, ECG)):
    """Both listing and reading refuse the record with the same words in the message."""
    for ask in (lambda s: s.cases(channels), lambda s: s.read("r1", channels)):
        with pytest.raises(DataError, match=f"case {words}"):
            ask(WfdbSource(root=root))


@pytest.mark.parametrize("fmt", ["16", "212", "24", "32", "80"])
def test_a_header_that_promises_more_samples_than_the_file_has_is_refused(tmp_path, fmt):
    x = np.round(np.random.default_rng(0).uniform(-0.1, 0.1, (500, 2)), 3)
    write(tmp_path, x=x, fmt=[fmt, fmt])
    whole = WfdbSource(root=tmp_path).read("r1", [PPG, ECG]).signals["ECG"].samples
    np.testing.assert_allclose(
        whole, x[:, 1], atol=1e-6
    )  # to the last sample: the check asks no byte too many
    data = tmp_path / "r1.dat"
    data.write_bytes(data.read_bytes()[:-2])
    refused_everywhere(tmp_path, r"r1: .* 500 samples of 2 signal\(s\) in r1\.dat, .* 499 samples")


def test_a_header_without_a_length_is_as_long_as_its_file(tmp_path):
    x = write(tmp_path)
    edit(tmp_path / "r1.hea", "r1 2 125 500", "r1 2 125")
    source = WfdbSource(root=tmp_path)
    assert source.cases([PPG])[0].duration_s == 4.0
    np.testing.assert_allclose(source.read("r1", [PPG]).signals["PPG"].samples, x[:, 0], atol=1e-6)


def test_samples_start_at_the_files_byte_offset(tmp_path):
    x = write(tmp_path)
    data = tmp_path / "r1.dat"
    data.write_bytes(bytes(24) + data.read_bytes())
    for _ in range(2):  # the header names the file in each signal's line
        edit(tmp_path / "r1.hea", "r1.dat 16 ", "r1.dat 16+24 ")
    read = WfdbSource(root=tmp_path).read("r1", [PPG]).signals["PPG"].samples
    np.testing.assert_allclose(read, x[:, 0], atol=1e-6)
    data.write_bytes(data.read_bytes()[:-4])
    refused_everywhere(tmp_path, "r1: .* 2024 bytes.* 2020 bytes, 499 samples")


def test_a_header_without_a_sampling_frequency_is_refused(tmp_path):
    write(tmp_path)
    edit(tmp_path / "r1.hea", "r1 2 125 500", "r1 2 0 500")
    refused_everywhere(tmp_path, r"r1: r1\.hea .*frequency")


def test_a_record_of_one_sample_is_refused(tmp_path):
    write(tmp_path, x=np.ones((1, 2)))
    refused_everywhere(tmp_path, "r1: .* 1 sample")


def test_signals_and_samples_transposed_are_refused_with_one_line_a_signal(tmp_path):
    # As in BUT-PPG: 300 samples of one signal, called 300 signals of one sample.
    write(tmp_path, x=np.ones((300, 1)), names=("PLETH",), units=("NU",))
    edit(tmp_path / "r1.hea", "r1 1 125 300", "r1 300 125 1")
    refused_everywhere(tmp_path, r"r1: .* 1 sample\(s\) of 300 signal\(s\)", channels=(PPG,))


def test_signals_and_samples_transposed_are_refused_with_as_many_lines_as_signals(tmp_path):
    line = "r1.dat 16 1000(0)/NU 16 0 1 1 0 PLETH"
    (tmp_path / "r1.hea").write_text("\n".join(["r1 300 30 1", *[line] * 300]) + "\n")
    (tmp_path / "r1.dat").write_bytes(b"\1\0" * 300)
    refused_everywhere(tmp_path, r"r1: .* 1 sample\(s\) of 300 signal\(s\)", channels=(PPG,))


def test_a_wrong_number_of_signals_is_refused(tmp_path):
    write(tmp_path)
    edit(tmp_path / "r1.hea", "r1 2 125 500", "r1 3 125 500")
    refused_everywhere(tmp_path, "r1: .* 3 signals of 500 samples .* 2")


def test_a_missing_channel_is_no_case_and_is_named_when_read(tmp_path):
    write(tmp_path, names=("PLETH", "V"))
    source = WfdbSource(root=tmp_path)
    assert source.cases([PPG, ECG]) == []
    with pytest.raises(DataError, match=r"case r1, channel ECG: .*SNUADC/ECG_II or II or ECG.* PLETH, V"):
        source.read("r1", [PPG, ECG])


def test_a_channel_without_a_valid_sample_is_refused_by_name(tmp_path):
    x = np.ones((500, 2))
    x[:, 1] = np.nan
    write(tmp_path, x=x)
    with pytest.raises(DataError, match=r"case r1, channel ECG: .* 500 samples"):
        WfdbSource(root=tmp_path).read("r1", [PPG, ECG])


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1e-3), ("V", 1e3), ("MV", 1.0)])
def test_voltages_come_in_the_channels_unit(tmp_path, unit, factor):
    x = write(tmp_path, units=("NU", unit))
    signal = WfdbSource(root=tmp_path).read("r1", [ECG]).signals["ECG"]
    assert signal.unit == "mV"
    np.testing.assert_allclose(signal.samples, x[:, 1] * factor, rtol=1e-6)


def test_a_unit_that_cannot_be_converted_is_refused(tmp_path):
    write(tmp_path, units=("NU", "bpm"))
    with pytest.raises(DataError, match=r"case r1, channel ECG: .*mV.*bpm"):
        WfdbSource(root=tmp_path).read("r1", [ECG])


def test_all_unusable_records_are_named_at_once(tmp_path):
    for record in ("r1", "r2", "r3"):
        write(tmp_path, record)
    (tmp_path / "r1.dat").unlink()
    (tmp_path / "r3.dat").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"(?s)2 of 3 record.*--skip-failed.*case r1.*r1.dat.*case r3.*r3.dat"
    ):
        WfdbSource(root=tmp_path).cases([PPG, ECG])


def test_of_a_partly_downloaded_set_the_records_that_are_there_can_be_used(tmp_path):
    write(tmp_path, "r1")
    write(tmp_path, "r2", names=("PLETH,",), units=("NU",))
    write(tmp_path, "r1n", names=("HR,",), units=("bpm",), fs=1)
    (tmp_path / "RECORDS").write_text("r1\nr1n\nr2\ngone\np00/\n")
    found = WfdbSource(root=tmp_path).survey([PPG, ECG])
    assert [case.case_id for case in found.cases] == ["r1"]
    assert found.left_out == {"r2": ("ECG",)}
    assert list(found.refused) == ["gone", "p00"]
    assert found.usable(skip_failed=True) == found.cases
    with pytest.raises(DataError, match=r"(?s)^2 of 4 recordings .*case gone: .*gone\.hea.*case p00: "):
        found.usable()
    only_bad = WfdbSource(root=tmp_path).survey([channel("ACC", "ACC_X")])
    with pytest.raises(DataError, match=r"^2 of 4 "):
        only_bad.usable(skip_failed=True)


@pytest.mark.parametrize("segmented", [False, True])
def test_samples_that_contradict_the_headers_checksum_are_refused_unless_told_otherwise(tmp_path, segmented):
    x = write(tmp_path, "r1_1" if segmented else "r1")
    data = tmp_path / ("r1_1.dat" if segmented else "r1.dat")
    if segmented:
        (tmp_path / "r1.hea").write_text("r1/1 2 125 500\nr1_1 500\n")
    content = bytearray(data.read_bytes())
    content[400] ^= 4  # a sample of PPG, by 0.004 NU
    data.write_bytes(content)
    source = WfdbSource(root=tmp_path)
    np.testing.assert_allclose(source.read("r1", [ECG]).signals["ECG"].samples, x[:, 1], atol=1e-6)
    with pytest.raises(DataError, match=rf"case r1, signal PLETH, ?: .*{data.name} .*--ignore-checksums"):
        source.read("r1", [PPG, ECG])
    told = open_source(**WfdbSource(root=tmp_path, ignore_checksums=True).describe())
    read = told.read("r1", [PPG, ECG]).signals["PPG"].samples
    assert np.flatnonzero(np.abs(read - x[:, 0]) > 1e-4).tolist() == [100]


def test_a_header_without_a_checksum_is_believed(tmp_path):
    x = write(tmp_path, names=("PLETH",), units=("NU",))
    header = tmp_path / "r1.hea"
    header.write_text("r1 1 125 500\nr1.dat 16 1000/NU\n")
    source = WfdbSource(root=tmp_path)
    unnamed = source.read("r1", [channel("PPG", "")]).signals["PPG"].samples
    np.testing.assert_allclose(unnamed, x[:, 0], atol=1e-6)


@pytest.mark.parametrize("entries", ["./r1\n./p/\n", "p/./\nr1\n"])
def test_records_may_say_that_a_directory_is_below_this_one(tmp_path, entries):
    write(tmp_path, "r1")
    write(tmp_path / "p", "r2")
    (tmp_path / "RECORDS").write_text(entries)
    (tmp_path / "subjects.csv").write_text("record,subject\n./r1,ann\np/r2,bob\n")
    for lists_its_own in (True, False):
        if lists_its_own:
            (tmp_path / "p" / "RECORDS").write_text("./r2\n")
        else:
            (tmp_path / "p" / "RECORDS").unlink()
        found = {case.case_id: case.subject_id for case in WfdbSource(root=tmp_path).cases([PPG])}
        assert found == {"r1": "ann", "p__r2": "bob"}


@pytest.mark.parametrize("entry", ["./", "p/up/"])
def test_a_list_of_records_that_lists_itself_is_refused(tmp_path, entry):
    write(tmp_path, "r1")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "up").symlink_to(tmp_path)
    (tmp_path / "RECORDS").write_text(f"r1\n{entry}\n")
    with pytest.raises(DataError, match=rf"RECORDS: the entry {entry} names"):
        WfdbSource(root=tmp_path).cases([PPG])


def test_a_pipe_and_a_directory_that_are_called_headers_are_none(tmp_path):
    write(tmp_path, "r1")
    pipe = tmp_path / "r2.hea"
    os.mkfifo(pipe)
    (tmp_path / "r3.hea").mkdir()
    # Who reads the pipe all the same gets the end of the file, and so does not wait for ever.
    threading.Thread(target=pipe.write_bytes, args=(b"",), daemon=True).start()
    found = WfdbSource(root=tmp_path).survey([PPG])
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
    assert ([case.case_id for case in found.cases], found.refused) == (["r1"], {})


def test_names_that_are_not_utf8_are_read_stored_and_opened_again(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    x = write(root, "r1")
    (root / "r1.hea").rename(root / os.fsdecode(b"r\xe9.hea"))
    source = WfdbSource(root=root, record_is_subject=True)
    (case,) = source.cases([PPG, ECG])
    assert (case.case_id, case.subject_id) == (r"r\xe9", r"r\xe9")
    splits = make_splits(
        [case],
        mode="full",
        seed=0,
        source=source.describe(),
        dataset_version=source.version(),
        channels=["PPG", "ECG"],
        fractions=(1, 0, 0),
    )
    save_splits(tmp_path / "splits.json", splits)
    again = open_source(**load_splits(tmp_path / "splits.json").source)
    np.testing.assert_allclose(again.read(case.case_id, [PPG]).signals["PPG"].samples, x[:, 0], atol=1e-6)
    assert again.fingerprint(case.case_id) == source.fingerprint(case.case_id)


@pytest.mark.parametrize("content", ["", "\x00\x01\x02", "r1 two\n", "# only a comment\n"])
def test_a_header_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "r1.hea").write_text(content)
    refused_everywhere(tmp_path, "r1: ")


def test_a_listed_record_without_a_header_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "RECORDS").write_text("r1\nr2\n")
    with pytest.raises(DataError, match=r"case r2: .*r2\.hea"):
        WfdbSource(root=tmp_path).cases([PPG])


@pytest.mark.parametrize("name", ["../r1.dat", "s3://bucket/r1.dat"])
def test_a_header_may_not_point_outside_the_data_set(tmp_path, name):
    write(tmp_path / "data")
    shutil.copy(tmp_path / "data" / "r1.dat", tmp_path / "r1.dat")
    header = tmp_path / "data" / "r1.hea"
    header.write_text(header.read_text().replace("r1.dat", name))
    with pytest.raises(DataError, match=r"case r1: r1\.hea"):
        WfdbSource(root=tmp_path / "data").read("r1", [PPG])


@pytest.mark.parametrize("entry", ["../outside/r1", "x/../../outside/r1", "../outside/", "{}/outside/r1"])
def test_records_may_not_point_outside_the_data_set(tmp_path, entry):
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root)
    write(outside)
    (outside / "RECORDS").write_text("r1\n")
    (root / "RECORDS").write_text(f"r1\n{entry.format(tmp_path)}\n")
    with pytest.raises(DataError, match=f"{root}/RECORDS: .*{entry.format(tmp_path)}"):
        WfdbSource(root=root).cases([PPG])


def test_a_missing_or_empty_directory_and_an_unknown_case_are_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        WfdbSource(root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"{tmp_path} .*RECORDS.*\*\.hea"):
        WfdbSource(root=tmp_path).cases([PPG])
    write(tmp_path)
    with pytest.raises(DataError, match=f"case r2: .* 1 of {tmp_path}"):
        WfdbSource(root=tmp_path).read("r2", [PPG])


# Versions and fingerprints


def test_the_fingerprint_follows_each_file_and_the_version_the_list_and_headers(tmp_path):
    write(tmp_path)
    write(tmp_path, "r2")
    source = WfdbSource(root=tmp_path)
    first, version = source.fingerprint("r1"), source.version()
    assert source.fingerprint("r2") != first
    with (tmp_path / "r1.dat").open("r+b") as file:
        file.write(b"\7")
    second = source.fingerprint("r1")
    comment(tmp_path, "r1", "changed")
    assert len({first, second, source.fingerprint("r1")}) == 3
    assert WfdbSource(root=tmp_path).version() != version
    shutil.copytree(tmp_path, tmp_path / "copy")
    (tmp_path / "copy" / "RECORDS").write_text("r1\n")
    assert WfdbSource(root=tmp_path / "copy").version() != WfdbSource(root=tmp_path).version()


def test_the_fingerprint_does_not_depend_on_where_the_files_are(tmp_path):
    write(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (WfdbSource(root=tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint("r1") == two.fingerprint("r1")
    assert one.version() == two.version()


def test_source_names_and_settings_are_checked_with_a_suggestion(tmp_path):
    with pytest.raises(SettingsError, match=r"'wfbd'.*; did you mean wfdb\?"):
        open_source(name="wfbd", root=tmp_path)
    with pytest.raises(SettingsError, match=r"wfdb.*'subject_csv'; did you mean subjects_csv\?"):
        open_source(name="wfdb", root=tmp_path, subject_csv="x")
    with pytest.raises(SettingsError, match=r"wfdb.* root"):
        open_source(name="wfdb")
    with pytest.raises(SettingsError, match=r"wfdb, setting root: .*string, got 5"):
        open_source(name="wfdb", root=5)
    with pytest.raises(SettingsError, match=r"synthetic, setting subjects: .*integer, got ''"):
        open_source(name="synthetic", subjects="")


# BIDMC


def test_bidmc_is_42_records_of_35_patients(bidmc_dir):
    source = WfdbSource(root=bidmc_dir)
    cases = source.cases([PPG, ECG])
    subject = {case.case_id: case.subject_id for case in cases}
    assert (len(subject), len(set(subject.values()))) == (42, 35)
    for together in (("06", "07", "08", "09"), ("20", "21", "22", "23"), ("38", "39")):
        assert len({subject[f"bidmc{number}"] for number in together}) == 1
    assert subject["bidmc01"] == "s01182"
    # The samples themselves, against the bytes of the file and the header's own gain and baseline.
    raw = np.fromfile(bidmc_dir / "bidmc01.dat", "<i2").reshape(-1, 5).astype(float)
    signals = source.read("bidmc01", [PPG, ECG]).signals
    np.testing.assert_allclose(signals["PPG"].samples, (raw[:, 1] + 63710) / 138229.4494, rtol=1e-6)
    np.testing.assert_allclose(signals["ECG"].samples, (raw[:, 4] + 16367) / 32670.9091, atol=1e-6)
    assert (signals["PPG"].sfreq, len(signals["PPG"].samples)) == (125.0, 60001)
