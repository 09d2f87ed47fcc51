"""Error of a model's reconstruction window by window, and the best, median and worst windows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from biofound.core.models import PretrainingModel
from biofound.core.sampler import split_batches
from biofound.data.windows import Windows

BATCH = 128
RANKS = ("best", "median", "worst")

Masks = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Masks (B, P) of the windows `index` (B,)."""


@dataclass(frozen=True, kw_only=True)
class WindowErrors:
    """MSM of the windows `index` (N,), NaN where nothing was hidden: `overall` (N,), `by_channel` (N, C)."""

    index: NDArray[np.int64]
    overall: NDArray[np.float64]
    by_channel: NDArray[np.float64]

    def ranked(self) -> dict[str, int]:
        """The places in `index` of the best, median and worst window."""
        order = np.argsort(self.overall)[: np.count_nonzero(~np.isnan(self.overall))]  # NaN comes last
        places = (0, (len(order) - 1) // 2, -1)
        return (
            {rank: int(order[place]) for rank, place in zip(RANKS, places, strict=True)} if len(order) else {}
        )


@dataclass(frozen=True, kw_only=True)
class ReconstructedWindow:
    """A window: `signal` and `reconstruction` (C, T) in physical units, `hidden` (T,) bool."""

    signal: NDArray[np.float32]
    reconstruction: NDArray[np.float32]
    hidden: NDArray[np.bool_]


def window_errors(
    model: PretrainingModel, windows: Windows, masks: Masks, index: NDArray[np.int64]
) -> WindowErrors:
    """The MSM of each window `index` (N,) under its mask, over all channels and by channel."""
    overall, by_channel = [], []
    model.eval()
    with torch.inference_mode():
        for batch in split_batches(index, BATCH):
            out = model(torch.from_numpy(windows.read(batch)), torch.from_numpy(masks(batch)))
            error = (out.values - out.target).double().square() * out.loss_mask
            total, count = error.sum(-1), out.loss_mask.sum(-1).double()  # (B, C)
            overall.append(total.sum(1) / count.sum(1))
            by_channel.append(total / count)
    return WindowErrors(
        index=index, overall=torch.cat(overall).numpy(), by_channel=torch.cat(by_channel).numpy()
    )


def reconstruct(
    model: PretrainingModel, windows: Windows, masks: Masks, index: NDArray[np.int64]
) -> list[ReconstructedWindow]:
    """The windows `index` (B,) with the reconstruction of what their masks hide."""
    signals, mask = windows.read(index), masks(index)
    model.eval()
    with torch.inference_mode():
        out = model(torch.from_numpy(signals), torch.from_numpy(mask))
    hidden = mask.repeat(model.config.patch_size, axis=1)
    return [
        ReconstructedWindow(signal=signal, reconstruction=made, hidden=span)
        for signal, made, span in zip(signals, out.in_physical_units().numpy(), hidden, strict=True)
    ]
