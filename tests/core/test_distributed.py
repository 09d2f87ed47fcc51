"""The same run on one process or on several; the slow tests start it by torchrun, as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from biofound.core.checkpoint import load_checkpoint
from biofound.core.distributed import ALONE, Group
from biofound.core.micro_batches import ThreadedMicroBatches
from biofound.core.run_files import LAST

from .small_run import finish, run, start

ROOT = Path(__file__).parent.parent.parent

ROUNDING = 1e-5
"""How far losses of four processes and one may be apart in six steps: four sums are rounded in another order,
and steps amplify it (1.1e-6 seen). Means of means instead of sums would be off by more than 1e-4."""


def torchrun(processes, output, **said):
    """Run `small_run` on several processes; its standard error where it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command += ["-m", "tests.core.small_run", str(output), *(f"{k}={v}" for k, v in said.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def step_losses(output):
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def validation_losses(output):
    return json.loads((output / "training_history.json").read_text())["val_loss"]


def require_same(output, other):
    """The same losses of steps and epochs, and the same weights, to the last bit."""
    assert step_losses(output) == step_losses(other)
    assert validation_losses(output) == validation_losses(other)
    ours, theirs = (load_checkpoint(run / LAST).encoder for run in (output, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """11 windows in batches of 5: the last batch of an epoch has 1, so one of two ranks has nothing."""
    output = tmp_path_factory.mktemp("alone")
    run(output)
    return output


def test_micro_batches_cover_a_batch_once_and_may_be_empty():
    batch = np.arange(11)
    for size, alone in ((1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (4, 2), (16, 2)):
        found = [own for rank in range(size) for own in Group(rank, size).micro_batches(batch, alone=alone)]
        assert [own.number for own in found] == list(range(alone if size == 1 else size))
        assert np.array_equal(np.concatenate([own.index for own in found]), batch)
        lengths = [len(own.index) for own in found]
        assert max(lengths) - min(lengths) <= 1


def test_a_process_alone_can_have_the_micro_batches_of_two():
    batch = np.arange(11)
    alone = ALONE.micro_batches(batch, alone=2)
    of_two = [own for rank in range(2) for own in Group(rank, 2).micro_batches(batch, alone=2)]
    assert [(o.number, list(o.index)) for o in alone] == [(o.number, list(o.index)) for o in of_two]


@pytest.mark.slow  # a third of a minute
def test_two_processes_stopped_by_one_of_them_and_resumed_as_one_are_one_bit_for_bit(alone, tmp_path):
    finish(start(tmp_path, processes=2, stop_at=4))
    saved = load_checkpoint(tmp_path / LAST)
    assert saved.step == 4
    assert saved.resume["world_size"] == 2
    run(tmp_path, resume=1)
    require_same(tmp_path, alone)


def test_two_processes_are_one_bit_for_bit_with_dropout_too(tmp_path):
    """And with synthetic windows mixed in, and a probe that chooses the best epoch."""
    said = {"dropout": 0.2, "stream": 1, "probe": 1}
    run(tmp_path / "one", **said)
    finish(start(tmp_path / "two", processes=2, **said))
    require_same(tmp_path / "two", tmp_path / "one")
    two, one = (
        json.loads((tmp_path / name / "training_history.json").read_text()) for name in ("two", "one")
    )
    assert two["val_probe"] == one["val_probe"] and two["best_epoch"] == one["best_epoch"] == 2


def test_two_threads_are_one_bit_for_bit(alone, two_threads, tmp_path):
    trainer = run(tmp_path)
    assert isinstance(trainer._micro_batches, ThreadedMicroBatches)
    require_same(tmp_path, alone)


@pytest.mark.slow
def test_the_default_model_stays_the_same_over_many_steps(tmp_path):
    """Where rounding differs at all, its losses are 1e-4 apart after 30 steps: Adam and L1 amplify it."""
    said = {"windows": 150, "batch_size": 15, "epochs": 4, "default_model": 1}
    run(tmp_path / "one", **said)
    finish(start(tmp_path / "two", processes=2, **said))
    assert len(step_losses(tmp_path / "one")) == 40
    require_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_of_torchrun_are_one_bit_for_bit(alone, tmp_path):
    torchrun(2, tmp_path)
    require_same(tmp_path, alone)


@pytest.mark.slow
def test_four_processes_give_the_losses_of_one(alone, tmp_path):
    torchrun(4, tmp_path)
    assert step_losses(tmp_path) == pytest.approx(step_losses(alone), rel=ROUNDING)
    assert validation_losses(tmp_path) == pytest.approx(validation_losses(alone), rel=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(4, 1), (1, 4)])
def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path, first, second):
    torchrun(first, tmp_path, stop_at=2)
    torchrun(second, tmp_path, resume=1)
    assert step_losses(tmp_path) == pytest.approx(step_losses(alone), rel=ROUNDING)
