"""`biofound finetune`: its files and rows on a small cohort, resuming, folds, subsets, and its refusals."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from biofound.core.checkpoint import load_checkpoint, save_checkpoint
from biofound.core.inflate import inflate
from biofound.core.task import load_task_checkpoint
from biofound.data.windows import open_windows
from tests.chain import Chain, answer, chain, done, run, start, tree

SPLITS = ("train", "val", "test")
FAST = (
    *("--head-epochs", 2, "--layers-epochs", 1, "--all-epochs", 1, "--unfreeze-layers", 1),
    *("--batch-size", 8, "--threads", 1, "--device", "cpu", "--seed", 5, "--log-interval", 1),
)
QUICK = ("--head-epochs", 1, "--layers-epochs", 0, "--all-epochs", 0, "--batch-size", 64)
ROWS = ["classical features", "linear probe", "random initialisation", "fine-tuned"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Chain:
    return chain(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory) -> Path:
    """The cohort's windows as npz with three axes of acceleration, in another order, a case without it."""
    directory, generator = tmp_path_factory.mktemp("plain"), np.random.default_rng(0)
    for split in SPLITS:
        windows = open_windows(small.store, split)
        index = np.arange(len(windows))
        x, info = windows.read(index), windows.info(index)
        acc = generator.normal(size=(len(x), 3, x.shape[2])).astype(np.float32)
        acc[info.case_id == info.case_id[0]] = np.nan
        np.savez(
            directory / f"{split}_windows.npz",
            x=np.concatenate([x[:, ::-1], acc], axis=1),
            channels=[*windows.channels[::-1], "ACC_X", "ACC_Y", "ACC_Z"],
            sfreq=windows.sfreq,
            subjects=info.subject_id,
            case_ids=info.case_id,
            start_s=info.start_s,
        )
    return directory


@pytest.fixture(scope="module")
def labels(small, tmp_path_factory) -> Path:
    """A number and a word for every window but the last of each case; all alike; of one case alone; late."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["case_id", "start_s", "end_s", "level", "word", "code", "same"])
        for split in SPLITS:
            windows = open_windows(small.store, split)
            info = windows.info(np.arange(len(windows)))
            level = np.nanstd(windows.read(np.arange(len(windows)))[:, 0], axis=1)
            for case, begin, number in zip(info.case_id, info.start_s, level, strict=True):
                row = int(begin // 10) % 2
                out.writerow([case, begin, begin + 10, number, ("low", "high")[row], row, "one"])
    return path


def arguments(small, data_dir, labels, output, *more, target="word", task="classification"):
    return (
        *("finetune", "--checkpoint", small.output / "best_model.pt", "--data-dir", data_dir),
        *("--labels", labels, "--target", target, "--task", task, "--output-dir", output),
        *FAST,
        *more,
    )


@pytest.fixture(scope="module")
def tuned(small, plain, labels, tmp_path_factory):
    """The directory and the answer of a classification of all five channels."""
    output = tmp_path_factory.mktemp("tuned") / "model"
    return output, answer(*arguments(small, plain, labels, output))


@pytest.fixture(autouse=True)
def no_more_pictures(tuned, monkeypatch):
    """After the one run whose pictures are looked at, none: they take most of the time."""
    monkeypatch.setattr("biofound.commands.finetune.draw_scores", lambda *_, **__: None)
    monkeypatch.setattr("biofound.commands.finetune._draw_curves", lambda *_: None)


# ---- Files and rows


def test_the_rows_stand_beside_each_other_on_the_same_test_windows(tuned, plain):
    output, found = tuned
    rows = found["rows"]
    assert [row["name"] for row in rows] == ["training majority", *ROWS]
    test = open_windows(plain, "test", sfreq_if_unsaid=125.0)
    assert {row["windows"] for row in rows} == {len(test)}
    assert {row["subjects"] for row in rows} == {len(test.subjects)}
    assert all({"auroc", "auprc", "balanced_accuracy", "f1", "calibration_error"} <= set(row) for row in rows)
    assert found["synthetic"] is False  # a plain npz does not say so
    assert json.loads((output / "results.json").read_text()) == found
    pairs = [(one["name"], one["against"]) for one in found["differences"]]
    assert pairs == [("fine-tuned", name) for name in ("training majority", *ROWS[:3])]


def test_the_files_are_those_of_a_training(tuned, small):
    output, _ = tuned
    files = {path.name for path in output.iterdir()}
    assert files == {
        *("best_model.pt", "last_model.pt", "training_history.json", "training_config.json", "metrics.jsonl"),
        *("results.json", "training_curves.png", "scores.png", "random_initialisation"),
    }
    history = json.loads((output / "training_history.json").read_text())
    assert history["stage"] == ["head", "head", "layers", "all"]
    model = load_task_checkpoint(output / "best_model.pt")
    assert model.model.channels == ("ECG", "PPG", "ACC_X", "ACC_Y", "ACC_Z")
    assert model.task.classes == ("high", "low")
    assert model.parent is not None
    assert model.parent["channels"] == ["PPG", "ECG"]
    parent = load_checkpoint(small.output / "best_model.pt")
    assert model.data.filters["PPG"] == parent.data.filters["PPG"]
    assert model.data.filters["ACC_X"]["high_hz"] == 10.0  # of the channel table
    assert model.data.subjects
    assert load_task_checkpoint(output / "random_initialisation" / "best_model.pt").parent is None
    random = json.loads((output / "random_initialisation" / "training_history.json").read_text())
    assert random["stage"] == ["all"] * 4  # as many epochs


def test_only_training_windows_are_trained_on_and_the_random_network_starts_from_random_weights(
    tuned, small, plain
):
    output, _ = tuned
    windows = open_windows(plain, "train", sfreq_if_unsaid=125.0)
    labelled = len(windows)
    assert labelled % 8 and len(open_windows(plain, "test", sfreq_if_unsaid=125.0)) >= 8  # a step more
    parent = load_checkpoint(small.output / "best_model.pt").encoder
    for directory, alike in ((output, True), (output / "random_initialisation", False)):
        steps = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        assert len(steps) == 4 * -(-labelled // 8)  # 4 epochs in batches of 8
        found = load_task_checkpoint(directory / "best_model.pt").encoder
        for name, tensor in parent.items():
            if tensor.ndim == 2 and tensor.numel() > 200:
                both = torch.stack([tensor.flatten(), found[name].flatten()])
                assert (both.corrcoef()[0, 1] > 0.9) == alike, name


def test_a_head_alone_leaves_the_encoder_bit_for_bit_the_pretrained_one(small, plain, labels, tmp_path):
    only = ("--layers-epochs", 0, "--all-epochs", 0, "--channels", "PPG,ECG")
    answer(*arguments(small, plain, labels, tmp_path, *only))
    saved, parent = (
        load_task_checkpoint(tmp_path / "last_model.pt"),
        load_checkpoint(small.output / "best_model.pt"),
    )
    assert all(torch.equal(saved.encoder[name], tensor) for name, tensor in parent.encoder.items())


def test_a_regression_of_the_built_store_scores_in_the_unit_of_its_label(small, labels, tmp_path):
    given = arguments(small, small.store, labels, tmp_path, target="level", task="regression")
    found = answer(*given)
    constant = found["rows"][0]
    assert constant["name"] == "training median"
    with labels.open() as file:
        level = {(row["case_id"], float(row["start_s"])): float(row["level"]) for row in csv.DictReader(file)}
    values = {}
    for split in SPLITS:
        info = (windows := open_windows(small.store, split)).info(np.arange(len(windows)))
        values[split] = [level[case, begin] for case, begin in zip(info.case_id, info.start_s, strict=True)]
    median = np.median(values["train"] + values["val"])  # rows without early stopping train on both
    by_subject: dict[str, list[float]] = {}
    for subject, value in zip(info.subject_id, values["test"], strict=True):
        by_subject.setdefault(subject, []).append(abs(value - median))
    assert constant["mae"] == pytest.approx(np.mean([np.mean(one) for one in by_subject.values()]))
    assert found["synthetic"] is True
    task = load_task_checkpoint(tmp_path / "best_model.pt").task
    assert task.target_mean == pytest.approx(np.mean(values["train"]))


def test_predict_gives_what_finetune_scored(tuned, plain, labels, tmp_path):
    output, found = tuned
    told = answer(
        *("predict", "--model", output / "best_model.pt", "--data-dir", plain, "--labels", labels),
        *("--output", tmp_path / "predictions.npz", "--device", "cpu"),
    )
    everybody, unseen = told["scores"]
    subjects = {split: np.unique(np.load(plain / f"{split}_windows.npz")["subjects"]) for split in SPLITS}
    model = load_task_checkpoint(output / "best_model.pt")
    assert list(model.data.subjects) == subjects["train"].tolist()
    assert list(model.validation_subjects) == subjects["val"].tolist()
    assert told["subjects_in_training"] == sorted([*subjects["train"], *subjects["val"]])
    scored = found["rows"][-1]  # the test subjects, the only ones of whom nothing is known
    for key in ("subjects", "windows", "auroc", "balanced_accuracy", "subject_errors"):
        assert unseen[key] == pytest.approx(scored[key], rel=1e-5), key
    assert everybody["subjects"] == sum(map(len, subjects.values()))


# ---- Resuming


@pytest.mark.slow  # new processes import everything
def test_killed_and_resumed_it_equals_the_undisturbed_run(tuned, small, plain, labels, tmp_path):
    output, found = tuned
    given = arguments(small, plain, labels, tmp_path / "model", "--checkpoint-minutes", 1e-9)
    process = start(*given, stderr=tmp_path / "stderr")
    while process.is_alive() and not (tmp_path / "model" / "best_model.pt").is_file():
        process.join(0.01)
    process.kill()
    process.join()
    resumed = answer(*given, "--resume")
    assert {**resumed, "output_dir": ""} == {**found, "output_dir": ""}
    ours, theirs = (load_task_checkpoint(path / "best_model.pt") for path in (tmp_path / "model", output))
    assert all(torch.equal(ours.encoder[name], theirs.encoder[name]) for name in theirs.encoder)


def test_a_finished_run_resumes_to_the_same_results_and_other_settings_are_refused(
    tuned, small, plain, labels, tmp_path
):
    output, found = tuned
    shutil.copytree(output, tmp_path / "model")
    given = arguments(small, plain, labels, tmp_path / "model", "--resume")
    assert answer(*given)["rows"] == found["rows"]
    before = tree(tmp_path / "model")
    refused = run(*given, "--head-lr", 0.5)
    assert refused.exit_code == 2
    assert "head_lr was 0.001 and is 0.5" in refused.stderr
    refused = run(*given, "--target", "code")
    assert refused.exit_code == 2
    assert "training windows or their labels differ" in refused.stderr
    assert tree(tmp_path / "model") == before


def test_an_earlier_run_is_moved_away_whole(tuned, small, plain, labels, tmp_path):
    output, _ = tuned
    shutil.copytree(output, tmp_path / "model")
    before = tree(tmp_path / "model")
    done(*arguments(small, plain, labels, tmp_path / "model", "--channels", "ECG,PPG", *QUICK))
    assert tree(tmp_path / "model" / "earlier_1") == before


# ---- Folds and subsets


@pytest.mark.slow  # a dozen trainings
def test_folds_test_every_subject_once_and_subsets_are_rows_of_one_table(small, plain, labels, tmp_path):
    subsets = ("--channels", "PPG,ECG", "--channels", "ACC_X,PPG,ECG")
    found = answer(*arguments(small, plain, labels, tmp_path, "--folds", 3, *subsets, *QUICK))
    windows = [open_windows(plain, split, sfreq_if_unsaid=125.0) for split in SPLITS]
    assert {row["windows"] for row in found["rows"]} == {sum(map(len, windows))}
    suffixes = (" (PPG, ECG)", " (ACC_X, PPG, ECG)")
    assert [row["name"] for row in found["rows"]] == [
        "training majority",
        *(f"{name}{suffix}" for suffix in suffixes for name in ROWS),
    ]
    assert [row["channels"] for row in found["rows"]][1::4] == [["PPG", "ECG"], ["ACC_X", "PPG", "ECG"]]
    pairs = {(one["name"], one["against"]) for one in found["differences"]}
    assert (f"fine-tuned{suffixes[1]}", f"fine-tuned{suffixes[0]}") in pairs
    tested: list[str] = []
    everybody = sorted({subject for part in windows for subject in part.subjects})
    for fold in (1, 2, 3):
        trained = load_task_checkpoint(tmp_path / "channels_PPG-ECG" / f"fold_{fold}" / "best_model.pt")
        tested += sorted(set(everybody) - set(trained.data.subjects))
    assert set(tested) == set(everybody)


# ---- Refusals


def refused(code: int, *given: object, output: Path) -> str:
    """What a call says that is refused with `code`, and writes nothing."""
    result = run(*given)
    assert result.exit_code == code, result.output
    assert not output.exists() or not list(output.iterdir())
    return result.stderr


def rewritten(plain: Path, directory: Path, split: str, **changes: object) -> Path:
    shutil.copytree(plain, directory)
    with np.load(directory / f"{split}_windows.npz") as file:
        arrays = {**file, **changes}
    np.savez(directory / f"{split}_windows.npz", **arrays)
    return directory


def test_each_misuse_has_its_one_message_and_writes_nothing(small, plain, labels, tmp_path):
    output = tmp_path / "out"

    def told(code, data_dir, *more, labels=labels, **target):
        return refused(code, *arguments(small, data_dir, labels, output, *more, **target), output=output)

    subjects = np.load(plain / "train_windows.npz")["subjects"]
    count = len(np.load(plain / "test_windows.npz")["subjects"])
    shared = rewritten(plain, tmp_path / "shared", "test", subjects=np.repeat(subjects[:1], count))
    assert "1 patient(s) are in train and in test" in told(1, shared)
    assert "nothing to tell apart" in told(1, plain, target="same")
    assert "are words, such as" in told(1, plain, task="regression")
    assert "not HAT" in told(1, plain, "--channels", "PPG,ECG,HAT")
    assert "but no ECG. It was trained without channel dropout" in told(2, plain, "--channels", "PPG,ACC_X")
    assert "no windows for split 'test'" in told(1, without(plain, tmp_path / "two", "test"))
    assert "at 100 Hz" in told(1, rates(plain, tmp_path / "slow"))
    assert "no such file" in told(1, plain, labels=tmp_path / "none.csv")
    late = tmp_path / "late.csv"
    late.write_text(
        f"case_id,start_s,end_s,word\n{cases(plain)[0]},1e6,1e6,low\n".replace(",1e6,low", ",1000010,low")
    )
    assert "labels must overlap windows in time" in told(1, plain, labels=late)
    one = tmp_path / "one.csv"
    lines = labels.read_text().splitlines()
    only = [line for line in lines[1:] if line.split(",")[0] == cases(plain)[0]]
    one.write_text("\n".join([lines[0], *only]) + "\n")
    assert "no window of val, test has a label" in told(1, plain, labels=one)
    empty = np.full_like(np.load(plain / "val_windows.npz")["x"], np.nan)
    assert "without a sample of any of" in told(1, rewritten(plain, tmp_path / "empty", "val", x=empty))
    assert "12 subjects have labels; each fold" in told(1, plain, "--folds", 13)
    assert "has 1 mixer layers" in told(2, plain, "--unfreeze-layers", 9)
    assert "all 0: nothing" in told(2, plain, "--head-epochs", 0, "--layers-epochs", 0, "--all-epochs", 0)


def without(plain, directory, split):
    shutil.copytree(plain, directory)
    (directory / f"{split}_windows.npz").unlink()
    return directory


def rates(plain, directory):
    for split in SPLITS:
        rewritten(plain, directory / split, split, sfreq=100.0)
        shutil.move(directory / split / f"{split}_windows.npz", directory / f"{split}_windows.npz")
        shutil.rmtree(directory / split)
    return directory


def cases(plain):
    return [str(case) for case in np.load(plain / "train_windows.npz")["case_ids"]]


def test_windows_without_a_label_are_counted_and_left_out(small, plain, labels, tmp_path):
    lines = labels.read_text().splitlines()
    dropped = lines[1].split(",")[0]
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("\n".join(line for line in lines if not line.startswith(f"{dropped},")) + "\n")
    with fewer.open("a") as file:
        file.write(f"{lines[-1].split(',')[0]},5000,5010,1,low,0,one\n")  # after its recording's end
    result = done(*arguments(small, plain, fewer, tmp_path / "out", *QUICK, "--json"))
    found, said = json.loads(result.stdout), " ".join(result.stderr.split())
    assert "rows label nothing" in said and "5000 to 5010 s" in said
    assert "ACC_X, ACC_Y, ACC_Z: new channels are without influence on a head alone" in said
    assert found["cases_without_label"] == [dropped]
    assert found["windows_without_label"] == sum(line.startswith(f"{dropped},") for line in lines)


def test_an_inflated_encoder_starts_as_the_pretrained_one_on_its_channels(small, tmp_path):
    parent = load_checkpoint(small.output / "best_model.pt")
    path = tmp_path / "five.pt"
    five = inflate(parent, channels=("ECG", "ACC_X", "PPG"), seed=1).model
    save_checkpoint(path, parent)
    x = torch.randn(3, 2, parent.model.context_length)
    with_acc = torch.stack([x[:, 1], torch.randn(3, parent.model.context_length), x[:, 0]], dim=1)
    torch.testing.assert_close(five.encoder(with_acc), parent.build_encoder()(x), rtol=0, atol=1e-6)
