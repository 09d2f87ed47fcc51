"""Embed recordings: one vector a window from a checkpoint's frozen encoder, with start and quality."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.readout import embed_windows, find_readout
from biofound.core.readout_names import DEFAULT_BATCH_SIZE, DEFAULT_READOUT
from biofound.data.array_windows import array_recording
from biofound.data.channels import Channel, PassBand
from biofound.data.extract import extract_windows
from biofound.data.sources import Recording
from biofound.data.vectors import WindowVectors
from biofound.data.windows import ArrayWindows, Windows, select_channels

ROWS = 1024
"""Windows that are held at once."""


class WindowEmbedder:
    """A checkpoint's frozen encoder, from windows or recordings to vectors.

    Args:
        checkpoint: the model, and how windows were made for it.
        readout: a name in `biofound.core.readout.READOUTS`.
        gate: whether windows of a recording are left out whose quality is below the checkpoint's thresholds;
            those with gaps always are.
        batch_size: windows that go through the encoder at once; the vectors do not depend on it.
        device: where the encoder computes.

    Raises:
        ValueError: when there is no such read-out.
        CheckpointError: when the checkpoint's tensors do not fit its model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        readout: str = DEFAULT_READOUT,
        gate: bool = True,
        batch_size: int = DEFAULT_BATCH_SIZE,
        device: torch.device | None = None,
    ) -> None:
        self._readout, self._batch_size = find_readout(readout), batch_size
        self._encoder = checkpoint.build().encoder.to(device or torch.device("cpu"))
        self._model, self._data = checkpoint.model, checkpoint.data
        self.channels = channels_of(checkpoint, gate=gate)
        """The channels as the checkpoint says; a source may have other names for their tracks."""

    def embed(self, windows: Windows) -> Iterator[WindowVectors]:
        """The vectors of windows of the checkpoint's kind, at most `ROWS` at a time.

        Channels are matched by name.

        Raises:
            DataError: when the windows lack a channel.
            ValueError: when they are of another length, or a vector is not finite.
        """
        windows = select_channels(windows, self._model.channels)
        for start in range(0, len(windows), ROWS):
            index = np.arange(start, min(start + ROWS, len(windows)))
            yield WindowVectors(**vars(windows.info(index)), vectors=self._vectors(windows.read(index)))

    def extract(
        self, recording: Recording, *, channels: Sequence[Channel], subject_id: str = ""
    ) -> ArrayWindows:
        """The windows of a whole recording, made as the checkpoint's were, but not rounded to float16.

        Raises:
            DataError: when a channel cannot be conditioned.
        """
        found = extract_windows(
            recording,
            channels,
            sfreq=self._data.sfreq,
            window_samples=self._model.context_length,
            max_gap_seconds=self._data.max_gap_seconds,
            dtype="float32",
        )
        count = len(found.x)
        return ArrayWindows(
            found.x,
            channels=[channel.name for channel in channels],
            sfreq=self._data.sfreq,
            subjects=np.full(count, subject_id),
            case_ids=np.full(count, recording.case_id),
            start_s=found.start_s,
            quality=found.quality,
        )

    def embed_all(self, windows: Windows) -> WindowVectors:
        """The vectors of all windows in memory; (0, F) where there is no window."""
        pieces = list(self.embed(windows))
        if pieces:
            columns = {key: np.concatenate([vars(piece)[key] for piece in pieces]) for key in vars(pieces[0])}
            return WindowVectors(**columns)
        blank = np.zeros((1, len(self._model.channels), self._model.context_length), np.float32)
        return WindowVectors(**vars(windows.info(np.arange(0))), vectors=self._vectors(blank)[:0])

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
        readout: what is read of the encoder, a name in `biofound.core.readout.READOUTS`.
        gate: whether windows are left out whose quality is below the checkpoint's thresholds; those with gaps
            always are.
        batch_size: windows that go through the encoder at once.

    Returns:
        Of N windows `vectors` (N, F), `start_s` (N,) in seconds since the first sample, `quality` (N, C) in
        the checkpoint's order of channels. N is 0 where no window is whole and good.

    Raises:
        ValueError: when `x`, `sfreq`, `channels` or `readout` cannot be.
        DataError: when a channel is missing, or the rate is too low for its filter.
        CheckpointError: when the checkpoint cannot be read.
    """
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(Path(checkpoint))
    embedder = WindowEmbedder(loaded, readout=readout, gate=gate, batch_size=batch_size)
    recording = array_recording(x, sfreq=sfreq, names=channels, channels=embedder.channels)
    return embedder.embed_all(embedder.extract(recording, channels=embedder.channels))


def channels_of(checkpoint: Checkpoint, *, gate: bool) -> tuple[Channel, ...]:
    """The channels of a checkpoint's windows, with thresholds of quality where there is a gate."""
    data = checkpoint.data
    return tuple(
        Channel(
            name=name,
            tracks=(name,),
            unit=data.units[name],
            band=PassBand(**data.filters[name]),
            quality_threshold=data.quality_thresholds[name] if gate else 0.0,
        )
        for name in checkpoint.model.channels
    )
