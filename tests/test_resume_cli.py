"""`biofound pretrain --resume` as a user meets it: what continues, what is refused, what is set aside."""

import errno
import json
import os
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from biofound.commands import pretrain as commands
from biofound.core.checkpoint import load_checkpoint, save_checkpoint
from biofound.core.trainer import Trainer
from biofound.core.verify import probe_windows
from biofound.errors import TrainingError
from biofound.files import hold_directory
from tests.chain import files_end_at, run, tree

SMALL = {"d-model": 16, "num-layers": 1, "expansion-factor": 2, "context-length": 250, "patch-size": 25}
SHORT = {"epochs": 4, "warmup-epochs": 2, "batch-size": 8, "log-interval": 1}
DRAW_FIGURES = commands.draw_figures
RUN = [part for name, value in {**SMALL, **SHORT}.items() for part in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than training here."""
    monkeypatch.setattr("biofound.commands.pretrain.draw_figures", lambda trainer, val: None)


def write_data(directory):
    """20 training and 6 validation windows in the plain form."""
    directory.mkdir()
    for split, count, seed in (("train", 20, 0), ("val", 6, 1)):
        x = probe_windows(windows=count, channels=2, samples=250, sfreq=125.0, seed=seed)
        np.savez(directory / f"{split}_windows.npz", x=x, channels=["PPG", "ECG"], sfreq=125.0)
    return directory


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "windows")


def pretrain_in(place, *options, code=0):
    """Run the command into `place/run`; gives what it said."""
    places = ("--data-dir", place / "windows", "--output-dir", place / "run")
    result = run("pretrain", *places, "--no-amp", *RUN, *options)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def pretrain(data, tmp_path):
    return partial(pretrain_in, tmp_path)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """The directory of a run that was stopped after 5 steps, as by a signal; to be copied."""
    place = tmp_path_factory.mktemp("stopped")
    write_data(place / "windows")
    with pytest.MonkeyPatch.context() as patched:
        fit = Trainer.fit

        def stop_early(self):
            self.stop = lambda: self.step + 1 == 5
            return fit(self)

        patched.setattr(Trainer, "fit", stop_early)
        patched.setattr(commands, "draw_figures", lambda trainer, val: None)
        pretrain_in(place)
    assert load_checkpoint(place / "run" / "last_model.pt").step == 5
    return place / "run"


@pytest.fixture
def stopped(data, stopped_run, tmp_path):
    """Puts a copy of `stopped_run` in `tmp_path/run`."""
    return partial(shutil.copytree, stopped_run, tmp_path / "run")


def history(directory):
    content = json.loads((directory / "training_history.json").read_text())
    return {name: content[name] for name in ("train_loss", "val_loss", "val_msm_by_channel", "lr")}


def test_a_resumed_run_has_the_history_of_an_undisturbed_one(pretrain, stopped, tmp_path):
    pretrain()
    (tmp_path / "run").rename(tmp_path / "reference")
    stopped()
    assert "resumed" in pretrain("--resume")
    assert history(tmp_path / "run") == history(tmp_path / "reference")


def test_resume_with_nothing_there_begins_so_that_a_job_script_need_not_ask(pretrain, tmp_path):
    assert "resumed" not in pretrain("--resume")
    assert load_checkpoint(tmp_path / "run" / "last_model.pt").step == 12


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--batch-size", "4"], "batch_size was 8 and is 4"),
        (["--seed", "1"], "seed was 42 and is 1"),
        (["--lr", "0.1"], "lr was 0.0005 and is 0.1"),
        (["--mask-type", "block"], "mask_type was random and is block"),
        (["--channels", "PPG"], "channels was"),
        (["--d-model", "32"], "d_model was 16 and is 32"),
    ],
)
def test_settings_that_would_make_another_run_are_refused_by_name(
    pretrain, stopped, tmp_path, options, named
):
    stopped()
    before = (tmp_path / "run" / "last_model.pt").read_bytes()
    output = pretrain("--resume", *options, code=2)
    assert named in output
    assert "--force" in output
    assert (tmp_path / "run" / "last_model.pt").read_bytes() == before


def test_a_loss_term_that_the_runs_version_did_not_have_was_off(pretrain, stopped, tmp_path):
    stopped()
    path = tmp_path / "run" / "last_model.pt"
    run = load_checkpoint(path)
    settings = {name: value for name, value in run.settings.items() if name != "qrs_weight"}
    save_checkpoint(path, replace(run, settings=settings))
    assert "qrs_weight was 0.0 and is 0.3" in pretrain("--resume", "--qrs-weight", "0.3", code=2)
    assert "resumed" in pretrain("--resume", "--qrs-weight", "0")


def test_other_windows_are_refused_by_their_fingerprint(pretrain, stopped, data):
    stopped()
    x = probe_windows(windows=20, channels=2, samples=250, sfreq=125.0, seed=9)
    np.savez(data / "train_windows.npz", x=x, channels=["PPG", "ECG"], sfreq=125.0)
    assert "fingerprint" in pretrain("--resume", code=2)


def test_force_resumes_all_the_same_and_says_with_what(pretrain, stopped, tmp_path):
    stopped()
    output = pretrain("--resume", "--force", "--lr", "0.001")
    assert "lr was 0.0005 and is 0.001" in output
    assert load_checkpoint(tmp_path / "run" / "last_model.pt").step == 12


def test_epochs_may_grow_during_warm_up_only(pretrain, stopped, tmp_path):
    stopped()  # after 5 of 6 steps of warm-up
    pretrain("--resume", "--epochs", "6", "--warmup-epochs", "2")
    assert load_checkpoint(tmp_path / "run" / "last_model.pt").step == 18
    output = pretrain("--resume", "--epochs", "8", "--warmup-epochs", "2", code=2)
    assert "epochs was 6 and is 8" in output
    assert "0.00e+00" in output  # the learning rate at the end of the cosine
    assert "step 6" in output


def test_how_and_where_to_compute_may_change(pretrain, stopped, tmp_path):
    stopped()
    pretrain("--resume", "--log-interval", "3", "--threads", "1", "--save-interval", "2", "--shuffle", "full")
    assert load_checkpoint(tmp_path / "run" / "last_model.pt").step == 12


def test_a_run_goes_on_from_a_named_checkpoint_into_another_directory(pretrain, tmp_path):
    pretrain("--save-interval", "2")
    run, other = tmp_path / "run", tmp_path / "other"
    pretrain("--resume-from", str(run / "checkpoint_epoch_2.pt"), "--output-dir", str(other))
    assert history(other) == history(run)


def test_a_run_that_cannot_be_resumed_keeps_every_file_in_its_place(pretrain, tmp_path):
    pretrain()
    run = tmp_path / "run"
    whole = load_checkpoint(run / "best_model.pt")
    save_checkpoint(run / "inflated.pt", replace(whole, resume=None, optimizer=None))
    before = tree(run)
    for name, options, code, message in [
        ("best_model.pt", [], 2, "this run is finished, all its 12 steps are done"),
        ("last_model.pt", [], 2, "this run is finished"),
        ("inflated.pt", [], 1, "no run that could be resumed"),
        ("best_model.pt", ["--d-model", "32", "--force"], 1, "cannot go on with this model"),
        ("best_model.pt", ["--stft-windows", "64", "--force"], 1, "cannot go on with this model"),
        ("no.pt", [], 1, "no such file"),
    ]:
        output = pretrain("--resume-from", str(run / name), *options, code=code)
        assert f"{run / name}: " in output and message in output
        assert tree(run) == before
    pretrain("--resume-from", str(run / "best_model.pt"), "--force", "--epochs", "5")
    assert {name: content for name, content in tree(run).items() if name.startswith("earlier_1/")} == {
        f"earlier_1/{name}": content for name, content in before.items()
    }
    assert load_checkpoint(run / "last_model.pt").epoch == 5


@pytest.fixture
def validation_losses(monkeypatch):
    """Validation losses of the epochs: the second of four is the best."""
    sound = Trainer.validate

    def validate(self, *, baseline=False):
        losses, monitor = sound(self, baseline=baseline)
        return replace(losses, loss=0.6 if baseline else [0.5, 0.2, 0.4, 0.3][self.epoch]), monitor

    monkeypatch.setattr(Trainer, "validate", validate)


def test_a_run_resumed_elsewhere_has_its_best_model_there(pretrain, tmp_path, validation_losses):
    run, alone = tmp_path / "run", tmp_path / "alone"
    pretrain("--save-interval", "1")
    alone.mkdir()
    shutil.copy(run / "checkpoint_epoch_3.pt", alone)
    for number, (start, epoch, loss) in enumerate(
        [
            (run / "checkpoint_epoch_2.pt", 2, 0.2),  # itself
            (run / "checkpoint_epoch_3.pt", 2, 0.2),  # the one beside it
            (alone / "checkpoint_epoch_3.pt", 4, 0.3),  # the best of the epochs to come
        ]
    ):
        output = tmp_path / f"resumed_{number}"
        pretrain("--resume-from", start, "--output-dir", output)
        best = load_checkpoint(output / "best_model.pt")
        assert (best.epoch, best.best_val_loss) == (epoch, loss)
        assert json.loads((output / "training_history.json").read_text())["best_epoch"] == epoch
        assert load_checkpoint(output / "last_model.pt").best_val_loss == loss


def test_a_run_that_was_stopped_or_failed_notes_it_until_it_is_resumed(
    pretrain, stopped, tmp_path, monkeypatch
):
    def outcome():
        return json.loads((tmp_path / "run" / "training_config.json").read_text())["outcome"]

    stopped()
    assert (outcome()["ended"], outcome()["message"]) == ("stopped", "after step 5 of 12")
    with monkeypatch.context() as patched:

        def fail(self):
            raise TrainingError("the loss is not finite")

        patched.setattr(Trainer, "fit", fail)
        pretrain("--resume", code=1)
    assert (outcome()["ended"], outcome()["message"]) == ("failed", "the loss is not finite")
    pretrain("--resume")
    assert (outcome()["ended"], outcome()["message"]) == ("finished", "after step 12 of 12")


def test_an_earlier_run_is_set_aside_whole_and_no_file_is_lost(pretrain, tmp_path):
    run = tmp_path / "run"
    pretrain()
    (run / "loss_curves.png").write_bytes(b"picture")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    (run / "notes.txt").write_text("mine")
    assert "earlier_1" in pretrain()
    assert {path.name: path.read_bytes() for path in (run / "earlier_1").iterdir()} == before
    assert (run / "notes.txt").read_text() == "mine"
    assert "earlier_2" in pretrain()


def test_a_second_run_in_the_same_directory_is_refused_and_touches_nothing(pretrain, stopped, tmp_path):
    stopped()
    with hold_directory(tmp_path / "run", option="--output-dir"):
        before = tree(tmp_path / "run")
        for options in ((), ("--resume",)):
            output = pretrain(*options, code=1)
            assert f"{tmp_path / 'run'}: another run writes into it: process {os.getpid()} on " in output
            assert "--output-dir" in output
        assert tree(tmp_path / "run") == before
    assert "resumed" in pretrain("--resume")


def test_what_a_killed_run_left_half_written_is_swept(pretrain, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".last_model.pt.x.partial").write_bytes(b"half")
    pretrain()
    assert not list(run.glob(".*"))


def test_only_a_wrong_setting_is_called_one(pretrain, monkeypatch):
    output = pretrain("--stft-windows", "4", code=2)
    assert "STFT window of 4 samples" in output

    def odd(*_):
        raise ValueError("odd")

    monkeypatch.setattr(Trainer, "__init__", lambda self, **_: odd())
    assert "a bug in biofound, ValueError: odd" in pretrain(code=1)


def test_resume_and_resume_from_exclude_each_other_and_force_needs_one(pretrain):
    assert "option --resume, option --resume-from: " in pretrain("--resume", "--resume-from", "x.pt", code=2)
    assert "option --force: " in pretrain("--force", code=2)


def test_tensorboard_events_hold_the_runs_numbers(pretrain, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs biofound[tensorboard]"
    )
    pretrain("--tensorboard")
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = [event.value for event in events.Scalars("val/loss")]
    assert shown == pytest.approx(history(tmp_path / "run")["val_loss"], rel=1e-6)
    assert len(events.Scalars("step/gradient_norm")) == 12


ROOM = 14_000
"""Bytes that settings, history and metrics need at most, and checkpoints and pictures more than."""


def test_on_a_full_disk_the_run_goes_on_without_checkpoints_and_pictures(pretrain, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "draw_figures", DRAW_FIGURES)
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: file.write(bytes(50_000)))
    run, full = tmp_path / "run", os.strerror(errno.EFBIG)
    with files_end_at(ROOM):
        output = pretrain("--on-write-error", "continue")
    for name in ("best_model.pt", "last_model.pt", "loss_curves.png", "reconstructions.png"):
        assert f"{run / name} not written: {full}" in output
        assert not (run / name).exists()
    assert len(history(run)["train_loss"]) == 4
    with files_end_at(ROOM):
        assert f"{run / 'last_model.pt'}: {full}; the file written before it is whole" in pretrain(code=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
def test_on_a_full_disk_the_run_goes_on_without_tensorboard(pretrain, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs biofound[tensorboard]")
    add = commands._add_event

    def add_on_a_full_disk(writer, event):
        with files_end_at(100):
            add(writer, event)
            writer.flush()  # else after two minutes

    monkeypatch.setattr(commands, "_add_event", add_on_a_full_disk)
    output = pretrain("--on-write-error", "continue", "--tensorboard")
    assert output.count("the run continues without TensorBoard events") == 1
    assert len(history(tmp_path / "run")["train_loss"]) == 4


def test_without_the_extra_tensorboard_is_refused_before_anything_is_written(pretrain, tmp_path, monkeypatch):
    monkeypatch.setattr("biofound.commands.inputs.find_spec", lambda name: None)
    assert "biofound[tensorboard]" in pretrain("--tensorboard", code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # in torch's own inductor
def test_a_compiled_model_gives_nearly_the_same_losses(pretrain, tmp_path):
    pretrain()
    plain = history(tmp_path / "run")["val_loss"]
    pretrain("--compile")
    assert history(tmp_path / "run")["val_loss"] == pytest.approx(plain, rel=1e-3)
    loaded = torch.load(tmp_path / "run" / "best_model.pt", weights_only=True)
    assert not any("_orig_mod" in name for name in loaded["encoder_state_dict"])
