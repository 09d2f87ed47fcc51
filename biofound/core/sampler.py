"""In which order an epoch visits the windows: a permutation that depends on (seed, epoch) alone."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Shuffle = Literal["full", "block"]

BLOCK = 64
"""Neighbouring windows that are read together under `block`: about 0.3 MB of two channels."""
BLOCKS_MIXED = 256
"""Blocks whose windows are mixed with each other under `block`, so that a batch has many subjects."""


def epoch_order(*, windows: int, seed: int, epoch: int, shuffle: Shuffle) -> NDArray[np.int64]:
    """The windows in the order of one epoch, each once.

    `full` draws from all permutations. `block`, for disks on which a jump costs much, keeps each
    stretch of the order within a few hundred blocks of neighbouring windows: the blocks are shuffled,
    and then the windows of every `BLOCKS_MIXED` blocks with each other.
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
