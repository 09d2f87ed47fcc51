"""GPU window cache: all windows in GPU memory, so that a batch is a gather there and no copy to it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biofound.data.mixture import changes_by_epoch
from biofound.data.segments import crop_offsets
from biofound.data.windows import WindowInfo, Windows

CHUNK = 4096
"""Windows read at a time on the way to the device."""
SHARE = 0.5
"""The part of the free device memory that windows may take: the rest is for training."""


def fits(windows: Windows, device: torch.device) -> bool:
    """Whether the windows stay and, at 4 bytes a sample, take at most half of the device's free memory."""
    if device.type != "cuda" or changes_by_epoch(windows):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return 4 * len(windows) * len(windows.channels) * windows.window_samples <= SHARE * free


class GpuWindowCache:
    """All windows on one device; `read` gives the same values as theirs, as a tensor."""

    def __init__(self, windows: Windows, device: torch.device) -> None:
        self._windows, self.device = windows, device
        shape = (len(windows), len(windows.channels), windows.window_samples)
        self._x = torch.empty(shape, dtype=torch.float32, device=device)  # (N, C, T)
        for start in range(0, len(windows), CHUNK):
            index = np.arange(start, min(start + CHUNK, len(windows)))
            self._x[start : start + len(index)] = torch.from_numpy(windows.read(index)).to(device)
        self._segments = windows.segments()

    @property
    def channels(self) -> tuple[str, ...]:
        """The channel names, in the order of the rows."""
        return self._windows.channels

    def __len__(self) -> int:
        return len(self._windows)

    def info(self, index: NDArray[np.int64]) -> WindowInfo:
        """Case, subject, start and quality of windows; see `biofound.data.windows.Windows.info`."""
        return self._windows.info(index)

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> Tensor:
        """A batch (B, C, T) on the device, as stored or cropped; see `biofound.data.windows.Windows.read`."""
        if crop is None:
            return self._x[torch.from_numpy(index).to(self.device)]
        samples = self._windows.window_samples
        first = self._segments.first[index]
        offset = crop_offsets(index - first, self._segments.length[index], crop, samples)
        # Within a segment, sample k of the crop is sample k of the windows laid end to end from `start`.
        start = torch.from_numpy(first * samples + offset).to(self.device)
        position = start[:, None] + torch.arange(samples, device=self.device)  # (B, T)
        row, column = position // samples, position % samples
        channel = torch.arange(len(self.channels), device=self.device)[None, :, None]
        return self._x[row[:, None, :], channel, column[:, None, :]]
