"""Estimate what VitalDB's cases cost: bytes to download, bytes of windows, and time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WAVE_BYTES_PER_SAMPLE = 1.0
"""Compressed bytes of a wave's sample: 1.26 (PPG) and 0.67 (ECG) in BIDMC at 500 Hz, 12 bits."""

NUMBER_BYTES_PER_SECOND = 4.0
"""Compressed bytes a second of a track of single values, which come every two seconds."""

BYTES_PER_SECOND = 10e6
"""Speed of the download: an assumption, a line of 80 Mbit/s."""

BUILD_SECONDS_PER_HOUR = 0.2
"""CPU seconds from an hour of recording to windows of two channels (row wa of docs/benchmarks.md)."""

WINDOW_BYTES_PER_HOUR = 125 * 3600 * 2
"""Bytes of a channel's windows from an hour of recording, all kept: 125 Hz, float16."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a number of cases cost: `hours` of recording, bytes, and seconds to download and to build."""

    cases: int
    hours: float
    download_bytes: float
    window_bytes: float
    download_seconds: float
    build_seconds: float


def estimate_cost(
    durations: Sequence[float | None],
    tracks: Sequence[Sequence[str]],
    *,
    sfreqs: Mapping[str, float],
    channels: int,
    cases: int | None = None,
    measured: float = 1.0,
) -> Cost:
    """Estimate the cost of cases from their lengths and track lists.

    Args:
        durations: seconds of each case; None, where it is not known, counts as the others' mean.
        tracks: names of each case's tracks.
        sfreqs: rates of the waves in Hz; a track without one has single values.
        channels: channels of the windows.
        cases: so many cases of the mean cost; None for all.
        measured: bytes of files that are there, divided by their estimate.
    """
    known = [seconds for seconds in durations if seconds is not None]
    mean = sum(known) / len(known) if known else 0.0
    seconds = [mean if duration is None else duration for duration in durations]
    rates = [
        sum(
            WAVE_BYTES_PER_SAMPLE * sfreqs[name] if name in sfreqs else NUMBER_BYTES_PER_SECOND
            for name in names
        )
        for names in tracks
    ]
    share = 1.0 if cases is None else min(1.0, cases / max(len(seconds), 1))
    hours = share * sum(seconds) / 3600
    download = share * measured * sum(s * rate for s, rate in zip(seconds, rates, strict=True))
    return Cost(
        cases=round(share * len(seconds)),
        hours=hours,
        download_bytes=download,
        window_bytes=hours * channels * WINDOW_BYTES_PER_HOUR,
        download_seconds=download / BYTES_PER_SECOND,
        build_seconds=hours * BUILD_SECONDS_PER_HOUR,
    )
