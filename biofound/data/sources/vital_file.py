"""Read `.vital` files: their tracks, and the samples of the wanted ones on one clock.

The packets come from the parser of the `vitaldb` package. Their alignment in time, gaps and completeness are
handled here, because the package's own `to_numpy` gets them wrong silently (see docs/vitaldb.md). Format: https://vitaldb.net/docs/?documentId=VitalRecorder/Vital_File_Format.md
"""

import contextlib
import gzip
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.data.sources import Recording, Signal
from biofound.data.sources.packets import align_packets, check_rate
from biofound.data.sources.units import conversion
from biofound.errors import DataError

MAX_HOURS = 48.0
"""Longest recording that is accepted; a wrong time stamp would otherwise need memory for years."""

LARGEST_VALUE = 4e9
"""Larger physical values are gaps; recorders write the 32-bit sentinel into float tracks."""

LARGEST_UNPACKED_PACKET = 1_000_000
"""Bytes beyond which the `vitaldb` parser stops reading an unpacked file, silently."""

SENTINELS: Mapping[int, int] = {3: -128, 4: 255, 5: -32768, 6: 65535, 7: -2147483648, 8: 4294967295}
"""The raw integer that means "no sample", by the file's sample format; formats 1 and 2 are float."""

_WAVE = 1
_FIRST_BYTES = b"VITA"
_PACKET_HEADER = struct.Struct("<BL")

_one_at_a_time = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Track names of a file, and its time span in seconds."""

    tracks: tuple[str, ...]
    duration_s: float | None


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
        fitting = [] if "/" in name else sorted(n for n in names if n.partition("/")[2] == name)
        if len(fitting) > 1:
            raise DataError(
                f"{what}: {name} is a track of several devices ({', '.join(fitting)})."
                " Name the one wanted as Device/Track in the channel's tracks."
            )
        if fitting:
            return fitting[0]
    return None


def check_complete(path: Path, *, what: str) -> None:
    """Check that a `.vital` file is complete: gzip end, CRC, and every packet inside.

    Neither the `vitaldb` parser nor a plain download notices a truncated file: the rest of the recording
    is missing then. Costs one gunzip.

    Raises:
        DataError: cut short, damaged, or not a `.vital` file; the message says which.
    """
    try:
        body = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{what}: {path} is cut short or damaged ({error}). Copy or download it again."
        ) from error
    if len(body) < 10 or not body.startswith(_FIRST_BYTES):
        raise DataError(
            f"{what}: {path} is no .vital file (it starts with {body[:4]!r}, not {_FIRST_BYTES!r})."
        )
    _walk(body, path, what)


def contents(path: Path, *, what: str) -> Contents:
    """List a file's wave, numeric and string tracks, and its duration.

    Raises:
        DataError: the file is damaged or cannot be parsed.
    """
    check_complete(path, what=what)
    file = _parse(path, None, what, header_only=True)
    duration = float(file.dtend - file.dtstart)
    return Contents(tracks=tuple(file.get_track_names()), duration_s=duration if duration > 0 else None)


def read_recording(
    path: Path, *, case_id: str, channels: Sequence[Channel], known: Mapping[str, Mapping[str, Any]]
) -> Recording:
    """Read the wanted channels of a `.vital` file, which must be complete (`check_complete`).

    All signals start at the earliest packet of any of them. Each keeps its native rate; its samples lie
    on a grid from that start, each segment at the nearest grid point: two tracks are misaligned by up to
    half a sample of each (at 500 Hz 2 ms in all) plus the jitter of their stamps (see
    `packets.align_packets`). Gaps are NaN: time without a packet, the integer sentinel of the track's
    format, and floats that are not finite or beyond 4e9.

    Args:
        path: the file.
        case_id: for messages and the result.
        channels: which tracks to read.
        known: properties of tracks by full name: `srate` in Hz, which the header must agree with (other
            rates are accepted unless the packet times contradict them), and `unit`, for headers without.

    Raises:
        DataError: a track is absent, no wave, all gaps, in another unit, or its rate cannot be right; or the
            file cannot be parsed.
    """
    what = f"case {case_id}"
    wanted = [name for channel in channels for name in channel.tracks]
    file = _parse(path, wanted, what, header_only=False)
    waves = {channel.name: _wave_of(file, channel, path, what, known) for channel in channels}
    origin = min(wave.starts[0] for wave in waves.values())
    signals = {}
    for channel in channels:
        wave = waves[channel.name]
        factor, unit = conversion(wave.unit, channel, what=wave.what)
        samples = _samples(wave, float(origin))
        samples *= np.float32(factor)
        if not np.isfinite(samples).any():
            raise DataError(f"{wave.what}: the track holds nothing but gaps. Leave the case out.")
        signals[channel.name] = Signal(samples=samples, sfreq=wave.sfreq, unit=unit)
    return Recording(case_id=case_id, signals=signals)


@dataclass(frozen=True, kw_only=True)
class _Wave:
    """One track's packets in order of time: K stamps in seconds and K arrays of raw samples."""

    what: str
    starts: NDArray[np.float64]
    packets: list[NDArray[Any]]
    sfreq: float
    unit: str
    sample_format: int
    gain: float
    offset: float


def _walk(body: bytes, path: Path, what: str) -> None:
    """Check the packets of an unzipped file: each must end inside it, the last at its very end."""
    header_length = int.from_bytes(body[8:10], "little")
    packed = header_length >= 27 and len(body) > 36 and body[36] == 1
    limit = len(body) if packed else LARGEST_UNPACKED_PACKET
    position, end = 10 + header_length, len(body)
    unpack = _PACKET_HEADER.unpack_from
    while position + _PACKET_HEADER.size <= end:
        _, length = unpack(body, position)
        if length > limit:
            raise DataError(
                f"{what}: {path} has a packet of {length} bytes at byte {position} (unzipped); at most"
                f" {limit} fit. The file is damaged, or was saved unpacked with packets too long to read."
            )
        position += _PACKET_HEADER.size + length
    if position != end:
        raise DataError(
            f"{what}: {path} ends inside a packet ({end} bytes unzipped, {position} needed). The recording"
            " was cut short; take the original file."
        )


def _parse(path: Path, wanted: list[str] | None, what: str, *, header_only: bool) -> Any:
    """Call the package's parser; what it would print or pass over becomes a `DataError`."""
    from vitaldb.utils import VitalFile  # takes nearly two seconds

    said = io.StringIO()
    # It prints its errors, and leaves its file to the garbage collector. Both redirections are
    # process-wide, so threads take turns.
    with _one_at_a_time, contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        file = VitalFile()
        file.dtstart = file.dtend = 0
        understood = file.load_vital(str(path), track_names=wanted, header_only=header_only)
    if not understood:
        reason = said.getvalue().strip() or "not the format it expects"
        raise DataError(f"{what}: the vitaldb package cannot read {path}: {reason}. Leave the case out.")
    return file


def _wave_of(
    file: Any, channel: Channel, path: Path, what: str, known: Mapping[str, Mapping[str, Any]]
) -> _Wave:
    """Find a channel's track in a parsed file, and check its header and packet times."""
    name = find_track(channel.tracks, file.get_track_names(), what=f"{what}, channel {channel.name}")
    if name is None:
        raise DataError(
            f"{what}, channel {channel.name}: expected one of the tracks {', '.join(channel.tracks)}; {path}"
            f" has {', '.join(contents(path, what=what).tracks) or 'none'}. Name the track in the channel's"
            " tracks or leave the case out."
        )
    track = file.trks[name]
    what = f"{what}, channel {channel.name}, track {name}"
    _check_header(track, what, known.get(name, {}).get("srate"))
    packets = sorted((rec for rec in track.recs if len(rec["val"])), key=lambda rec: rec["dt"])
    if not packets:
        raise DataError(f"{what}: the track is listed but holds no samples. Leave the case out.")
    starts = np.array([rec["dt"] for rec in packets], dtype=np.float64)
    wave = _Wave(
        what=what,
        starts=starts,
        packets=[rec["val"] for rec in packets],
        sfreq=float(track.srate),
        unit=track.unit or known.get(name, {}).get("unit", ""),
        sample_format=track.fmt,
        gain=track.gain,
        offset=track.offset,
    )
    _check_times(wave)
    return wave


def _check_header(track: Any, what: str, expected_sfreq: float | None) -> None:
    if track.type != _WAVE:
        raise DataError(f"{what}: expected a wave with a sampling rate, got a track of single values.")
    if not (np.isfinite(track.srate) and track.srate > 0):
        raise DataError(f"{what}: the header gives no sampling rate (it says {track.srate:g} Hz).")
    if expected_sfreq is not None and not np.isclose(track.srate, expected_sfreq, rtol=1e-3):
        raise DataError(
            f"{what}: expected {expected_sfreq:g} Hz, the rate that this track has throughout the data set;"
            f" the header says {track.srate:g} Hz. Leave the case out."
        )
    if track.fmt in SENTINELS and not (np.isfinite(track.gain) and track.gain != 0):
        raise DataError(
            f"{what}: integer samples, but the header's gain is {track.gain:g}: no physical unit."
        )


def _check_times(wave: _Wave) -> None:
    if not np.isfinite(wave.starts).all():
        raise DataError(f"{wave.what}: a packet has no valid time. The file is damaged.")
    counts = np.array([len(packet) for packet in wave.packets], dtype=np.int64)
    hours = (wave.starts[-1] - wave.starts[0] + counts[-1] / wave.sfreq) / 3600
    if hours > MAX_HOURS:
        raise DataError(
            f"{wave.what}: its packets span {hours:.0f} h, more than {MAX_HOURS:g} h: a packet's time is"
            " wrong, or the file must be split into several."
        )
    check_rate(wave.starts, counts, sfreq=wave.sfreq, what=wave.what)


def _samples(wave: _Wave, origin: float) -> NDArray[np.float32]:
    """Join a wave's packets from `origin` on: (T,) float32 in physical units, NaN in gaps."""
    counts = np.array([len(packet) for packet in wave.packets], dtype=np.int64)
    first = align_packets(wave.starts, counts, sfreq=wave.sfreq, origin=origin)
    last = first + counts
    if last.max() / wave.sfreq > MAX_HOURS * 3600:
        raise DataError(
            f"{wave.what}: it lies more than {MAX_HOURS:g} h from the other tracks: a packet's time is wrong."
        )
    values = _physical(np.concatenate(wave.packets), wave)
    samples = np.full(int(last.max()), np.nan, dtype=np.float32)
    # Packets that follow on are copied in one piece: the loop is over segments, not over packets.
    edges = np.flatnonzero(first[1:] != last[:-1]) + 1
    offsets = np.concatenate([[0], np.cumsum(counts)])
    filled = 0
    for start, stop in zip(np.r_[0, edges].tolist(), np.r_[edges, len(counts)].tolist(), strict=True):
        segment = values[offsets[start] : offsets[stop]]
        target = samples[first[start] : last[stop - 1]]
        # Where packets overlap the later one counts, but its gaps do not wipe out real samples.
        np.copyto(target, segment, where=True if first[start] >= filled else ~np.isnan(segment))
        filled = max(filled, int(last[stop - 1]))
    return samples


def _physical(raw: NDArray[Any], wave: _Wave) -> NDArray[np.float32]:
    """(N,) raw samples in physical units; the format's sentinel and impossible floats become NaN."""
    sentinel = SENTINELS.get(wave.sample_format)
    if sentinel is None:
        with np.errstate(over="ignore"):
            values = raw.astype(np.float32)
        # The comparison is False for NaN, so that NaN, infinity and the 32-bit sentinel all end as NaN.
        values[~(np.abs(values) <= LARGEST_VALUE)] = np.nan
        return values
    # float32 holds every 16-bit integer exactly, but not every 32-bit one.
    values = raw.astype(np.float32 if raw.dtype.itemsize <= 2 else np.float64)
    values *= wave.gain
    values += wave.offset
    values[raw == sentinel] = np.nan
    return values.astype(np.float32, copy=False)
