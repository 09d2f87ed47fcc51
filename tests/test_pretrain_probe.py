"""`pretrain --probe-labels`: what the run says and writes, whose labels are read, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from biofound.commands.pretrain_probe import open_probe
from biofound.commands.probe_data import LabelRequest, read_labels
from biofound.core.checkpoint import load_checkpoint
from biofound.data.mixture import Part
from biofound.data.store import INDEX_NAME, StoreWindows
from biofound.data.windows import ArrayWindows, select_channels
from biofound.errors import DataError, SettingsError
from biofound.figures import draw_losses
from biofound.settings import PretrainSettings
from tests.benchmarks.bench_feeding import make_store
from tests.chain import SMALL_RUN, chain, done, run
from tests.data.cohort import change_sealed
from tests.data.test_labels import write_record
from tests.settings_reads import recorded_reads

# wfdb's writers, which only tests use, do what pandas 3 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
STREAM = ("--data-dir", "synthetic:icu", "--hours-per-epoch", 0.05)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return chain(tmp_path_factory.getbasetemp()).store


def plain(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_a_run_says_and_writes_its_probes_and_its_best_is_chosen_by_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("biofound.commands.pretrain_data.VALIDATION_HOURS", 0.1)  # 36 windows
    monkeypatch.setattr("biofound.commands.pretrain.draw_reconstructions", lambda *_, **__: None)
    output = tmp_path / "run"
    probed = ("--probe-labels", "truth", "--probe-interval", 1, "--best-by", "probe")
    with recorded_reads() as reads:
        said = done("pretrain", *STREAM, *probed, "--output-dir", output, *SMALL_RUN, "--json")
    read = {name for model, name in reads if model == "PretrainSettings"}
    assert {"probe_labels", "probe_target", "probe_interval", "best_by"} <= read
    assert "HR of 6 subjects, 36 validation windows, every 1 epochs" in plain(said.stderr)
    history = json.loads((output / "training_history.json").read_text())
    probe = history["val_probe"]
    for error, constant in zip(probe["error"], probe["constant_error"], strict=True):
        assert f"probe of HR: error {error:.3f}, constant guess {constant:.3f}" in plain(said.stderr)
    best = int(np.argmin(probe["error"])) + 1
    assert history["best_epoch"] == best == load_checkpoint(output / "best_model.pt").epoch
    result = json.loads(said.stdout)
    assert result["probe"] == {
        "epoch": best,
        "target": "HR",
        "error": probe["error"][best - 1],
        "constant_error": probe["constant_error"][0],
    }
    # A run that is stopped before its first probe has no best epoch yet.
    draw_losses(tmp_path / "curves.png", {**history, "best_epoch": None})


def test_several_stores_read_their_own_numerics_and_windows_of_no_recording_have_none(tmp_path) -> None:
    windows = []
    for number, rate in enumerate((60.0, 90.0)):
        root, outdir = tmp_path / f"recordings{number}", tmp_path / f"store{number}"
        root.mkdir(), outdir.mkdir()
        for case in ("case0000", "case0001"):  # both have records of the same names
            write_record(root, case)
            samples = np.full((60, 1), rate + int(case[-1]))
            write_record(root, f"{case}n", sfreq=1, names=("HR",), samples=samples)
        make_store(outdir, cases=2, windows=3)
        source = {"name": "wfdb", "root": str(root), "record_is_subject": True}
        change_sealed(outdir / INDEX_NAME, lambda index, source=source: index.update(source=source))
        windows.append(StoreWindows(outdir))
    one, other = windows[0], select_channels(windows[1], ("ECG", "PPG"))
    no_recording = ArrayWindows(
        np.zeros((2, 2, 1250), np.float32), channels=("ECG", "PPG"), sfreq=125.0, subjects=["x"] * 2,
        case_ids=["case0000"] * 2, start_s=[0.0, 10.0],
    )  # fmt: skip
    wanted = LabelRequest(labels="numerics", target="HR")
    labels, subjects = read_labels(wanted, [one, no_recording, other], where="here")
    rates = [60.0] * 3 + [61.0] * 3 + [np.nan] * 2 + [90.0] * 3 + [91.0] * 3
    np.testing.assert_allclose(labels.values, rates, atol=0.01)
    assert subjects.tolist()[6:9] == ["x", "x", "case0000"]
    moved = LabelRequest(labels="numerics", target="HR", root=tmp_path, option="--probe-labels")
    with pytest.raises(SettingsError, match=r"--probe-labels-root: names one directory.* from 2"):
        read_labels(moved, [one, other], where="here")


def test_a_csv_cannot_tell_cases_of_the_same_name_apart(tmp_path) -> None:
    windows = make_store(tmp_path, cases=3, windows=2)
    labels = tmp_path / "labels.csv"
    rows = [f"case000{case},0,20,{60 + case}" for case in range(3)]
    labels.write_text("\n".join(["case_id,start_s,end_s,HR", *rows]) + "\n")
    settings = PretrainSettings(probe_labels=str(labels))
    with recorded_reads() as reads:
        probe = open_probe(settings, [Part(name="one", windows=windows)])
    assert ("PretrainSettings", "probe_labels_root") in reads
    assert probe.task.values.tolist() == [60, 60, 61, 61, 62, 62]
    np.testing.assert_array_equal(probe.windows.read(np.array([4])), windows.read(np.array([4])))
    with pytest.raises(DataError, match="one and two both have cases case0000"):
        open_probe(settings, [Part(name=name, windows=windows) for name in ("one", "two")])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--best-by", "probe"), "best_by probe needs probe_labels"),
        (("--probe-labels-root", "x"), "probe_labels_root needs probe_labels"),
        (("--probe-labels", "numeric"), "numerics, annotations, truth or a CSV, got 'numeric'"),
        (("--probe-labels", "truth"), "add data_dir synthetic:icu"),
        ((*STREAM, "--probe-labels", "truth", "--probe-labels-root", "x"), "numerics and annotations"),
        (("--probe-labels", "numerics", "--probe-interval", 0), "at least 1"),
        (("--probe-labels", "numerics"), "the embedded cohort"),
        ((*STREAM, "--probe-labels", "numerics"), "expected a window store built from source wfdb"),
        (("--data-dir", "STORE", "--probe-labels", "numerics"), "built from synthetic; give a CSV"),
        (("--data-dir", "STORE", *STREAM, "--probe-labels", "truth"), "whose truth is not known"),
    ],
)
def test_labels_that_are_not_to_be_had_are_refused_and_nothing_is_written(
    store, tmp_path, empty_place, arguments, words
) -> None:
    given = [store if argument == "STORE" else argument for argument in arguments]
    result = run("pretrain", *given, "--output-dir", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert words in plain(result.stderr)
    assert not (tmp_path / "run").exists()


def test_too_few_subjects_and_targets_that_no_window_has_are_refused(store, tmp_path) -> None:
    labels = tmp_path / "labels.csv"
    val = StoreWindows(store / "val")
    lines = [f"{case},0,1000,60" for case in set(val.info(np.arange(len(val))).case_id)]
    labels.write_text("\n".join(["case_id,start_s,end_s,HR", *lines]) + "\n")
    for target, words in (("HR", "at least 3 subjects with a label HR, got"), ("BP", "no label 'BP'")):
        given = ("--data-dir", store, "--probe-labels", labels, "--probe-target", target)
        result = run("pretrain", *given, "--output-dir", tmp_path / "run")
        assert result.exit_code == 1 and words in plain(result.stderr)
    assert not (tmp_path / "run").exists()
