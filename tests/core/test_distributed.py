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
from biofound.core.distributed import Group
from biofound.core.trainer import LAST

from .small_run import finish, run, start

ROOT = Path(__file__).parent.parent.parent


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
    return json.loads((output / "training_history.json").read_text())["val"]["loss"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """11 windows in batches of 5: the last batch of an epoch has 1, so one of two ranks has nothing."""
    output = tmp_path_factory.mktemp("alone")
    run(output)
    return output


def test_shares_cover_a_batch_once_and_may_be_empty():
    batch = np.arange(11)
    for size in (1, 2, 4, 16):
        shares = [Group(rank, size).share(batch) for rank in range(size)]
        assert np.array_equal(np.concatenate(shares), batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_stopped_by_one_of_them_and_resumed_as_one_give_the_losses_of_one(alone, tmp_path):
    finish(start(tmp_path, processes=2, stop_at=4))
    saved = load_checkpoint(tmp_path / LAST)
    assert saved.step == 4
    assert saved.resume["world_size"] == 2
    run(tmp_path, resume=1)
    assert step_losses(tmp_path) == pytest.approx(step_losses(alone), rel=1e-6)
    assert validation_losses(tmp_path) == pytest.approx(validation_losses(alone), rel=1e-6)
    ours, theirs = (load_checkpoint(output / LAST).encoder for output in (tmp_path, alone))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_gives_the_losses_of_one(alone, tmp_path, processes):
    torchrun(processes, tmp_path)
    assert step_losses(tmp_path) == pytest.approx(step_losses(alone), rel=1e-6)
    assert validation_losses(tmp_path) == pytest.approx(validation_losses(alone), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(4, 1), (1, 4)])
def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path, first, second):
    torchrun(first, tmp_path, stop_at=2)
    torchrun(second, tmp_path, resume=1)
    assert step_losses(tmp_path) == pytest.approx(step_losses(alone), rel=1e-6)
