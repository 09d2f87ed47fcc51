"""How contenders are timed: in turns, so that a busy machine slows all of them alike, and as medians."""

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
    """Seconds a step: on the clock, and of processor time over all threads."""

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
    """What `work` costs, divided by the `steps` it makes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)


def in_turns(contenders: Mapping[str, Callable[[], Cost]], *, rounds: int) -> dict[str, list[Cost]]:
    """A B C A B C …: the costs of each by round, after one round that warms up."""
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
    """New processes are forked from one that has the contenders imported and has computed nothing."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def in_new_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call `function` in a process that imports what it needs, and nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


Pause = Callable[[], None]
"""What a contender calls when it is ready, and after every turn; it returns when the next turn begins."""


class TurnTaker:
    """A contender in a process of its own, which stands still unless it is its turn.

    Of its own, because how the C library keeps and returns memory is a process's property, and part of
    what is compared: `biofound pretrain` has it keep what a step frees.
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
        """Have it take its turn: what that cost. After the first turn, `peak` has its anonymous memory."""
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
                watch.stop()  # looking costs time, so only the first turn is watched
            turns += 1
            connection.send((cost, float(watch.peak)))
            connection.recv()
            clocks = time.perf_counter(), time.process_time()

        contend(*arguments, pause)


def anonymous_memory() -> int:
    """Bytes of this process's resident memory that no file backs (RssAnon)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: these measurements need Linux")


class MemoryWatch:
    """Within it, the largest `anonymous_memory` is kept in `peak`; looked at every few milliseconds."""

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
    """The processors this process may use."""
    return len(os.sched_getaffinity(0))


def busy_cores(seconds: float = 2.0) -> float:
    """How many cores others keep busy, looked at while this process sleeps."""

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
