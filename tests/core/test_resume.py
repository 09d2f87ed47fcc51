"""A run that was stopped and resumed is the run that was left alone, bit for bit."""

import errno
import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch

from biofound.core import training_loop
from biofound.core.checkpoint import load_checkpoint
from biofound.core.history import EpochMetrics, Losses, StepMetrics, WriteFailure
from biofound.core.run_files import LAST
from biofound.core.trainer import Trainer
from biofound.errors import CheckpointError, TrainingError
from tests.chain import files_end_at

from .conftest import small_trainer, small_windows, validation_probe
from .small_run import mixed_windows


@pytest.fixture
def make(make_trainer):
    """A trainer with dropout on."""
    return partial(make_trainer, dropout=0.2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run of `make` that was left alone; to be read only."""
    windows = small_windows()
    trainer = small_trainer(tmp_path_factory.mktemp("reference"), train=windows, val=windows[:4], dropout=0.2)
    list(trainer.fit())
    return trainer


@pytest.fixture(scope="module")
def mixed_reference(tmp_path_factory):
    """As `reference`, with synthetic windows that change by epoch."""
    windows = small_windows()
    trainer = small_trainer(
        tmp_path_factory.mktemp("mixed"), train=mixed_windows(windows), val=windows[:4], dropout=0.2
    )
    list(trainer.fit())
    return trainer


def resumed(trainer):
    trainer.restore(load_checkpoint(trainer.output_dir / LAST))
    return trainer


def losses(output):
    history = json.loads((output / "training_history.json").read_text())
    return {key: values for key, values in history.items() if key not in ("seconds", "windows_per_second")}


def metrics(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["lr"]) for row in rows]


def assert_same_run(trainer, reference):
    assert losses(trainer.output_dir) == losses(reference.output_dir)
    for name in ("best_model.pt", LAST):
        ours, theirs = (load_checkpoint(t.output_dir / name) for t in (trainer, reference))
        assert (ours.step, ours.epoch, ours.best_val_loss) == (
            theirs.step,
            theirs.epoch,
            theirs.best_val_loss,
        )
        assert all(torch.equal(ours.encoder[key], theirs.encoder[key]) for key in theirs.encoder)
        moments = [
            {key: state["exp_avg_sq"] for key, state in c.optimizer["state"].items()} for c in (ours, theirs)
        ]
        assert all(torch.equal(moments[0][key], moments[1][key]) for key in moments[1])
    assert metrics(trainer.output_dir) == metrics(reference.output_dir)


@pytest.mark.parametrize("step", range(1, 10))
def test_stopped_after_any_step_and_resumed_it_is_the_same_run(make, reference, tmp_path, step):
    first = make(tmp_path / "run")
    first.stop = lambda: first.step == step - 1  # asked while a step is being taken
    list(first.fit())
    assert first.interrupted
    assert load_checkpoint(first.output_dir / LAST).step == step
    second = resumed(make(tmp_path / "run", model_seed=99))  # its own initial weights must not matter
    list(second.fit())
    assert_same_run(second, reference)


@pytest.mark.parametrize("step", [1, 4, 6])
def test_with_synthetic_windows_that_change_by_epoch_it_is_the_same_run_too(
    make, mixed_reference, windows, tmp_path, step
):
    first = make(tmp_path / "run", train=mixed_windows(windows))
    first.stop = lambda: first.step == step - 1
    list(first.fit())
    second = resumed(make(tmp_path / "run", model_seed=99, train=mixed_windows(windows)))
    list(second.fit())
    assert_same_run(second, mixed_reference)


@pytest.mark.parametrize("step", [7])  # within the third epoch, after a probe and before the last one
def test_with_a_probe_that_chooses_the_best_it_is_the_same_run_too(make, windows, tmp_path, step):
    probe = validation_probe(windows, chooses_best=True)
    reference = make(tmp_path / "reference", probe=probe)
    list(reference.fit())
    first = make(tmp_path / "run", probe=probe)
    first.stop = lambda: first.step == step - 1
    list(first.fit())
    second = resumed(make(tmp_path / "run", model_seed=99, probe=probe))
    list(second.fit())
    assert_same_run(second, reference)
    assert losses(second.output_dir)["val_probe"]["error"][1] is not None


@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_killed_between_checkpoints_it_takes_the_lost_steps_again(make, reference, tmp_path, step):
    run = make(tmp_path / "run").fit()
    for event in run:
        if isinstance(event, StepMetrics) and event.step == step:
            run.close()  # killed: nothing more is written
            break
    second = resumed(make(tmp_path / "run"))
    list(second.fit())
    assert_same_run(second, reference)


@pytest.mark.parametrize("resumed_after", [None, 1, 2])
def test_the_best_model_is_that_of_the_lowest_validation_loss(make, tmp_path, monkeypatch, resumed_after):
    # The losses of the 3 epochs are given: the second is the best.
    def validate(self):
        loss = [0.5, 0.2, 0.4][self.epoch]
        by_channel = {"PPG": loss, "ECG": loss}
        return Losses(loss=loss, msm=loss, stft=0.0, msm_by_channel=by_channel, further={}), {}

    monkeypatch.setattr(Trainer, "validate", validate)
    trainer = make(tmp_path)
    for event in trainer.fit():
        if isinstance(event, EpochMetrics) and event.epoch == resumed_after:
            break
    if resumed_after is not None:
        trainer = resumed(make(tmp_path))
        list(trainer.fit())
    best, last = (load_checkpoint(tmp_path / name) for name in ("best_model.pt", LAST))
    assert (best.epoch, best.best_val_loss) == (2, 0.2)
    assert (last.epoch, last.best_val_loss) == (3, 0.2)
    assert json.loads((tmp_path / "training_history.json").read_text())["best_epoch"] == 2


def test_the_scaler_of_fp16_is_resumed(make, tmp_path):
    first = make(tmp_path, precision="fp16")
    new = first.scaler.state_dict()
    first.stop = lambda: first.step == 3
    list(first.fit())
    second = resumed(make(tmp_path, precision="fp16"))
    assert second.scaler.state_dict() == first.scaler.state_dict() != new


def test_dropout_is_on_keyed_by_step_and_leaves_the_global_generator_alone(make, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = [r.loss for r in make(tmp_path / "a").fit() if isinstance(r, StepMetrics)]
    assert torch.equal(torch.rand(2), expected)
    torch.manual_seed(4)
    again = [r.loss for r in make(tmp_path / "b").fit() if isinstance(r, StepMetrics)]
    without = [r.loss for r in make(tmp_path / "c", dropout=0.0).fit() if isinstance(r, StepMetrics)]
    assert first == again
    assert first != without


def test_a_checkpoint_is_written_within_an_epoch_when_time_has_passed(make, tmp_path, monkeypatch):
    orders, sound = [], training_loop.epoch_order
    monkeypatch.setattr(training_loop, "epoch_order", lambda **kw: (orders.append(kw), sound(**kw))[1])
    trainer = make(tmp_path, checkpoint_minutes=1e-9)
    steps = []
    for event in trainer.fit():
        if isinstance(event, StepMetrics):
            steps.append(event.step)
        saved = load_checkpoint(tmp_path / LAST)
        assert trainer.step - saved.step <= 1
    assert steps == list(range(1, 10))  # each step once: nothing is taken again
    assert len(orders) == 3  # the epoch goes on: its order is not drawn again


def test_a_run_that_is_done_resumes_to_nothing(make, tmp_path):
    list(make(tmp_path).fit())
    before = (tmp_path / LAST).read_bytes()
    again = resumed(make(tmp_path))
    assert list(again.fit()) == []
    assert len(again.epochs_done) == 3
    assert (tmp_path / LAST).read_bytes() == before


def test_a_checkpoint_without_a_run_is_refused(make, tmp_path):
    trainer = make(tmp_path)
    list(trainer.fit())
    checkpoint = load_checkpoint(tmp_path / LAST)
    with pytest.raises(CheckpointError, match="no run that could be resumed"):
        make(tmp_path).restore(replace(checkpoint, resume=None))


def test_metrics_lines_that_are_truncated_or_of_later_steps_are_dropped(make, tmp_path):
    trainer = make(tmp_path)
    trainer.stop = lambda: trainer.step == 4
    list(trainer.fit())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.0}\n5\n{}\n' + "[" * 100_000 + '\n{"step": 7, "lo')
    list(resumed(make(tmp_path)).fit())
    assert [step for step, *_ in metrics(tmp_path)] == list(range(1, 10))


ROOM = 20_000
"""Bytes that a history or metrics need at most, and a checkpoint more than."""


def test_on_a_full_disk_the_run_stops_and_the_last_good_checkpoint_stays(make, reference, tmp_path):
    trainer = make(tmp_path)
    events = trainer.fit()
    while not isinstance(next(events), EpochMetrics):
        pass
    message = rf"(last_model|best_model)\.pt: {os.strerror(errno.EFBIG)}; .* --on-write-error continue"
    with files_end_at(ROOM), pytest.raises(TrainingError, match=message):
        list(events)
    assert load_checkpoint(tmp_path / LAST).epoch == 1
    assert not list(tmp_path.glob(".*"))
    second = resumed(make(tmp_path))
    list(second.fit())
    assert_same_run(second, reference)


@pytest.mark.parametrize("room", [0, 100, 1000, ROOM])
def test_on_a_full_disk_the_run_goes_on_when_told_to_and_says_so(make, tmp_path, room):
    trainer = make(tmp_path, on_write_error="continue")
    events = trainer.fit()
    while not isinstance(next(events), EpochMetrics):
        pass
    with files_end_at(room):
        failures = []
        for event in events:
            if isinstance(event, WriteFailure):
                failures.append(event)
            if isinstance(event, EpochMetrics) and event.epoch == 2:
                break
    assert {failure.error for failure in failures} == {os.strerror(errno.EFBIG)}
    assert {str(tmp_path / name) for name in (LAST, "checkpoint_epoch_2.pt")} <= {
        failure.path for failure in failures
    }
    assert load_checkpoint(tmp_path / LAST).epoch == 1
    list(events)  # there is room again
    assert trainer.step == 9
    assert load_checkpoint(tmp_path / LAST).epoch == 3
    assert not list(tmp_path.glob(".*"))
    steps = [step for step, *_ in metrics(tmp_path)]  # whole lines only
    assert steps[:3] + steps[-3:] == [1, 2, 3, 7, 8, 9]
