"""Micro-batches of one process: computed in threads side by side, or one after the other."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

MICRO_BATCHES = 2
"""Micro-batches of a batch on a CPU with one process, the same as with two processes.

So its losses are those of two processes bit for bit. A difference in one product's rounding would
grow a thousandfold in ten steps. More than two sums would depend on the order in which they are added.
"""


class SequentialMicroBatches:
    """One micro-batch after the other, each with all the threads of torch."""

    @contextmanager
    def sharing_threads(self) -> Iterator[None]:
        """Change nothing: threads are not shared out."""
        yield

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The results, in order."""
        return [function(item) for item in items]


class ThreadedMicroBatches:
    """Each micro-batch in a thread of its own, with its share of the threads that torch may use.

    Threads within a product meet at its end and wait by spinning, hundreds of times a step, which collapses
    where another program wants the core. These meet twice a step, and sleep.
    """

    def __init__(self, *, threads: int) -> None:
        """Share out `threads` of torch."""
        self.share = max(1, threads // MICRO_BATCHES)
        self._pool = ThreadPoolExecutor(
            MICRO_BATCHES,
            thread_name_prefix="micro-batch",
            initializer=torch.set_num_threads,
            initargs=(self.share,),
        )

    @contextmanager
    def sharing_threads(self) -> Iterator[None]:
        """Give the calling thread a micro-batch's share too: more would spin on the core of another."""
        before, set_threads = torch.get_num_threads(), torch.set_num_threads
        set_threads(self.share)
        try:
            yield
        finally:
            set_threads(before)  # a local name: an unfinished run may end after torch is unloaded

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The results, in order; what `function` raises is raised here when all have ended."""
        futures = [self._pool.submit(function, item) for item in items]
        return [future.result() for future in futures]


def micro_batches_on(
    device: torch.device, *, dropout: float, compiled: bool, processes: int
) -> SequentialMicroBatches | ThreadedMicroBatches:
    """Threaded where there are threads to share out and a micro-batch depends on nothing shared.

    Dropout draws from the one global generator, and `torch.compile` compiles in the first caller's thread.
    """
    threads = torch.get_num_threads()
    alone = device.type == "cpu" and processes == 1
    if alone and threads > 1 and dropout == 0 and not compiled:
        return ThreadedMicroBatches(threads=threads)
    return SequentialMicroBatches()
