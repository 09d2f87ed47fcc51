"""Read `.vital` files: their tracks, and the samples of the wanted ones on one clock."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.data.sources import AbsentChannelError, ListedTrack, Recording, Signal, present_channels
from biofound.data.sources.packets import (
    align_packets,
    check_rate,
    correct_late_stamps,
    doubtful_samples,
    find_rate,
)
from biofound.data.sources.units import conversion
from biofound.data.sources.vital_format import (
    LARGEST_SELECTION,
    SENTINELS,
    WAVE,
    Track,
    is_sample,
    read_tracks,
)
from biofound.errors import DataError

MAX_HOURS = 48.0
"""Longest recording that is accepted; a wrong time stamp would otherwise need memory for years."""

MAX_SFREQ = 100_000.0
"""Highest rate in Hz that a header may say."""


def find_track(wanted: Sequence[str], available: Iterable[str], *, what: str) -> str | None:
    """The first of `wanted` (in order of preference) that is among `available`, or None.

    A name with a device (`SNUADC/PLETH`) fits only itself. A name without one (`PLETH`) fits the track
    of that name of any device, if only one has it.

    Raises:
        DataError: a name without a device fits the tracks of several.
    """
    names = set(available)
    for name in wanted:
        if name in names:
            return name
        fitting = sorted(other for other in names if _fits(name, other))
        if len(fitting) > 1:
            raise DataError(
                f"{what}: {name} is a track of several devices ({', '.join(fitting)})."
                " Name the one wanted as Device/Track in the channel's tracks."
            )
        if fitting:
            return fitting[0]
    return None


def _fits(name: str, track: str) -> bool:
    """Whether a wanted name fits a track of a file: the same, or without the device."""
    return name == track or ("/" not in name and track.partition("/")[2] == name)


def check_complete(path: Path, *, what: str) -> None:
    """Check that a `.vital` file is complete: gzip end, CRC, and every packet inside. Costs one gunzip.

    Raises:
        DataError: cut short, damaged, or not a `.vital` file; the message says which.
    """
    read_tracks(path, what=what)


def list_tracks(path: Path, *, what: str) -> tuple[ListedTrack, ...]:
    """List a file's wave, numeric and text tracks, with the hours of signal that its waves hold.

    Raises:
        DataError: the file is cut short, damaged, or not a `.vital` file.
    """
    return tuple(
        ListedTrack(
            name=track.name,
            sfreq=track.sfreq if _is_wave(track) else None,
            unit=track.unit,
            duration_s=track.signal_samples / track.sfreq if _is_wave(track) else None,
        )
        for track in read_tracks(path, what=what, count=True).values()
    )


def read_recording(
    path: Path, *, case_id: str, channels: Sequence[Channel], known: Mapping[str, Mapping[str, Any]]
) -> Recording:
    """Read the wanted channels of a `.vital` file.

    All signals start at the first sample of any of them. Each keeps its native rate, which is the header's
    unless the packets show a steady clock drift (`packets.find_rate`); its samples lie on a grid from that
    start, each segment at the nearest grid point: two tracks are misaligned by up to half a sample of each
    (at 500 Hz 2 ms in all) plus the jitter of their stamps (see `packets.align_packets`). Gaps are NaN: time
    without a packet, the integer sentinel of the track's format, floats that are not finite or beyond 4e9.

    Args:
        path: the file.
        case_id: for messages and the result.
        channels: which tracks to read.
        known: properties of tracks by full name: `srate` in Hz, which the header must agree with (other
            rates are accepted unless the packet times contradict them), and `unit`, for headers without.

    Raises:
        DataError: a track is absent, no wave, all gaps, in another unit, or its rate cannot be right; or the
            file is cut short or damaged.
    """
    what = f"case {case_id}"
    wanted = [name for channel in channels for name in channel.tracks]
    tracks = read_tracks(path, what=what, wanted=lambda name: any(_fits(one, name) for one in wanted))
    waves = present_channels(channels, lambda channel: _wave_of(tracks, channel, path, what, known))
    origin = min(float(wave.starts[0]) for wave in waves.values())

    def signal_of(channel: Channel) -> Signal:
        wave = waves[channel.name]
        factor, unit = conversion(wave.unit, channel, what=wave.what)
        samples, overlapping = _samples(wave, origin)
        samples *= np.float32(factor)
        if not np.isfinite(samples).any():
            raise AbsentChannelError(f"{wave.what}: the track holds nothing but gaps. Leave the case out.")
        return Signal(
            samples=samples,
            sfreq=wave.sfreq,
            unit=unit,
            header_sfreq=wave.track.sfreq,
            overlapping_samples=overlapping,
            doubtful_samples=doubtful_samples(wave.starts, wave.counts, sfreq=wave.sfreq),
            track=wave.track.name,
        )

    there = [channel for channel in channels if channel.name in waves]
    return Recording(case_id=case_id, signals=present_channels(there, signal_of))


@dataclass(frozen=True, kw_only=True)
class _Wave:
    """One track's packets in order of time: K times of first samples in seconds, K numbers of samples.

    `raw` are the samples of all packets in that order; `sfreq` is the true rate, `track.sfreq` the header's.
    """

    what: str
    track: Track
    starts: NDArray[np.float64]
    counts: NDArray[np.int64]
    raw: NDArray[Any]
    sfreq: float
    unit: str


def _is_wave(track: Track) -> bool:
    return track.kind == WAVE and 0 < track.sfreq <= MAX_SFREQ


def _wave_of(
    tracks: Mapping[str, Track],
    channel: Channel,
    path: Path,
    what: str,
    known: Mapping[str, Mapping[str, Any]],
) -> _Wave:
    """Find a channel's track in a file, check its header and packet times, and put its packets in order."""
    name = find_track(channel.tracks, tracks, what=f"{what}, channel {channel.name}")
    if name is None:
        raise AbsentChannelError(
            f"{what}, channel {channel.name}: expected one of the tracks {', '.join(channel.tracks)}; {path}"
            f" has {', '.join(tracks) or 'none'}. Name the track in the channel's tracks or leave the case"
            " out."
        )
    track = tracks[name]
    what = f"{what}, channel {channel.name}, track {name}"
    _check_header(track, what, known.get(name, {}).get("srate"))
    if not track.starts:
        raise AbsentChannelError(f"{what}: the track is listed but holds no samples. Leave the case out.")
    if not np.isfinite(track.starts).all():
        raise DataError(f"{what}: a packet has no valid time. The file is damaged.")
    starts, counts, raw = _in_order(track)
    sfreq = _checked_rate(starts, counts, track.sfreq, what)
    return _Wave(
        what=what,
        track=track,
        starts=correct_late_stamps(starts, counts, sfreq=sfreq),
        counts=counts,
        raw=raw,
        sfreq=sfreq,
        unit=track.unit or known.get(name, {}).get("unit", ""),
    )


def _in_order(track: Track) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[Any]]:
    """Stamps, lengths and samples of a track's packets, in the order of their stamps.

    The file's order decides between stamps that are less than a sample apart.
    """
    starts, counts = np.array(track.starts, dtype=np.float64), np.array(track.counts, dtype=np.int64)
    raw = track.raw_samples()
    if (np.diff(starts) < -1 / track.sfreq).any():
        order = np.argsort(starts, kind="stable")
        packets = np.split(raw, np.cumsum(counts)[:-1])
        starts, counts = starts[order], counts[order]
        raw = np.concatenate([packets[packet] for packet in order])
    return np.maximum.accumulate(starts), counts, raw


def _check_header(track: Track, what: str, expected_sfreq: float | None) -> None:
    if track.kind != WAVE:
        raise DataError(f"{what}: expected a wave with a sampling rate, got a track of single values.")
    if track.redefined:
        raise DataError(
            f"{what}: the file defines it twice, with different rates, formats or units. Leave the case out."
        )
    if not _is_wave(track):
        raise DataError(f"{what}: the header gives no sampling rate (it says {track.sfreq:g} Hz).")
    if expected_sfreq is not None and not np.isclose(track.sfreq, expected_sfreq, rtol=1e-3):
        raise DataError(
            f"{what}: expected {expected_sfreq:g} Hz, the rate that this track has throughout the data set;"
            f" the header says {track.sfreq:g} Hz. Leave the case out."
        )
    if track.sample_format in SENTINELS and not (np.isfinite(track.gain) and track.gain != 0):
        raise DataError(
            f"{what}: integer samples, but the header's gain is {track.gain:g}: no physical unit."
        )


def _checked_rate(starts: NDArray[np.float64], counts: NDArray[np.int64], sfreq: float, what: str) -> float:
    """The true rate of a track in Hz; refuses stamps and a rate in the header that cannot be right."""
    hours = (starts[-1] - starts[0] + counts[-1] / sfreq) / 3600
    if hours > MAX_HOURS:
        raise DataError(
            f"{what}: its packets span {hours:.0f} h, more than {MAX_HOURS:g} h: a packet's time is"
            " wrong, or the file must be split into several."
        )
    check_rate(starts, counts, sfreq=sfreq, what=what)
    return find_rate(starts, counts, sfreq=sfreq)


def _samples(wave: _Wave, origin: float) -> tuple[NDArray[np.float32], int]:
    """Join a wave's packets from `origin` on: (T,) float32 in physical units, NaN in gaps.

    Also how many samples say something else than an overlapping packet.
    """
    if wave.starts[-1] - origin > MAX_HOURS * 3600:
        raise DataError(
            f"{wave.what}: it lies more than {MAX_HOURS:g} h from the other tracks: a packet's time is wrong."
        )
    first = align_packets(wave.starts, wave.counts, sfreq=wave.sfreq, origin=origin)
    last = first + wave.counts
    if last.max() > LARGEST_SELECTION:
        raise DataError(
            f"{wave.what}: {last.max()} samples at {wave.sfreq:g} Hz, more than {LARGEST_SELECTION}: the"
            " rate is wrong, or the file must be split into several."
        )
    values = _physical(wave.raw, wave.track)
    samples = np.full(int(last.max()), np.nan, dtype=np.float32)
    # Packets that follow on are copied in one piece: the loop is over segments, not over packets.
    edges = np.flatnonzero(first[1:] != last[:-1]) + 1
    offsets = np.concatenate([[0], np.cumsum(wave.counts)])
    filled = overlapping = 0
    for start, stop in zip(np.r_[0, edges].tolist(), np.r_[edges, len(first)].tolist(), strict=True):
        segment = values[offsets[start] : offsets[stop]]
        target = samples[first[start] : last[stop - 1]]
        if first[start] >= filled:
            target[:] = segment
        else:  # the later packet counts, but its gaps do not wipe out real samples
            real = ~np.isnan(segment)
            overlapping += int(np.count_nonzero(real & ~np.isnan(target) & (target != segment)))
            np.copyto(target, segment, where=real)
        filled = max(filled, int(last[stop - 1]))
    return samples, overlapping


def _physical(raw: NDArray[Any], track: Track) -> NDArray[np.float32]:
    """(N,) raw samples in physical units; the format's sentinel and impossible floats become NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        if track.sample_format not in SENTINELS:
            values = raw.astype(np.float32)
        else:
            # float32 holds every 16-bit integer exactly, but not every 32-bit one.
            values = raw.astype(np.float32 if raw.dtype.itemsize <= 2 else np.float64)
            values *= track.gain
            values += track.offset
            values = values.astype(np.float32, copy=False)
        values[~is_sample(raw, track.sample_format)] = np.nan
    return values
