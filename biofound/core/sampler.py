"""Batch sampler: the order in which an epoch visits the windows, in batches, and reading them ahead."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from biofound.core.history import ThroughputMeter

T = TypeVar("T")
Shuffle = Literal["full", "block"]

BLOCK = 64
"""Neighbouring windows that are read together under `block`: about 0.3 MB of two channels."""
BLOCKS_MIXED = 256
"""Blocks whose windows are mixed with each other under `block`, so that a batch has many subjects."""


def epoch_order(*, windows: int, seed: int, epoch: int, shuffle: Shuffle) -> NDArray[np.int64]:
    """The windows in the order of one epoch, each once; it depends on (seed, epoch) alone.

    `full` draws from all permutations. `block`, for disks on which a jump costs much, keeps windows that
    follow each other within a few hundred blocks of neighbours: the blocks are shuffled, and then the
    windows of every `BLOCKS_MIXED` blocks with each other.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    if shuffle == "full":
        return random.permutation(windows)
    starts = random.permutation(np.arange(0, windows, BLOCK))
    mixed = []
    for first in range(0, len(starts), BLOCKS_MIXED):
        together = starts[first : first + BLOCKS_MIXED]
        members = (together[:, None] + np.arange(BLOCK)).ravel()
        mixed.append(random.permutation(members[members < windows]))
    return np.concatenate(mixed)


def split_batches(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """The batches of an order; the last one may be smaller."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def prefetched(
    load: Callable[[NDArray[np.int64]], T], batches: list[NDArray[np.int64]], meter: ThroughputMeter
) -> Iterator[T]:
    """Load each batch while the one before it is computed; time spent waiting goes to `meter`."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
        upcoming = [reader.submit(load, index) for index in batches[:1]]
        for number in range(1, len(batches) + 1):
            with meter.waiting():
                loaded = upcoming.pop().result()
            upcoming += [reader.submit(load, index) for index in batches[number : number + 1]]
            yield loaded
