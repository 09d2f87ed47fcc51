"""Parse the `.vital` format: tracks, and the packets of wave tracks.

Format: https://vitaldb.net/docs/?documentId=VitalRecorder/Vital_File_Format.md. A file is read once, as a
stream, so that its length does not matter; only what is asked for is kept. docs/vitaldb.md says why the
parser of the `vitaldb` package is not used.
"""

import gzip
import io
import struct
import zlib
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from biofound.errors import DataError

LARGEST_UNZIPPED = 1 << 32
"""Unzipped bytes beyond which a file is refused; 48 hours of ten waves at 500 Hz come to 1.7e9."""

LARGEST_SELECTION = 1 << 28
"""Samples in all wanted tracks beyond which a file is refused; three tracks of 48 hours at 500 Hz fit."""

MOST_PACKETS = 30_000_000
"""Packets beyond which a file is refused; 48 hours of ten waves in packets of 0.1 s are 17 million."""

WAVE = 1
"""The kind of a track that has a sampling rate; 2 is single values, 5 is text."""

DTYPES: Mapping[int, str] = {
    1: "<f4", 2: "<f8", 3: "<i1", 4: "<u1", 5: "<i2", 6: "<u2", 7: "<i4", 8: "<u4",
}  # fmt: skip
"""The type of a sample by the number of its format."""

SENTINELS: Mapping[int, int] = {3: -128, 4: 255, 5: -32768, 6: 65535, 7: -2147483648, 8: 4294967295}
"""The raw integer that means "no sample", by format; formats 1 and 2 are float."""

LARGEST_VALUE = 4e9
"""Larger floats are gaps; recorders write the 32-bit sentinel into float tracks."""

_FIRST_BYTES = b"VITA"
_TRACK, _RECORD, _DEVICE = 0, 1, 9
_LARGEST_INFO = 1 << 20
_CHUNK = 1 << 20  # a multiple of every sample's size
_PACKET = struct.Struct("<BL")
_RECORD_INFO = struct.Struct("<HdH")
_LENGTH = struct.Struct("<L")
_TRACK_TAIL = struct.Struct("<ffLfddBL")


@dataclass(kw_only=True)
class Track:
    """A track and, if it is a wanted wave, its K packets in the order of the file.

    Attributes:
        name: `Device/Track`, or `Track` where the device has no name.
        kind: `WAVE`, or another number for single values and text.
        sample_format: key of `DTYPES`.
        sfreq: sampling rate in Hz by the track's header.
        unit: physical unit; may be empty.
        gain: physical units per raw step (integer formats).
        offset: physical value of the raw value 0 (integer formats).
        redefined: the file defines the track anew, differently, after its first packets.
        signal_samples: samples of a wave that are no gaps, where they were counted.
        starts: (K,) time stamps in seconds.
        counts: (K,) samples of each packet.
        raw: the packets' samples one after the other, as stored.
    """

    name: str
    kind: int
    sample_format: int
    sfreq: float
    unit: str
    gain: float
    offset: float
    redefined: bool = False
    signal_samples: int = 0
    starts: "array[float]" = field(default_factory=lambda: array("d"))
    counts: "array[int]" = field(default_factory=lambda: array("q"))
    raw: bytearray = field(default_factory=bytearray)

    def definition(self) -> tuple[object, ...]:
        """What a second definition of the same name must agree with."""
        return self.name, self.kind, self.sample_format, self.sfreq, self.unit, self.gain, self.offset

    def raw_samples(self) -> NDArray[Any]:
        """The samples in `raw` as numbers."""
        return np.frombuffer(self.raw, dtype=DTYPES[self.sample_format])


def is_sample(raw: NDArray[Any], sample_format: int) -> NDArray[np.bool_]:
    """(N,) whether each raw sample is one: no sentinel, and finite and at most 4e9 in float formats."""
    sentinel = SENTINELS.get(sample_format)
    # The comparison is False for NaN, so that NaN, infinity and the 32-bit sentinel are no samples.
    return np.asarray(np.abs(raw) <= LARGEST_VALUE if sentinel is None else raw != sentinel)


def read_tracks(
    path: Path, *, what: str, wanted: Callable[[str], bool] | None = None, count: bool = False
) -> dict[str, Track]:
    """Read a file to its end: every track by name, and the packets of those that are `wanted`.

    Packets of other tracks are passed over, whatever their length. Notices what the `vitaldb` parser and a
    plain download do not: a file that is cut short, with its gzip's end and CRC.

    Args:
        path: the file.
        what: the case, for messages.
        wanted: whether a track of this name is to be kept; None keeps none.
        count: count the samples of waves that are no gaps (`Track.signal_samples`).

    Raises:
        DataError: cut short, damaged, no `.vital` file, or larger than any recording.
    """
    try:
        with gzip.open(path, "rb") as unzipped, io.BufferedReader(unzipped, _CHUNK) as stream:
            return _Parser(stream, path, what, wanted or (lambda _: False), count).tracks()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{what}: {path} is cut short or damaged ({error}). Copy or download it again."
        ) from error
    except (struct.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{what}: {path} has a packet that cannot be read ({error}): it is damaged."
        ) from error


class _Parser:
    """One pass over the packets of an unzipped file."""

    def __init__(
        self, stream: BinaryIO, path: Path, what: str, wanted: Callable[[str], bool], count: bool
    ) -> None:
        self._stream, self._path, self._what = stream, path, what
        self._wanted, self._count = wanted, count
        self._end = 0  # where the present packet must end, in unzipped bytes
        self._read = 0  # unzipped bytes read
        self._selected = 0
        self._devices: dict[int, str] = {}
        self._by_name: dict[str, Track] = {}
        self._by_id: dict[int, Track] = {}
        self._kept: set[str] = set()

    def tracks(self) -> dict[str, Track]:
        """Every track by name."""
        first = self._stream.read(10)
        self._read = len(first)
        if len(first) < 10 or not first.startswith(_FIRST_BYTES):
            raise DataError(
                f"{self._what}: {self._path} is no .vital file (it starts with {first[:4]!r}, not"
                f" {_FIRST_BYTES!r})."
            )
        self._end = 10 + int.from_bytes(first[8:10], "little")
        self._take(self._end - 10)
        for _ in range(MOST_PACKETS):
            head = self._stream.read(_PACKET.size)
            if not head:
                for track in self._by_name.values():
                    self._settle(track)
                return self._by_name
            self._read += len(head)
            self._end += _PACKET.size
            if len(head) < _PACKET.size:
                raise self._cut_short()
            kind, length = _PACKET.unpack(head)
            self._end += length
            if self._end > LARGEST_UNZIPPED:
                raise self._too_large(f"more than {LARGEST_UNZIPPED} bytes unzipped")
            if kind == _RECORD and length >= _RECORD_INFO.size:
                self._record(length)
            elif kind in (_TRACK, _DEVICE) and length <= _LARGEST_INFO:
                (self._define_track if kind == _TRACK else self._define_device)(self._take(length))
            self._skip()
        raise self._too_large(f"more than {MOST_PACKETS} packets")

    def _take(self, length: int) -> bytes:
        data = self._stream.read(length)
        self._read += len(data)
        if len(data) < length:
            raise self._cut_short()
        return data

    def _skip(self) -> None:
        """Pass over the rest of the packet, in pieces so that it needs no memory."""
        while self._read < self._end:
            self._take(min(_CHUNK, self._end - self._read))

    def _define_device(self, body: bytes) -> None:
        (number,) = _LENGTH.unpack_from(body, 0)
        kind, at = _text(body, 4)
        name, _ = _text(body, at)
        self._devices[number] = name or kind

    def _define_track(self, body: bytes) -> None:
        number, kind, sample_format = struct.unpack_from("<HBB", body, 0)
        name, at = _text(body, 4)
        unit, at = _text(body, at) if at < len(body) else ("", at)
        # Older files leave out the last fields.
        tail = body[at : at + _TRACK_TAIL.size].ljust(_TRACK_TAIL.size, b"\0")
        _, _, _, sfreq, gain, offset, _, device = _TRACK_TAIL.unpack(tail)
        if sample_format not in DTYPES and kind in (WAVE, 2):
            return
        track = Track(
            name=f"{self._devices[device]}/{name}" if self._devices.get(device) else name,
            kind=kind,
            sample_format=sample_format,
            sfreq=sfreq,
            unit=unit,
            gain=gain,
            offset=offset,
        )
        known = self._by_name.setdefault(track.name, track)
        if known.definition() != track.definition():
            if known.starts:
                known.redefined = True
            else:  # nothing was recorded under the first definition
                known = self._by_name[track.name] = track
        self._by_id[number] = known
        if kind == WAVE and self._wanted(track.name):
            self._kept.add(track.name)

    def _record(self, length: int) -> None:
        info, start, number = _RECORD_INFO.unpack(self._take(_RECORD_INFO.size))
        track = self._by_id.get(number)
        kept = track is not None and track.name in self._kept
        if track is None or track.kind != WAVE or not (kept or self._count):
            return
        more = 2 + info - _RECORD_INFO.size  # of a format to come
        if more < 0 or 2 + info + _LENGTH.size > length:
            return
        if more:
            self._take(more)
        (count,) = _LENGTH.unpack(self._take(_LENGTH.size))
        size, held = count * np.dtype(DTYPES[track.sample_format]).itemsize, self._end - self._read
        # The vitaldb package writes 32-bit integers as 64 bits when it packs.
        if size > held or (track.sample_format in (7, 8) and held == 2 * size > 0):
            raise DataError(
                f"{self._what}, track {track.name}: a packet of {self._path} promises {count} samples, {size}"
                f" bytes, but has {held} bytes. The file is damaged."
            )
        if kept:
            self._selected += count
            if self._selected > LARGEST_SELECTION:
                raise self._too_large(f"more than {LARGEST_SELECTION} samples in the wanted tracks")
            if count:
                track.starts.append(start)
                track.counts.append(count)
                track.raw += self._take(size)
            return
        while size:
            piece = self._take(min(_CHUNK, size))
            size -= len(piece)
            track.raw += piece
            if len(track.raw) >= _CHUNK:
                self._settle(track)

    def _settle(self, track: Track) -> None:
        """Count the samples of a wave, and let them go unless they are wanted."""
        if self._count and track.raw:
            track.signal_samples += int(np.count_nonzero(is_sample(track.raw_samples(), track.sample_format)))
        if track.name not in self._kept:
            track.raw = bytearray()

    def _cut_short(self) -> DataError:
        return DataError(
            f"{self._what}: {self._path} ends inside a packet ({self._read} bytes unzipped, {self._end}"
            " needed). The recording was cut short; take the original file."
        )

    def _too_large(self, reason: str) -> DataError:
        return DataError(
            f"{self._what}: {self._path} is larger than any recording ({reason}): it is damaged, or must be"
            " split into several."
        )


def _text(body: bytes, at: int) -> tuple[str, int]:
    """A string of a packet, and where it ends."""
    (length,) = _LENGTH.unpack_from(body, at)
    end = at + _LENGTH.size + length
    return body[at + _LENGTH.size : end].decode("utf-8", "ignore"), end
