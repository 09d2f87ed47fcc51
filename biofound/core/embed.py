"""Embed recordings: one vector a window from a checkpoint's frozen encoder, with start and quality."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.readout import embed_windows, find_readout
from biofound.core.readout_names import DEFAULT_BATCH_SIZE, DEFAULT_READOUT
from biofound.data.model_input import ModelInput, checked_array
from biofound.data.window_table import WindowVectors, join_rows
from biofound.data.windows import Windows


class WindowEmbedder:
    """A checkpoint's frozen encoder, from windows to vectors.

    Args:
        checkpoint: the model, and how windows were made for it.
        readout: a name in `biofound.core.readout.READOUTS`.
        available: the channels that there are; what is missing of the checkpoint's is unobserved. None means
            all of them.
        gate: whether `input` leaves out windows of bad quality.
        batch_size: windows that go through the encoder at once; the vectors do not depend on it.
        device: where the encoder computes.

    Raises:
        ValueError: when there is no such read-out.
        DataError: when the checkpoint does not serve windows of the available channels alone.
        CheckpointError: when the checkpoint's tensors do not fit its model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        readout: str = DEFAULT_READOUT,
        available: Sequence[str] | None = None,
        gate: bool = True,
        batch_size: int = DEFAULT_BATCH_SIZE,
        device: torch.device | None = None,
    ) -> None:
        self._readout, self._batch_size = find_readout(readout), batch_size
        self._names = checkpoint.model.channels
        self._encoder = checkpoint.build().encoder.to(device or torch.device("cpu"))
        absent = () if available is None else checkpoint.absent_channels(available)
        self.input = ModelInput(
            self._names, checkpoint.model.context_length, checkpoint.data, gate=gate, absent=absent
        )

    def rows(self, windows: Windows) -> Iterator[WindowVectors]:
        """The vectors of windows of the checkpoint's kind, some at a time.

        Raises:
            DataError: when the windows lack a channel.
            ValueError: when they are of another length, or a vector is not finite.
        """
        for info, x in self.input.batches(windows):
            yield WindowVectors(**vars(info), vectors=self._vectors(x))

    def rows_in_memory(self, windows: Windows) -> WindowVectors:
        """The vectors of all windows; (0, F) where there is no window."""
        if len(windows):
            return join_rows(list(self.rows(windows)))
        blank = np.zeros((1, len(self._names), self.input.window_samples), np.float32)
        none = self.input.with_absent(windows).info(np.arange(0))
        return WindowVectors(**vars(none), vectors=self._vectors(blank)[:0])

    def _vectors(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return embed_windows(self._encoder, x, readout=self._readout, batch_size=self._batch_size)


def embed_array(
    checkpoint: Checkpoint | str | Path,
    x: ArrayLike,
    *,
    sfreq: float,
    channels: Sequence[str],
    readout: str = DEFAULT_READOUT,
    gate: bool = True,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> WindowVectors:
    """Embed a recording in an array: filters, resampling, windows and gate are those of the checkpoint.

    Args:
        checkpoint: a checkpoint or its file.
        x: (C, T) samples in the units of the checkpoint (`checkpoint.data.units`), unfiltered; NaN in gaps.
        sfreq: their rate in Hz.
        channels: the C names of the rows, in any order; those that the checkpoint does not take are left out.
            If it was trained with channel dropout, rows may be missing.
        readout: what is read of the encoder, a name in `biofound.core.readout.READOUTS`.
        gate: whether windows are left out whose quality is below the checkpoint's thresholds; those with gaps
            always are.
        batch_size: windows that go through the encoder at once.

    Returns:
        Of N windows `vectors` (N, F), `start_s` (N,) in seconds since the first sample, `quality` (N, C) in
        the checkpoint's order of channels, NaN for missing ones. N is 0 where no window is whole and good.

    Raises:
        ValueError: when `x`, `sfreq`, `channels` or `readout` cannot be.
        DataError: when a channel is missing that the checkpoint needs, or the rate is too low for its filter.
        CheckpointError: when the checkpoint cannot be read.
    """
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(Path(checkpoint))
    samples = checked_array(x, sfreq=sfreq, channels=channels)  # before its names are taken for channels
    embedder = WindowEmbedder(loaded, readout=readout, available=channels, gate=gate, batch_size=batch_size)
    return embedder.rows_in_memory(embedder.input.extract_from_array(samples, sfreq=sfreq, channels=channels))
