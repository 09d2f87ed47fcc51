"""`biofound predict` and `predict_array`, through the real command line on the small cohort."""

import contextlib
import json
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

import biofound
from biofound.core.checkpoint import load_checkpoint
from biofound.core.predict import WindowPredictor
from biofound.core.task import (
    TaskCheckpoint,
    TaskConfig,
    build_task_model,
    load_task_checkpoint,
    save_task_checkpoint,
)
from biofound.data import model_input
from biofound.data.sources.synthetic import SyntheticSource
from biofound.data.store import StoreWindows
from biofound.settings import resolve_channels
from tests.chain import Chain, answer, chain, code_of, done, run, write_plain

SYNTHETIC = ("--source", "synthetic", "--subjects", 12, "--minutes", 0.6, "--seed", 1)
"""The recordings of which the chain's windows are."""
CLASSES = ("slow", "fast", "middle")
"""Not in the order of the alphabet."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain(tmp_path_factory.getbasetemp())


def task_model(small: Chain, config: TaskConfig) -> TaskCheckpoint:
    """The chain's encoder with a head of random weights, so large and centred that predictions differ."""
    known = load_checkpoint(small.output / "best_model.pt")
    model = build_task_model(known.model, config, seed=3)
    model.encoder.load_state_dict(known.encoder)
    train, last = StoreWindows(small.store / "train"), model.head.eval()[-1]
    with torch.no_grad():
        last.weight.mul_(20)
        last.bias.zero_()
        latents = model.encoder.eval()(torch.from_numpy(train.read(np.arange(len(train)))))
        last.bias.copy_(-model.head(latents).mean(0))
    parent = {"sha256": "", "channels": ["PPG", "ECG"], "synthetic": True, "fingerprint": "", "subjects": []}
    return TaskCheckpoint(
        model=known.model,
        task=config,
        encoder=known.encoder,
        head=model.head.state_dict(),
        data=known.data,
        parent=parent,
        settings={},
        epoch=1,
        step=1,
        metrics={},
    )


@pytest.fixture(scope="module")
def classifier(small: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "classifier.pt"
    config = TaskConfig(task="classification", target="pace", classes=CLASSES)
    save_task_checkpoint(path, task_model(small, config))
    return path


@pytest.fixture(scope="module")
def regressor(small: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "regressor.pt"
    config = TaskConfig(task="regression", target="HR", target_mean=80.0, target_std=12.0)
    save_task_checkpoint(path, task_model(small, config))
    return path


@pytest.fixture(scope="module")
def predicted(small: Chain, classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictions") / "p.parquet"
    told = answer("predict", "--model", classifier, "--data-dir", small.store, "--output", path)
    assert told["windows"] == pq.read_metadata(path).num_rows > 20
    assert (told["cases"], told["target"], told["classes"]) == (12, "pace", list(CLASSES))
    assert "scores" not in told
    return path


def rows_of(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).sort_values(["case_id", "start_s"], ignore_index=True)


def probabilities(rows: pd.DataFrame) -> np.ndarray:
    return rows[[f"probability_{name}" for name in CLASSES]].to_numpy()


# ---- Windows of a store


def test_a_script_of_ten_lines_gives_the_same_predictions(small, classifier, predicted) -> None:
    model = load_task_checkpoint(classifier).build()
    rows = pd.read_parquet(predicted)
    for path in small.store.glob("*/*.npz"):
        with np.load(path) as case, torch.no_grad():
            logits = model.head(model.encoder(torch.from_numpy(case["x"].astype(np.float32)))).numpy()
            of_case = rows[rows["case_id"] == json.loads(path.with_suffix(".json").read_text())["case_id"]]
            expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            np.testing.assert_allclose(probabilities(of_case), expected, rtol=1e-4, atol=1e-5)
            assert of_case["prediction"].tolist() == [CLASSES[k] for k in logits.argmax(1)]
            np.testing.assert_array_equal(of_case["start_s"], case["start_s"])
            np.testing.assert_array_equal(of_case[["quality_PPG", "quality_ECG"]], case["quality"])
    assert rows["prediction"].nunique() > 1


def test_numbers_are_in_the_unit_of_the_labels_and_have_no_probabilities(small, regressor, tmp_path) -> None:
    path = tmp_path / "p.npz"
    done("predict", "--model", regressor, "--data-dir", small.store, "--output", path, "--batch-size", 3)
    model = load_task_checkpoint(regressor).build()
    windows = StoreWindows(small.store / "train")
    with np.load(path) as arrays, torch.no_grad():
        assert arrays["prediction"].dtype == np.float32 and "probability" not in arrays
        latents = model.encoder(torch.from_numpy(windows.read(np.arange(len(windows)))))
        expected = 80 + 12 * model.head(latents)[:, 0].numpy()
        # the splits stand one after the other: train first
        np.testing.assert_allclose(arrays["prediction"][: len(windows)], expected, rtol=1e-4)
        assert arrays["case_id"][0] == windows.info(np.arange(1)).case_id[0] and np.ptp(expected) > 1


def test_the_file_says_how_it_was_made(small, classifier, predicted) -> None:
    header = json.loads(pq.read_schema(predicted).metadata[b"biofound"])
    assert (header["kind"], header["target"], header["classes"]) == (
        "biofound-predictions", "pace", list(CLASSES))  # fmt: skip
    assert header["origin"]["checkpoint_sha256"] == biofound.files.sha256_of(classifier)
    assert header["origin"]["data"]["data_dir"] == str(small.store)


def test_rows_are_not_held_and_their_number_at_once_does_not_matter(
    small, classifier, predicted, tmp_path, monkeypatch
) -> None:
    held: list[weakref.ref] = []
    most, rows_of_piece = 0, WindowPredictor._rows

    def counted(self, info, outputs):
        nonlocal most
        piece = rows_of_piece(self, info, outputs)
        held.append(weakref.ref(piece.probability))
        most = max(most, sum(each() is not None for each in held))
        return piece

    monkeypatch.setattr(model_input, "ROWS", 2)
    monkeypatch.setattr(WindowPredictor, "_rows", counted)
    path = tmp_path / "p.parquet"
    done("predict", "--model", classifier, "--data-dir", small.store, "--output", path)
    assert most <= 2 and len(held) > 8
    found, expected = pd.read_parquet(path), pd.read_parquet(predicted)
    np.testing.assert_allclose(probabilities(found), probabilities(expected), rtol=1e-4, atol=1e-5)
    assert found["case_id"].tolist() == expected["case_id"].tolist()


@pytest.mark.slow
def test_a_fresh_process_predicts_identically_from_the_models_file_alone(
    small, classifier, predicted, tmp_path
) -> None:
    shutil.copy(classifier, tmp_path / "model.pt")
    given = ["--model", "model.pt", "--data-dir", small.store, "--output", "p.parquet"]
    command = [sys.executable, "-m", "biofound", "predict", *map(str, given)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = pd.read_parquet(tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(found, pd.read_parquet(predicted), check_exact=True)


# ---- Recordings and arrays


def test_recordings_and_arrays_give_the_predictions_of_their_windows(
    small, classifier, predicted, tmp_path
) -> None:
    path = tmp_path / "p.parquet"
    done("predict", "--model", classifier, *SYNTHETIC, "--output", path)
    windows, recordings = rows_of(predicted), rows_of(path)
    for column in ("case_id", "subject_id", "start_s", "quality_PPG", "quality_ECG"):
        assert windows[column].tolist() == recordings[column].tolist(), column
    # the store's samples are rounded to float16
    np.testing.assert_allclose(probabilities(windows), probabilities(recordings), atol=0.05)
    table = resolve_channels(None, "finetune").named(["ECG", "PPG"])
    case = recordings["case_id"][0]
    signals = SyntheticSource(seed=1, subjects=12, minutes=0.6).read(case, table).signals
    x = np.stack([signals["ECG"].samples, signals["PPG"].samples])
    found = biofound.predict_array(
        classifier, x, sfreq=signals["ECG"].sfreq, channels=["ECG", "PPG"], batch_size=2
    )
    of_case = recordings[recordings["case_id"] == case]
    np.testing.assert_allclose(found.probability, probabilities(of_case), rtol=1e-4, atol=1e-5)
    assert found.prediction.tolist() == of_case["prediction"].tolist()
    np.testing.assert_array_equal(found.start_s, of_case["start_s"])
    nothing = biofound.predict_array(classifier, x[:, :50], sfreq=125.0, channels=["ECG", "PPG"])
    assert nothing.prediction.shape == (0,) and nothing.probability.shape == (0, 3)


# ---- Scores


def write_labels(path: Path, rows: pd.DataFrame, values: list) -> Path:
    table = pd.DataFrame({"case_id": rows["case_id"], "start_s": rows["start_s"]})
    table["end_s"], table["label"] = table["start_s"] + 10, values
    table.to_csv(path, index=False)
    return path


def test_labelled_windows_are_scored_and_those_not_trained_on_apart(
    small, regressor, predicted, tmp_path
) -> None:
    rows = pd.read_parquet(predicted)
    truth = 80 + 10 * np.random.default_rng(0).normal(size=len(rows))
    labels = write_labels(tmp_path / "labels.csv", rows[2:], truth[2:].tolist())
    path, picture = tmp_path / "p.parquet", tmp_path / "scores.png"
    given = ("predict", "--model", regressor, "--data-dir", small.store, "--labels", labels)
    told = answer(*given, "--target", "label", "--output", path, "--picture", picture)
    error = (pd.read_parquet(path)["prediction"] - truth).abs()[2:]
    by_subject = error.groupby(rows["subject_id"][2:]).mean()
    trained_on = load_task_checkpoint(regressor).data.subjects
    others = by_subject[~by_subject.index.isin(trained_on)]
    assert told["windows_without_label"] == 2 and len(trained_on) > 3
    assert told["subjects_in_training"] == sorted(set(trained_on) & set(by_subject.index))
    everybody, unseen = told["scores"]
    assert (everybody["name"], unseen["name"]) == ("all subjects", "subjects not in its training")
    assert everybody["mae"] == pytest.approx(by_subject.mean()) and everybody["subjects"] == len(by_subject)
    assert unseen["mae"] == pytest.approx(others.mean()) and unseen["subjects"] == len(others) >= 2
    assert unseen["loa_lower_interval"][0] <= unseen["loa_lower"] < unseen["bias"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    said = done(*given, "--target", "label", "--output", path).stderr
    assert "lower limit" in said and "2 windows have no label" in said and "were in its training" in said


def test_classes_are_scored_by_name_not_by_the_order_of_the_alphabet(
    small, classifier, predicted, tmp_path
) -> None:
    rows = pd.read_parquet(predicted)
    truth = rows["prediction"].to_numpy(copy=True)
    truth[::3] = "middle"
    labels = write_labels(tmp_path / "labels.csv", rows, truth.tolist())
    unknown = save_with(classifier, tmp_path / "unknown.pt", subjects=(), synthetic=False)
    given = ("predict", "--model", unknown, "--data-dir", small.store, "--labels", labels)
    told = answer(*given, "--target", "label", "--output", tmp_path / "p.parquet")
    (row,) = told["scores"]
    weights = 1 / rows.groupby("subject_id")["case_id"].transform("count")
    present = [k for k, name in enumerate(CLASSES) if (truth == name).any()]
    areas = [
        roc_auc_score(truth == CLASSES[k], probabilities(rows)[:, k], sample_weight=weights) for k in present
    ]
    assert row["auroc"] == pytest.approx(np.mean(areas)) and row["classes"] == list(CLASSES)
    table = pd.crosstab(truth, rows["prediction"]).reindex(index=CLASSES, columns=CLASSES, fill_value=0)
    assert row["confusion"] == table.to_numpy().tolist()
    assert told["subjects_in_training"] is None


@pytest.mark.parametrize(
    ("which", "column", "words"),
    [
        ("classifier", ["slow", "FAST"], ("expected slow, fast, middle", "got FAST")),
        ("regressor", ["slow", "fast"], ("predicts numbers", "labels are words")),
        ("regressor", ["", ""], ("found none",)),
    ],
)
def test_labels_that_do_not_fit_the_model_are_refused_before_anything_is_written(
    request, small, predicted, tmp_path, which, column, words
) -> None:
    rows = pd.read_parquet(predicted)[:2]
    labels = write_labels(tmp_path / "labels.csv", rows, column)
    model, path = request.getfixturevalue(which), tmp_path / "p.parquet"
    given = ("predict", "--model", model, "--data-dir", small.store, "--output", path, "--labels", labels)
    result = run(*given, "--target", "label")
    assert result.exit_code == 1 and all(word in result.stderr for word in words), result.stderr
    absent = run(*given)  # no column pace or HR
    assert absent.exit_code == 1 and ("pace" in absent.stderr or "HR" in absent.stderr)
    assert not path.exists()


# ---- Refusals


def save_with(model: Path, path: Path, **changes: object) -> Path:
    """The same model, as if its training windows had been others."""
    known = load_task_checkpoint(model)
    save_task_checkpoint(path, replace(known, data=replace(known.data, **changes)))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sfreq": 100.0}, ("1250 samples at 125 Hz", "1250 samples at 100 Hz")),
        ({"x": np.zeros((4, 2, 1000)), "sfreq": 125.0}, ("1000 samples at 125 Hz",)),
        ({"channels": ["PPG", "ACC_X"], "sfreq": 125.0}, ("takes PPG, ECG", "there is PPG, ACC_X", "no ECG")),
        ({}, ("no key `sfreq`",)),
    ],
)
def test_other_windows_are_refused_by_name(small, classifier, tmp_path, changes, words) -> None:
    plain = write_plain(tmp_path / "plain", small.store, **changes)
    output = tmp_path / "p.parquet"
    result = run("predict", "--model", classifier, "--data-dir", plain, "--output", output)
    assert result.exit_code == 1 and all(word in result.stderr for word in words), result.stderr
    assert not output.exists()


def test_other_filters_and_units_are_refused_in_windows_and_in_a_given_channel_table(
    small, classifier, tmp_path
) -> None:
    known = load_task_checkpoint(classifier).data
    bands = {**known.filters, "ECG": {**known.filters["ECG"], "high_hz": 15.0}}
    table, output = tmp_path / "channels.yaml", tmp_path / "p.parquet"
    table.write_text("finetune: {PPG: {}, ECG: {}}\n")
    for what, changes in (
        ("filter of ECG", {"filters": bands}),
        ("unit of PPG", {"units": {**known.units, "PPG": "V"}}),
    ):
        other = save_with(classifier, tmp_path / "other.pt", **changes)
        windows = run("predict", "--model", other, "--data-dir", small.store, "--output", output)
        assert windows.exit_code == 1 and what in windows.stderr, windows.stderr
        given = run("predict", "--model", other, *SYNTHETIC, "--channels-yaml", table, "--output", output)
        assert given.exit_code == 2 and what in given.stderr and str(table) in given.stderr
    assert not output.exists()


def test_other_files_are_refused(small, classifier, predicted, tmp_path) -> None:
    given = ("--data-dir", small.store, "--output", tmp_path / "p.parquet")
    pretrained = run("predict", "--model", small.output / "best_model.pt", *given)
    assert pretrained.exit_code == 1 and "biofound finetune" in pretrained.stderr
    vectors = tmp_path / "p.parquet"
    done("embed", "--checkpoint", small.output / "best_model.pt", *given)
    before = vectors.read_bytes()
    refused = run("predict", "--model", classifier, *given)
    assert refused.exit_code == 1 and "--overwrite" in refused.stderr and vectors.read_bytes() == before
    done("predict", "--model", classifier, *given, "--overwrite")
    done("predict", "--model", classifier, *given)  # the same again
    assert vectors.read_bytes() == predicted.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--output", "p.csv"), (".parquet or .npz",)),
        (("--output", "p.npz"), ("either data_dir",)),
        (("--output", "p.npz", *SYNTHETIC, "--labels", "l.csv"), ("give data_dir, not source",)),
        (("--output", "p.npz", "--data-dir", "x", "--target", "HR"), ("target is about scores",)),
        (("--output", "p.npz", "--data-dir", "x", "--picture", "s.png"), ("picture is about scores",)),
        (("--output", "p.npz", "--data-dir", "x", "--labels", "l.csv", "--labels-root", "r"), ("numerics",)),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, words) -> None:
    result = run("predict", "--model", "m.pt", *arguments, "--dry-run")
    assert result.exit_code == 2 and all(word in result.stderr for word in words), result.output


def test_the_guides_lines_predict_for_an_array(classifier, tmp_path, capsys) -> None:
    (tmp_path / "best_model.pt").symlink_to(classifier)
    source = SyntheticSource(seed=1, subjects=3, minutes=0.4)
    channels = resolve_channels(None, "pretrain").channels
    signals = source.read(source.cases(channels)[0].case_id, channels).signals
    np.save(tmp_path / "recording.npy", np.stack([signals[n].samples[::2] for n in ("ECG", "PPG")]))
    with contextlib.chdir(tmp_path):
        exec(code_of("predict.md", "predict_array"), {})
    assert capsys.readouterr().out.startswith("[ 0. 10.] ['")
