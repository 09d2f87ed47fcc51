"""Input of a model: windows of its channels, read, or made of recordings and arrays as for its training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biofound.data.channels import DEFAULT_MOTION_GATE, Channel, PassBand
from biofound.data.description import DataDescription
from biofound.data.extract import extract_windows
from biofound.data.sources import Recording, Signal
from biofound.data.windows import ArrayWindows, WindowInfo, Windows, select_channels
from biofound.errors import DataError

ROWS = 1024
"""Windows that are held at once."""


@dataclass(frozen=True, kw_only=True)
class PreparedWindows:
    """N windows of a recording as an encoder takes them.

    `x` (N, C, T) float32 in physical units, filtered, NaN where a channel is absent; `start_s` (N,) in
    seconds since the recording's first sample; `quality` (N, C) in [0, 1].
    """

    x: NDArray[np.float32]
    start_s: NDArray[np.float64]
    quality: NDArray[np.float32]


class ModelInput:
    """The input of a model: its channels, and windows made as those that it was trained on.

    Args:
        channels: the model's C channels, in order.
        window_samples: T.
        data: how windows were made for it.
        gate: whether windows of a recording are left out whose quality is below the thresholds in `data`;
            those with gaps always are.
        absent: channels of the model that there are not: they are unobserved in every window.
    """

    def __init__(
        self,
        channels: Sequence[str],
        window_samples: int,
        data: DataDescription,
        *,
        gate: bool = True,
        absent: Sequence[str] = (),
    ) -> None:
        self._names, self._absent = tuple(channels), tuple(absent)
        self._data, self.window_samples = data, window_samples
        self.channels = tuple(
            Channel(
                name=name,
                tracks=(name,),
                unit=data.units[name],
                band=PassBand(**data.filters[name]),
                quality_threshold=data.quality_thresholds[name] if gate else 0.0,
            )
            for name in channels
            if name not in absent
        )
        """The channels that are there, as the model's file says; a source may name their tracks otherwise."""

    def batches(self, windows: Windows) -> Iterator[tuple[WindowInfo, NDArray[np.float32]]]:
        """Info and samples (B, C, T) of windows of the model's kind, at most `ROWS` at a time.

        Channels are matched by name; quality is in the order of the model's, NaN where absent.

        Raises:
            DataError: when the windows lack a channel that is not absent.
        """
        windows = self.with_absent(windows)
        for start in range(0, len(windows), ROWS):
            index = np.arange(start, min(start + ROWS, len(windows)))
            yield windows.info(index), windows.read(index)

    def with_absent(self, windows: Windows) -> Windows:
        """The windows with all channels of the model, NaN where absent."""
        return select_channels(windows, self._names, absent=self._absent)

    def extract(
        self, recording: Recording, *, channels: Sequence[Channel], subject_id: str = ""
    ) -> ArrayWindows:
        """The windows of a whole recording, made as the training's were, but not rounded to float16.

        Raises:
            DataError: when a channel cannot be conditioned.
        """
        found = extract_windows(
            recording,
            channels,
            sfreq=self._data.sfreq,
            window_samples=self.window_samples,
            max_gap_seconds=self._data.max_gap_seconds,
            dtype="float32",
            motion_gate=DEFAULT_MOTION_GATE,
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

    def extract_from_array(self, x: ArrayLike, *, sfreq: float, channels: Sequence[str]) -> ArrayWindows:
        """The windows of a recording in an array (C, T), unfiltered, NaN in gaps.

        Args:
            x: (C, T) samples in the units of the model's file.
            sfreq: their rate in Hz.
            channels: the C names of the rows, in any order; those that the model does not take are left out.

        Raises:
            ValueError: when `x`, `sfreq` or `channels` cannot be.
            DataError: when a channel is missing, or the rate is too low for its filter.
        """
        samples = checked_array(x, sfreq=sfreq, channels=channels)
        absent = [channel.name for channel in self.channels if channel.name not in channels]
        if absent:
            raise DataError(
                f"the checkpoint takes {', '.join(channel.name for channel in self.channels)}, and the array "
                f"has no {', '.join(absent)} but {', '.join(channels)}; name its rows with channels"
            )
        rows = dict(zip(channels, samples, strict=True))
        signals = {
            channel.name: Signal(samples=rows[channel.name], sfreq=float(sfreq), unit=channel.unit)
            for channel in self.channels
        }
        return self.extract(Recording(case_id="array", signals=signals), channels=self.channels)


def prepare_array(
    x: ArrayLike,
    *,
    sfreq: float,
    names: Sequence[str] | None,
    channels: Sequence[str],
    window_samples: int,
    data: DataDescription,
    settings: Mapping[str, Any],
    gate: bool = True,
) -> PreparedWindows:
    """The windows of a recording in an array (C, T), as a model takes them.

    Args:
        x: (rows, T) samples in the units of `data`, unfiltered; NaN in gaps.
        sfreq: their rate in Hz.
        names: the channel of each row, in any order; None means the model's.
        channels: the model's C channels, in order.
        window_samples: length of a window.
        data: how windows were made for the model.
        settings: those of its training: with channel dropout, rows may be missing.
        gate: whether windows of bad quality are left out.

    Raises:
        ValueError: when `x`, `sfreq` or `names` cannot be.
        DataError: when a channel is missing that the model needs, or the rate is too low for its filter.
    """
    rows = channels if names is None else names
    samples = checked_array(x, sfreq=sfreq, channels=rows)  # before its names are taken for channels
    absent = absent_channels(channels, rows, settings=settings)
    model_input = ModelInput(channels, window_samples, data, gate=gate, absent=absent)
    found = model_input.with_absent(model_input.extract_from_array(samples, sfreq=sfreq, channels=rows))
    every = np.arange(len(found))
    info = found.info(every)
    return PreparedWindows(x=found.read(every), start_s=info.start_s, quality=info.quality)


def absent_channels(
    channels: Sequence[str], available: Sequence[str], *, settings: Mapping[str, Any]
) -> tuple[str, ...]:
    """The channels of a model that are not `available`: the encoder takes them as unobserved.

    Args:
        channels: the model's.
        available: those that there are.
        settings: those of the model's training.

    Raises:
        DataError: when that are all of them, or the encoder was trained without channel dropout and so does
            not know windows that lack a channel.
    """
    absent = tuple(name for name in channels if name not in available)
    if not absent:
        return ()
    found = (
        f"the checkpoint takes {', '.join(channels)}; there is {', '.join(available) or 'nothing'}, "
        f"but no {', '.join(absent)}"
    )
    if len(absent) == len(channels):
        raise DataError(f"{found}: give at least one of its channels")
    if not settings.get("channel_dropout"):
        raise DataError(
            f"{found}. It was trained without channel dropout, so it does not know windows that lack a "
            "channel: give all of them, or a checkpoint of `biofound pretrain --channel-dropout 0.5`"
        )
    return absent


def checked_array(x: ArrayLike, *, sfreq: float, channels: Sequence[str]) -> NDArray[np.float32]:
    """The samples (C, T) of a recording in an array.

    Raises:
        ValueError: when `x`, `sfreq` or `channels` cannot be.
    """
    samples: NDArray[Any] = np.asarray(x, np.float32)
    if samples.ndim != 2 or len(samples) != len(channels) or len(set(channels)) < len(channels):
        raise ValueError(
            f"expected x of shape (channels, samples) and a different name for each row, got shape "
            f"{samples.shape} and {', '.join(channels) or 'no names'}"
        )
    if not 0 < sfreq < np.inf:
        raise ValueError(f"sfreq must be a rate in Hz above 0, got {sfreq}")
    return samples
