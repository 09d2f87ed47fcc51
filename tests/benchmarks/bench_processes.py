"""Speed of two processes with one thread each, against one process with two threads."""

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from biofound.core.distributed import joined_group
from biofound.data.store import StoreWindows
from tests.benchmarks.ours import BATCH, long_store, our_trainer
from tests.benchmarks.timing import MB, MemoryWatch, Row, cores, forking_context, median, ratio, spread
from tests.core.small_run import environments

STEPS = 10


def process_rows(*, directory: Path, precision: str, rounds: int) -> list[Row]:
    """Row g. On the clock: what threads and processes wait for each other is the point."""
    if cores() < 2:
        return [Row(key="g", what="two processes against one", value="not measured: one core")]
    long_store(directory / "store")
    found: dict[str, list[tuple[float, float]]] = {"threads": [], "processes": []}
    for round_ in range(rounds):
        for name, processes, threads in (("threads", 1, 2), ("processes", 2, 1)):
            output = directory / f"{name}{round_}"
            found[name].append(train_together(directory / "store", output, precision, processes, threads))
    one, two = ([s for s, _ in found[name]] for name in ("threads", "processes"))
    memory = [max(m for _, m in found[name]) / MB for name in ("threads", "processes")]
    return [
        Row(
            key="g",
            what="2 processes × 1 thread against 1 process × 2 threads",
            value=f"{ratio(one, two):.2f} ×",
            spread=spread(one, two),
            measured=f"{BATCH / median(two):.0f} against {BATCH / median(one):.0f} windows/s",
            memory=f"{memory[1]:.0f} each / {memory[0]:.0f}",
        )
    ]


def train_together(
    store: Path, output: Path, precision: str, processes: int, threads: int
) -> tuple[float, float]:
    """Seconds a step on rank 0's clock, and its peak of anonymous memory, in new processes."""
    context = forking_context()
    receive, send = context.Pipe(duplex=False)
    started = [
        context.Process(target=_rank, args=(send, environment, store, output, precision, threads))
        for environment in environments(processes)
    ]
    for process in started:
        process.start()
    send.close()
    for process in started:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a training process ended with {process.exitcode}")
    seconds, memory = receive.recv()
    return seconds, memory


def _rank(
    send: Connection, environment: dict[str, Any], store: Path, output: Path, precision: str, threads: int
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    with MemoryWatch() as watch, joined_group(torch.device("cpu")) as (group, _):
        trainer = our_trainer(StoreWindows(store), output, precision=precision, steps=STEPS, group=group)
        steps = trainer.fit()
        next(steps)  # warms up
        start = time.perf_counter()
        next(steps)
        seconds = (time.perf_counter() - start) / STEPS
        group.wait()
        steps.close()  # type: ignore[attr-defined]
    if group.rank == 0:
        send.send((seconds, watch.peak))
