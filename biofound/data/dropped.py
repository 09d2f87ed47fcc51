"""Examples of dropped windows, read from the recordings again: a store holds only the windows that were kept.

The sidecars say how many windows each recording lost for which reason; the examples come from few recordings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.data.extract import assess_windows, count_dropped, deciding_reasons, dropped_for
from biofound.data.sources import RetryingSource, Signal, Source
from biofound.data.sources.registry import open_source
from biofound.data.store import Sidecar, read_index, read_sidecar
from biofound.errors import DataError

MAX_RECORDINGS = 4
"""Recordings that are read for examples: one of hours takes seconds."""

Why = tuple[str, str]
"""A reason and the channel that failed the test."""


@dataclass(frozen=True, kw_only=True)
class DroppedWindow:
    """A window that was dropped: the channel that decided it, as recorded and as filtered.

    `recorded` (S,) is at the native rate, NaN in gaps; `filtered` (T,) at the windows' rate, NaN where no
    sample can be used.
    """

    reason: str
    channel: str
    case_id: str
    start_s: float
    seconds: float
    unit: str
    recorded: NDArray[np.float32]
    filtered: NDArray[np.float32]


def dropped_examples(store: Path, tracks: Mapping[str, Sequence[str]]) -> Iterator[DroppedWindow]:
    """One dropped window for each reason and channel, from at most `MAX_RECORDINGS` recordings.

    Args:
        store: the store of one split, such as `data/windows/train`.
        tracks: names that a channel may have in the source, for sources whose sidecars do not say the track.

    Raises:
        DataError: when the recordings cannot be read, would have to be downloaded, or have changed.
    """
    index = read_index(store)
    description: dict[str, Any] = dict(index.source)
    source = open_source(**description)
    if isinstance(source, RetryingSource):
        raise DataError(f"the recordings of {index.source['name']} would have to be downloaded again")
    sidecars = [read_sidecar((store / case.file).with_suffix(".json")) for case in index.cases]
    for sidecar, wanted in choose_recordings(sidecars):
        yield from _examples_of(source, sidecar, wanted, tracks)


def choose_recordings(sidecars: Sequence[Sidecar]) -> list[tuple[Sidecar, list[Why]]]:
    """The recordings to read: again and again the one with most of the reasons that are still without any."""
    left = {why for sidecar in sidecars for why in _whys(sidecar)}
    chosen: list[tuple[Sidecar, list[Why]]] = []
    while left and len(chosen) < MAX_RECORDINGS:
        best = max(sidecars, key=lambda sidecar: len(left & _whys(sidecar)))
        chosen.append((best, sorted(left & _whys(best))))
        left -= _whys(best)
    return chosen


def _whys(sidecar: Sidecar) -> set[Why]:
    return {(reason, channel) for reason, row in sidecar.dropped.items() for channel in row}


def _examples_of(
    source: Source, sidecar: Sidecar, wanted: Sequence[Why], tracks: Mapping[str, Sequence[str]]
) -> Iterator[DroppedWindow]:
    if source.fingerprint(sidecar.case_id) != sidecar.source_fingerprint:
        raise DataError(f"case {sidecar.case_id}: its recording has changed since the windows were made")
    channels = [_channel(sidecar, name, tracks) for name in sidecar.channels]
    recording = source.read(sidecar.case_id, channels)
    length, sfreq = sidecar.window_samples, sidecar.sfreq
    conditioned, reasons, _ = assess_windows(
        recording,
        channels,
        sfreq=sfreq,
        window_samples=length,
        max_gap_seconds=sidecar.max_gap_seconds,
        motion_gate=sidecar.motion_gate,
    )
    deciding, names = deciding_reasons(reasons, channels)
    if count_dropped(deciding, names) != sidecar.dropped:
        raise DataError(
            f"case {sidecar.case_id}: read again, other windows are dropped than when the store was made (by "
            f"biofound {sidecar.biofound_version})"
        )
    found = dropped_for(deciding, names)
    for reason, name in wanted:
        number = found[reason, name]
        start = int(number[len(number) // 2])
        row = sidecar.channels.index(name)
        here = slice(start * length, (start + 1) * length)
        yield DroppedWindow(
            reason=reason,
            channel=name,
            case_id=sidecar.case_id,
            start_s=start * length / sfreq,
            seconds=length / sfreq,
            unit=sidecar.units[name],
            recorded=_between(recording.signals.get(name), start * length / sfreq, length / sfreq),
            filtered=np.where(
                conditioned.invalid[row, here], np.float32(np.nan), conditioned.samples[row, here]
            ),
        )


def _channel(sidecar: Sidecar, name: str, tracks: Mapping[str, Sequence[str]]) -> Channel:
    """A channel as it was when the windows were made; its track is the one read then, where that is said."""
    track = sidecar.timing[name].track if name in sidecar.timing else ""
    return Channel(
        name=name,
        tracks=(track,) if track else tuple(tracks.get(name, ())),
        unit=sidecar.units[name],
        band=sidecar.filters[name],
        quality_threshold=sidecar.quality_thresholds[name],
        required=name not in sidecar.optional_channels,
    )


def _between(signal: Signal | None, start_s: float, seconds: float) -> NDArray[np.float32]:
    if signal is None:
        return np.zeros(0, np.float32)
    return signal.samples[round(start_s * signal.sfreq) : round((start_s + seconds) * signal.sfreq)]
