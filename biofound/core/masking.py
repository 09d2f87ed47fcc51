"""Masking: which patches and channels are hidden, from (seed, epoch, sample index), the same on any machine.

Random numbers come from numpy's Philox (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405), a
counter-based generator, so that a sample's mask depends on its key alone: neither on the batch it is in, nor
on the process that draws it, nor on what was drawn before.
"""

from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MaskType = Literal["random", "block"]


class Stream(IntEnum):
    """What a random number is for; different streams of one key are independent."""

    TRAIN_MASK = 1
    VALIDATION_MASK = 2
    CROP = 3
    CHANNEL_DROPOUT = 4


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
    philox = np.random.Philox(key=[seed, int(stream) << 32 | epoch])
    state = philox.state
    bits = np.empty((len(index), count), np.uint64)
    for row, sample in zip(bits, index.tolist(), strict=True):
        state["state"]["counter"][3] = sample
        philox.state = state
        row[:] = philox.random_raw(count)
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


def draw_channel_dropout(
    present: NDArray[np.bool_], *, probability: float, seed: int, epoch: int, index: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whole-channel dropout: the channels of a window that are taken away from it, all their samples.

    A window loses channels with `probability`: as many as drawn from 1 to all but one of those that it has,
    every number equally likely, and every choice of so many. One always stays.

    Args:
        present: (B, C) bool, True where a window has a sample of the channel; others are never drawn.
        probability: with which a window of two channels or more loses some.
        seed: the run's seed.
        epoch: the epoch.
        index: (B,) sample indices.

    Returns:
        (B, C) bool, True = dropped.
    """
    channels = present.shape[1]
    draw = keyed_uniform(
        seed=seed, stream=Stream.CHANNEL_DROPOUT, epoch=epoch, index=index, count=2 + channels
    )
    can_go = np.maximum(present.sum(1) - 1, 0)  # (B,)
    going = np.where(draw[:, 0] < probability, np.minimum(1 + np.floor(draw[:, 1] * can_go), can_go), 0)
    order = np.where(present, draw[:, 2:], np.inf).argsort(1).argsort(1)  # (B, C): 0 goes first
    return np.asarray(order < going[:, None])
