"""Windows of which some lack a channel, from pretraining to the probe, and a probe that lacks one in all."""

import json
from dataclasses import replace

import numpy as np
import pytest

from biofound.core.checkpoint import load_checkpoint, save_checkpoint
from biofound.core.task import load_task_checkpoint
from biofound.core.verify import probe_windows
from tests.chain import answer, done, run

PEOPLE = {"train": 6, "val": 3}
WITHOUT_ECG = ("train1", "train4", "val0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Windows of people of whom some have no ECG, also as PPG alone; their labels; and a run on them."""
    place = tmp_path_factory.mktemp("missing")
    for name in ("windows", "ppg"):
        (place / name).mkdir()
    labels = ["case_id,start_s,end_s,HR"]
    for seed, (split, count) in enumerate(PEOPLE.items()):
        who = np.repeat([f"{split}{k}" for k in range(count)], 4)
        x = probe_windows(windows=len(who), channels=2, samples=250, sfreq=125.0, seed=seed)
        x[np.isin(who, WITHOUT_ECG), 1] = np.nan
        x[5, 0, 40:90] = np.nan  # and a gap
        starts = np.tile(2.0 * np.arange(4), count)
        said = {"sfreq": 125.0, "subjects": who, "case_ids": who, "start_s": starts}
        np.savez(place / "windows" / f"{split}_windows.npz", x=x, channels=["PPG", "ECG"], **said)
        np.savez(place / "ppg" / f"{split}_windows.npz", x=x[:, :1], channels=["PPG"], **said)
        labels += [f"{name},0,8,{60 + k}" for k, name in enumerate(np.unique(who))]
    (place / "labels.csv").write_text("\n".join(labels) + "\n")
    done(
        *("pretrain", "--data-dir", place / "windows", "--output-dir", place / "run", "--epochs", 1),
        *("--d-model", 16, "--num-layers", 1, "--context-length", 250, "--patch-size", 25),
        *("--batch-size", 8, "--no-amp", "--device", "cpu", "--channel-dropout", 0.5),
        *("--probe-labels", place / "labels.csv"),
    )
    return place


def test_pretraining_takes_what_is_missing_as_unobserved(place):
    history = json.loads((place / "run" / "training_history.json").read_text())
    losses = [history[name][0] for name in ("train_loss", "val_loss")] + history["val_probe"]["error"]
    losses += [history["val_msm_by_channel"][name][0] for name in ("PPG", "ECG")]
    assert np.isfinite(losses).all() and min(losses) > 0
    assert (place / "run" / "reconstructions.png").stat().st_size > 1000
    assert load_checkpoint(place / "run" / "best_model.pt").settings["channel_dropout"] == 0.5


def probe(place, data, checkpoint):
    return (
        *("probe", "--checkpoint", checkpoint, "--data-dir", place / data, "--target", "HR"),
        *("--labels", place / "labels.csv", "--folds", 2, "--repeats", 1),
    )


def test_probe_takes_what_is_missing_as_unobserved_in_some_windows_or_in_all(place):
    checkpoint = place / "run" / "best_model.pt"
    found = {}
    for data in ("windows", "ppg"):
        rows = {row["name"]: row for row in answer(*probe(place, data, checkpoint))["rows"]}
        assert all(np.isfinite(row["mae"]) for row in rows.values())
        assert rows[str(checkpoint)]["features"] == rows["random encoder"]["features"] == 64
        found[data] = rows[str(checkpoint)]["mae"]
    assert found["windows"] != found["ppg"]


SCORES = ("mae", "subject_errors", "windows")
ROWS = ("classical features", "linear probe", "random initialisation", "fine-tuned")


def finetune(place, data, output, *more):
    return answer(
        *("finetune", "--checkpoint", place / "run" / "best_model.pt", "--data-dir", place / data),
        *("--labels", place / "labels.csv", "--target", "HR", "--task", "regression", "--folds", 3),
        *("--unfreeze-layers", 1, "--head-epochs", 1, "--layers-epochs", 1, "--all-epochs", 1),
        *("--batch-size", 8, "--threads", 1, "--device", "cpu", "--output-dir", output, *more),
    )


@pytest.mark.slow  # eighteen trainings
def test_a_network_fine_tuned_without_a_channel_is_the_same_whether_that_is_there_or_not(place, tmp_path):
    both = ("--channels", "PPG", "--channels", "PPG,ECG")
    found = finetune(place, "windows", tmp_path / "beside", *both)
    alone = finetune(place, "ppg", tmp_path / "alone")
    rows = {row["name"]: row for row in found["rows"]}
    for row in alone["rows"][1:]:
        same = rows[f"{row['name']} (PPG)"]
        assert [row[key] for key in SCORES] == [same[key] for key in SCORES], row["name"]
        other = rows[f"{row['name']} (PPG, ECG)"]
        assert row["mae"] != other["mae"] and other["channels"] == ["PPG", "ECG"]
    assert [row["name"] for row in alone["rows"][1:]] == list(ROWS)
    model = tmp_path / "beside" / "channels_PPG" / "fold_1" / "best_model.pt"
    saved = load_task_checkpoint(model)
    assert (saved.model.channels, saved.absent) == (("PPG", "ECG"), ("ECG",))
    predictions = {}
    for data in ("windows", "ppg"):
        path = tmp_path / f"{data}.npz"
        done("predict", "--model", model, "--data-dir", place / data, "--output", path, "--device", "cpu")
        with np.load(path) as arrays:
            predictions[data] = arrays["prediction"]
    np.testing.assert_array_equal(predictions["windows"], predictions["ppg"])
    assert np.ptp(predictions["ppg"]) > 0


def test_probe_refuses_a_subset_without_channel_dropout(place, tmp_path):
    trained = load_checkpoint(place / "run" / "best_model.pt")
    settings = {**trained.settings, "channel_dropout": 0.0}
    save_checkpoint(tmp_path / "plain.pt", replace(trained, settings=settings))
    result = run(*probe(place, "ppg", tmp_path / "plain.pt"))
    assert result.exit_code == 1 and "but no ECG. It was trained without channel dropout" in result.stderr
