"""A small training run of one process of a group: `torchrun -m tests.core.small_run OUTPUT [key=value ...]`.

`start` runs it in new processes of this machine without importing torch anew in each.

Keys: windows, batch_size, epochs, dropout, default_model (0 or 1), stop_at (a step), resume (0 or 1),
stream (0 or 1: synthetic windows are mixed in), probe (0 or 1: the best is chosen by one),
step_seconds (slows it down).
"""

import multiprocessing
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from biofound.core.checkpoint import load_checkpoint
from biofound.core.distributed import joined_group
from biofound.core.models import ModelConfig, build_model
from biofound.core.run_files import LAST
from biofound.core.trainer import Trainer
from biofound.core.verify import probe_windows
from biofound.data.mixture import MixedWindows, Part
from biofound.data.stream import SyntheticStream
from biofound.data.windows import ArrayWindows
from biofound.settings import resolve_channels

from .conftest import DATA, DEFAULT, SMALL, TRAINING, MemoryWindows, validation_probe

WAIT_SECONDS = 45.0
"""How long a run may take. Processes that wait for each other in vain would wait for hours."""


def mixed_windows(windows: np.ndarray) -> MixedWindows:
    """Windows (N, 2, T) in memory, and as a second part 6 synthetic ones, new in every epoch."""
    channels = resolve_channels(None, "pretrain").channels
    seconds = windows.shape[-1] / 125.0
    stream = SyntheticStream(
        population="icu", channels=channels, hours=6 * seconds / 3600, window_seconds=seconds
    )
    stored = ArrayWindows(windows, channels=("PPG", "ECG"), sfreq=125.0)
    return MixedWindows([Part(name="memory", windows=stored), Part(name="synthetic:icu", windows=stream)])


def run(output: Path, **said: float) -> Trainer:
    """Run to the end (or to `stop_at`), from `last_model.pt` with `resume`."""
    given = {"windows": 11, "batch_size": 5, "epochs": 2, "dropout": 0.0, "stop_at": 0, "resume": 0, **said}
    shape = DEFAULT if given.get("default_model") else SMALL
    samples = shape["context_length"]
    windows = probe_windows(windows=int(given["windows"]), channels=2, samples=samples, sfreq=125.0, seed=0)
    with joined_group(torch.device("cpu")) as (group, device):
        trainer = Trainer(
            model=build_model(
                ModelConfig(channels=("PPG", "ECG"), dropout=given["dropout"], **shape), seed=1
            ),
            train=mixed_windows(windows) if given.get("stream") else MemoryWindows(windows),
            val=MemoryWindows(windows[:3]),
            data=DATA,
            config=replace(
                TRAINING,
                epochs=int(given["epochs"]),
                batch_size=int(given["batch_size"]),
                save_interval=1,
                checkpoint_minutes=given.get("step_seconds", 0.0) / 60,
            ),
            settings={},
            output_dir=output,
            device=device,
            group=group,
            probe=validation_probe(windows, chooses_best=True) if given.get("probe") else None,
        )
        trainer.stop = lambda: trainer.step + 1 == given["stop_at"] and group.rank == group.size - 1
        if given["resume"] and (output / LAST).is_file():
            trainer.restore(load_checkpoint(output / LAST))
        for _ in trainer.fit():
            time.sleep(given.get("step_seconds", 0.0))
        group.wait()
    return trainer


def environments(processes: int) -> list[dict[str, object]]:
    """The environment variables that `torchrun` gives each of so many processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": processes}
    return [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]


def start(output: Path, *, processes: int = 1, **said: float) -> list[multiprocessing.Process]:
    """Start the run on so many processes, as `torchrun` would, from a server that has torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ranks = environments(processes)
    started = [context.Process(target=_enter, args=(rank, output), kwargs=said) for rank in ranks]
    for process in started:
        process.start()
    return started


def finish(started: list[multiprocessing.Process]) -> None:
    """Wait for all of them; they must have ended well. None is left running."""
    deadline = time.monotonic() + WAIT_SECONDS
    for process in started:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert codes == [0] * len(started)


def _enter(environment: dict[str, object], output: Path, **said: float) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    run(output, **said)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), **{k: float(v) for k, v in (item.split("=") for item in sys.argv[2:])})
