"""Timing in turns, so that a busy machine slows all contenders alike; medians, quartiles and memory."""

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Cost:
    """Seconds a step: wall time, and CPU time over all threads."""

    wall: float
    cpu: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. A row that was not measured has a `value` that says why."""

    key: str
    what: str
    value: str
    spread: str = ""
    measured: str = ""
    target: str = ""
    met: bool | None = None
    memory: str = ""


def timed(work: Callable[[], Any], *, steps: int = 1) -> Cost:
    """Time of `work`, divided by its number of `steps`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)


def in_turns(contenders: Mapping[str, Callable[[], Cost]], *, rounds: int) -> dict[str, list[Cost]]:
    """Costs of each contender by round, in the order A B C A B C …, after one warm-up round."""
    for turn in contenders.values():
        turn()
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, turn in contenders.items():
            costs[name].append(turn())
    return costs


def seconds(costs: list[Cost], *, clock: str) -> list[float]:
    """The costs on one clock, `wall` or `cpu`."""
    return [getattr(cost, clock) for cost in costs]


def median(values: list[float]) -> float:
    return statistics.median(values)


def ratio(above: list[float], below: list[float]) -> float:
    """The ratio of the medians."""
    return median(above) / median(below)


def spread(above: list[float], below: list[float], form: str = "{:.2f}") -> str:
    """The quartiles of the ratio by round."""
    rounds = sorted(a / b for a, b in zip(above, below, strict=True))
    if len(rounds) < 4:
        return f"{form.format(rounds[0])} to {form.format(rounds[-1])}"
    low, _, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return f"{form.format(low)} to {form.format(high)}"


PRELOADED = ["tests.benchmarks.bench_training", "tests.benchmarks.bench_processes"]


def forking_context() -> ForkServerContext:
    """Processes forked from one that has imported the contenders and computed nothing."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def in_new_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call `function` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


Pause = Callable[[], None]
"""Called by a contender when it is ready and after every turn; returns when the next turn begins."""


class TurnTaker:
    """A contender in a process of its own, which waits unless it is its turn.

    How the C library keeps freed memory is a property of the process and part of what is compared:
    `biofound pretrain` has it keep what a step frees.
    """

    def __init__(self, contend: Callable[..., None], *arguments: Any) -> None:
        """Start `contend(*arguments, pause)`, and wait until it is ready."""
        context = forking_context()
        self.peak = 0.0
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_contend, args=(theirs, contend, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def turn(self) -> Cost:
        """Run one turn; its cost. After the first turn, `peak` has the process's anonymous memory."""
        self._connection.send(None)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()

    def _receive(self) -> Cost:
        try:
            cost, self.peak = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a contender ended with {self._process.exitcode}") from None
        return cost


def _contend(connection: Connection, contend: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with MemoryWatch() as watch, suppress(EOFError):  # the end of the connection ends the process
        clocks = time.perf_counter(), time.process_time()
        turns = 0

        def pause() -> None:
            nonlocal clocks, turns
            cost = Cost(time.perf_counter() - clocks[0], time.process_time() - clocks[1])
            if turns == 1:
                watch.stop()  # watching takes time, so only the first turn is watched
            turns += 1
            connection.send((cost, float(watch.peak)))
            connection.recv()
            clocks = time.perf_counter(), time.process_time()

        contend(*arguments, pause)


def anonymous_memory() -> int:
    """Anonymous resident memory of this process in bytes (RssAnon)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: these measurements need Linux")


class MemoryWatch:
    """Context manager that samples `anonymous_memory` every few milliseconds; the maximum is `peak`."""

    def __enter__(self) -> Self:
        self.peak = anonymous_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.003):
            self.peak = max(self.peak, anonymous_memory())

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.stop()


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def busy_cores(seconds: float = 2.0) -> float:
    """Number of cores that other processes keep busy, measured while this one sleeps."""

    def ticks() -> int:
        user, nice, system, _, _, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
        return sum(map(int, (user, nice, system, irq, softirq, steal)))

    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def machine() -> str:
    """The processor, its cores, and PyTorch's version."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{cores()} cores, {names[0] if names else platform.machine()}, PyTorch {version('torch')}"
