"""`biofound pretrain --init-from` as a user meets it: what is taken, recorded, resumed and refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from biofound.commands.probe_data import seen_in_pretraining
from biofound.core.checkpoint import load_checkpoint
from biofound.core.trainer import Trainer
from biofound.core.verify import probe_windows
from biofound.files import sha256_of
from tests.chain import run

FIVE = ("ACC_X", "ACC_Y", "ACC_Z", "PPG", "ECG")
MODEL = ("--d-model", 16, "--num-layers", 1, "--context-length", 250, "--patch-size", 25)
SHORT = ("--epochs", 2, "--batch-size", 8, "--warmup-epochs", 1, "--no-amp", "--device", "cpu")
TABLE = "pretrain: {ACC_X: {}, ACC_Y: {}, ACC_Z: {}, PPG: {}, ECG: {}}\n"


def write_windows(directory, *, train, val, channels=("PPG", "ECG"), **changes):
    """Plain npz files, four windows of each person."""
    directory.mkdir()
    for seed, (split, people) in enumerate((("train", train), ("val", val))):
        x = probe_windows(
            windows=4 * len(people), channels=len(channels), samples=250, sfreq=125.0, seed=seed
        )
        said = {"sfreq": 125.0, "subjects": np.repeat(people, 4), "case_ids": np.repeat(people, 4), **changes}
        starts = np.tile(2.0 * np.arange(4), len(people))
        np.savez(directory / f"{split}_windows.npz", x=x, channels=channels, start_s=starts, **said)
    return directory


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("biofound.commands.pretrain.draw_figures", lambda trainer, val: None)


def pretrain(data, output, *options, code=0):
    result = run("pretrain", "--data-dir", data, "--output-dir", output, *SHORT, *options)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Windows of two and five channels, and a run on the former that later ones start from."""
    place = tmp_path_factory.mktemp("init")
    write_windows(place / "two", train=("ann", "ben"), val=("cem",))
    write_windows(place / "others", train=("cem", "dan"), val=("eva",))
    write_windows(place / "five", train=("cem", "dan"), val=("eva",), channels=FIVE)
    (place / "five.yaml").write_text(TABLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("biofound.commands.pretrain.draw_figures", lambda trainer, val: None)
        pretrain(place / "two", place / "parent", *MODEL)
    return place


@pytest.fixture(scope="module")
def parent(place):
    return place / "parent" / "best_model.pt"


def test_weights_and_model_settings_are_the_parents_and_it_is_named(place, parent, tmp_path):
    said = pretrain(place / "others", tmp_path / "run", "--init-from", parent, "--lr", 1e-9)
    before, after = load_checkpoint(parent), load_checkpoint(tmp_path / "run" / "last_model.pt")
    assert after.model == before.model
    assert max((after.encoder[n] - t).abs().max().item() for n, t in before.encoder.items()) < 1e-7
    assert after.step == 2 and before.step == 2  # a schedule of its own
    assert after.data.subjects == ("cem", "dan")
    assert (after.parent.path, after.parent.sha256) == (str(parent), sha256_of(parent))
    assert after.parent.subjects == ("ann", "ben") and after.parent.parent is None
    assert after.parent.fingerprint == before.data.fingerprint
    history = json.loads((tmp_path / "run" / "training_history.json").read_text())
    assert history["parent"] == {"path": str(parent), "sha256": sha256_of(parent)}
    config = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert config["settings"]["d_model"] == {"value": 16, "origin": f"checkpoint {parent}"}
    assert str(parent) in config["resolved"]["initial weights"]
    assert "initial weights" in said and "optimizer state" in said and "1 dropped" in said
    fresh = json.loads((place / "parent" / "training_history.json").read_text())
    assert fresh["parent"] is None
    grandchild = tmp_path / "grandchild"
    write_windows(tmp_path / "third", train=("fay",), val=("gil",))
    pretrain(tmp_path / "third", grandchild, "--init-from", tmp_path / "run" / "last_model.pt")
    chain = list(load_checkpoint(grandchild / "last_model.pt").ancestors())
    assert [one.subjects for one in chain] == [("cem", "dan"), ("ann", "ben")]
    write_windows(tmp_path / "leak", train=("fay",), val=("ann",))
    leak = ("--init-from", tmp_path / "run" / "last_model.pt")
    assert "1 validation patient(s) were in" in pretrain(tmp_path / "leak", tmp_path / "no", *leak, code=1)


def test_heads_of_other_terms_are_new_or_dropped_and_listed(place, parent, tmp_path):
    terms = ("--global-weight", 0, "--rhythm-weight", 0)
    said = pretrain(place / "others", tmp_path / "without", "--init-from", parent, *terms)
    assert "9 dropped" in said and "decoder.rhythm.from_latents.PPG.weight" in said  # and the optimizer's
    assert not load_checkpoint(tmp_path / "without" / "last_model.pt").model.rhythm_head
    without = ("--init-from", tmp_path / "without" / "last_model.pt")
    said = pretrain(place / "others", tmp_path / "with", *without)
    assert "8 new" in said and "1 dropped" in said


def test_five_channels_follow_two_and_are_resumed_exactly(place, parent, tmp_path, monkeypatch):
    given = ("--channels", ",".join(FIVE), "--channels-yaml", place / "five.yaml")
    said = pretrain(place / "five", tmp_path / "whole", "--init-from", parent, *given)
    assert "encoder.fusion.ACC_X" in said and "(50, 16) -> (125, 16)" in said
    with monkeypatch.context() as patched:
        fit = Trainer.fit

        def stop_early(self):
            self.stop = lambda: self.step == 0
            return fit(self)

        patched.setattr(Trainer, "fit", stop_early)
        pretrain(place / "five", tmp_path / "run", "--init-from", parent, *given)
    assert load_checkpoint(tmp_path / "run" / "last_model.pt").step == 1
    # without naming parent, model or channels again
    assert "resumed" in pretrain(place / "five", tmp_path / "run", "--resume", *given[2:])
    runs = [load_checkpoint(tmp_path / name / "last_model.pt") for name in ("whole", "run")]
    assert runs[0].parent == runs[1].parent is not None
    assert runs[0].model.channels == FIVE
    assert all(torch.equal(runs[1].encoder[name], tensor) for name, tensor in runs[0].encoder.items())
    losses = [
        json.loads((tmp_path / name / "training_history.json").read_text())["val_loss"]
        for name in ("whole", "run")
    ]
    assert losses[0] == losses[1]


def test_the_probe_marks_the_subjects_of_the_parent_too(place, parent, tmp_path):
    pretrain(place / "others", tmp_path / "run", "--init-from", parent)
    everybody = write_windows(tmp_path / "all", train=("ann", "cem", "zoe"), val=("yan", "dan"))
    people = [(name, 60 + k) for k, name in enumerate(("ann", "cem", "zoe", "yan", "dan"))]
    labels = tmp_path / "labels.csv"
    lines = [f"{name},0,8,{rate}" for name, rate in people]
    labels.write_text("\n".join(["case_id,start_s,end_s,HR", *lines]) + "\n")
    checkpoint = tmp_path / "run" / "last_model.pt"
    result = run(
        *("probe", "--checkpoint", checkpoint, "--data-dir", everybody, "--labels", labels),
        *("--target", "HR", "--folds", 2, "--repeats", 1, "--json"),
    )
    assert result.exit_code == 0, result.output
    (row,) = (row for row in json.loads(result.stdout)["rows"] if row["name"] == str(checkpoint))
    assert row["subjects_in_pretraining"] == ["ann", "cem", "dan"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--resume",), 2, ("option --init-from, option --resume", "is resumed without it")),
        (("--resume-from", "x.pt"), 2, ("option --init-from, option --resume-from",)),
        (("--d-model", 32), 2, ("--init-from", "d_model 16 (not 32)")),
        (("--patch-embedding", "linear", "--num-layers", 2), 2, ("num_layers 1 (not 2)", "(not linear)")),
        (("--channels", "PPG"), 2, ("channel ECG is not among the new channels PPG",)),
        (("--init-from", "none.pt"), 1, ("none.pt: no such file",)),
        (("--init-from", "notes.pt"), 1, ("notes.pt: cannot be read as a checkpoint",)),
        (("--output-dir", "PARENT"), 2, ("lies in the output directory",)),
        (("--channels-yaml", "fast.yaml"), 1, ("filter of ECG", "'high_hz': 20.0", "--channels-yaml")),
    ],
)
def test_what_contradicts_the_parent_is_refused_by_name(place, parent, tmp_path, options, code, words):
    output = tmp_path / "run"
    (tmp_path / "notes.pt").write_text("mine")
    (tmp_path / "fast.yaml").write_text(
        "pretrain: {PPG: {}, ECG: {filter: {low_hz: 0.5, high_hz: 20, order: 4}}}"
    )
    known = {name: tmp_path / name for name in ("notes.pt", "fast.yaml")} | {"PARENT": parent.parent}
    options = [known.get(option, option) for option in options]
    said = pretrain(place / "others", output, "--init-from", parent, *options, code=code)
    assert all(word in " ".join(said.split()) for word in words), said
    assert not output.exists()


def test_windows_that_do_not_fit_the_parent_are_refused(place, parent, tmp_path):
    write_windows(tmp_path / "slow", train=("dan",), val=("eva",), sfreq=100.0)
    said = pretrain(tmp_path / "slow", tmp_path / "run", "--init-from", parent, code=1)
    assert "250 samples at 125 Hz" in said and "250 samples at 100 Hz" in said
    write_windows(tmp_path / "leak", train=("dan", "eva"), val=("ben", "fay"))
    said = pretrain(tmp_path / "leak", tmp_path / "run", "--init-from", parent, code=1)
    assert "1 validation patient(s) were in the training of" in said and "(ben)" in said
    assert not (tmp_path / "run").exists()
    nameless = tmp_path / "nameless"
    shutil.copytree(place / "two", nameless)
    for path in nameless.glob("*.npz"):
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in ("x", "channels", "sfreq")}
        np.savez(path, **kept)
    pretrain(nameless, tmp_path / "unnamed", *MODEL)
    given = ("--init-from", tmp_path / "unnamed" / "last_model.pt")
    pretrain(place / "others", tmp_path / "run", *given)
    config = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert "it names no patients" in config["resolved"]["not checked, parent"]


def test_whom_any_ancestor_saw_counts_as_seen_and_one_that_does_not_tell_leaves_it_open(parent):
    old = load_checkpoint(parent)
    child = replace(old, data=replace(old.data, subjects=("zoe",)), parent=old.as_parent(parent))
    assert seen_in_pretraining(child, []) == ("ann", "ben", "zoe")
    silent = replace(child.parent, subjects=(), synthetic=False, fingerprint="0")
    assert seen_in_pretraining(replace(child, parent=silent), []) is None
