"""A run killed with SIGKILL at any moment, and resumed, is the run that was left alone, bit for bit."""

import json
import random
import time

import pytest
import torch

from biofound.core.checkpoint import load_checkpoint
from biofound.core.run_files import LAST

from .small_run import finish, start

RUN = {"windows": 23, "epochs": 6, "dropout": 0.2, "step_seconds": 0.02}


def kill_again_and_again(output, *, processes, kills, seed):
    """Kill all processes `kills` times while they train, then let them finish."""
    delays = random.Random(seed)
    for _ in range(kills):
        before = steps_seen(output)
        started = start(output, processes=processes, resume=1, **RUN)
        deadline = time.monotonic() + 120
        while started[0].is_alive() and steps_seen(output) == before and time.monotonic() < deadline:
            time.sleep(0.005)  # until it trains: killing its start shows nothing
        time.sleep(delays.uniform(0, 0.2))
        for process in started:
            process.kill()
        for process in started:
            process.join()
        for path in output.glob("*.pt"):
            load_checkpoint(path)  # never unreadable
    finish(start(output, processes=processes, resume=1, **RUN))


def steps_seen(output):
    path = output / "metrics.jsonl"
    return path.read_text() if path.is_file() else ""


def outcome(output):
    history = json.loads((output / "training_history.json").read_text())
    steps = [(r["step"], r["loss"]) for r in map(json.loads, steps_seen(output).splitlines())]
    return history["train_loss"], history["val_loss"], steps


def assert_same(output, reference):
    assert outcome(output) == outcome(reference)
    ours, theirs = (load_checkpoint(directory / LAST) for directory in (output, reference))
    assert all(torch.equal(ours.encoder[name], theirs.encoder[name]) for name in theirs.encoder)


def test_killed_three_times_it_is_the_same_run(tmp_path):
    finish(start(tmp_path / "reference", **RUN))
    kill_again_and_again(tmp_path / "run", processes=1, kills=3, seed=0)
    assert_same(tmp_path / "run", tmp_path / "reference")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_twenty_times_it_is_the_same_run(tmp_path, processes):
    finish(start(tmp_path / "reference", processes=processes, **RUN))
    kill_again_and_again(tmp_path / "run", processes=processes, kills=20, seed=processes)
    assert_same(tmp_path / "run", tmp_path / "reference")
