"""Masking: which patches are hidden, drawn from (seed, epoch, sample index), the same on any machine.

Random numbers come from SplitMix64 (Steele, Lea & Flood 2014, https://doi.org/10.1145/2660193.2660195)
used as a counter-based generator, so that a sample's mask depends on its key alone: neither on the
batch it is in, nor on the process that draws it, nor on what was drawn before.
"""

from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MaskType = Literal["random", "block"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Stream(IntEnum):
    """What a random number is for; different streams of one key are independent."""

    TRAIN_MASK = 1
    VALIDATION_MASK = 2
    CROP = 3


def keyed_uniform(
    *, seed: int, stream: Stream, epoch: int, index: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend only on their key.

    Args:
        seed: the run's seed, at least 0.
        stream: what the numbers are for.
        epoch: the epoch, at least 0.
        index: (B,) sample indices, at least 0.
        count: how many numbers a sample.

    Returns:
        (B, count) float64.
    """
    key = np.zeros(1, np.uint64)
    for part in (seed, int(stream), epoch):
        key = _splitmix64(key ^ np.uint64(part))
    rows = _splitmix64(key ^ index.astype(np.uint64))
    columns = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _splitmix64(rows[:, None] + columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hidden_patches(*, ratio: float, patches: int) -> int:
    """How many of `patches` a mask hides: `round(ratio * patches)`.

    Raises:
        ValueError: when that hides no patch, or leaves none to see.
    """
    hidden = round(ratio * patches)
    if not 0 < hidden < patches:
        raise ValueError(
            f"a mask must hide at least 1 and leave at least 1 of the {patches} patches, "
            f"but mask ratio {ratio} hides round({ratio} * {patches}) = {hidden}; "
            f"use a ratio from {1 / patches:.3g} to {(patches - 1) / patches:.3g}"
        )
    return hidden


def draw_masks(
    *,
    kind: MaskType,
    ratio: float,
    patches: int,
    seed: int,
    stream: Stream,
    epoch: int,
    index: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Masks of whole patches, shared by all channels of a window.

    `random` hides exactly `round(ratio * patches)` patches, every subset equally likely; `block`
    hides that many adjacent patches, every start equally likely.

    Args:
        kind: `random` or `block`.
        ratio: the fraction of patches to hide.
        patches: P, the number of patches in a window.
        seed: the run's seed.
        stream: `TRAIN_MASK` or `VALIDATION_MASK`.
        epoch: the epoch; fixed for validation.
        index: (B,) sample indices.

    Returns:
        (B, P) bool, True = hidden.
    """
    hidden = hidden_patches(ratio=ratio, patches=patches)
    if kind == "block":
        draw = keyed_uniform(seed=seed, stream=stream, epoch=epoch, index=index, count=1)
        starts = np.floor(draw * (patches - hidden + 1)).astype(np.int64)  # (B, 1)
        position = np.arange(patches)[None, :]
        return (position >= starts) & (position < starts + hidden)
    draw = keyed_uniform(seed=seed, stream=stream, epoch=epoch, index=index, count=patches)
    mask = np.zeros(draw.shape, np.bool_)
    np.put_along_axis(mask, np.argpartition(draw, hidden - 1, axis=1)[:, :hidden], True, axis=1)
    return mask


def _splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64: the output that follows `state`. Arithmetic is modulo 2**64."""
    mixed = state + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
