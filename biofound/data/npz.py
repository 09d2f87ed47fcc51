"""Write uncompressed npz files with the same bytes every time, and map their arrays into memory.

`np.load(path, mmap_mode="r")` ignores `mmap_mode` for an npz and reads every member into memory;
an uncompressed member is a plain `.npy` at some offset of the file, and that is what is mapped here.
"""

import math
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from biofound.errors import DataError

_EARLIEST_DATE = (1980, 1, 1, 0, 0, 0)
_LOCAL_HEADER_BYTES = 30
_ALIGNMENT_BYTES = 64
_PADDING_FIELD = 0xD935  # the id zipalign uses for the extra field that only pads
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}  # version 3.0 is for tables whose column names are not Latin-1
_MOST_AXES, _MOST_BYTES = 32, 1 << 62  # of an array that numpy can make
MOST_UNPACKED_BYTES, MOST_UNPACKED_RATIO = 1 << 30, 100
"""Bytes to which a file's compressed arrays may unpack, or times their bytes there, whichever is more.

Compression makes signals 1.1 to 3 times smaller; deflate makes zeros 1,030 times smaller.
"""

_DAMAGED_HEADER = (
    *(ValueError, SyntaxError, KeyError, TypeError, tokenize.TokenError, OverflowError),
    *(RecursionError, MemoryError),  # the header is a Python literal, read by Python's own parser
)
_DAMAGED_ARCHIVE = (
    *(KeyError, zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error),
    *(RuntimeError, NotImplementedError),  # encrypted, or another kind of compression
)


@dataclass(frozen=True, slots=True)
class Member:
    """Position of one array in an npz: dtype, shape, memory order and byte offset."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int

    @property
    def end(self) -> int:
        """The byte after the array's last."""
        return self.offset + self.nbytes

    @property
    def nbytes(self) -> int:
        """The array's length in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)  # in integers without an end


@dataclass(frozen=True, kw_only=True)
class ArrayPieces:
    """An array of `shape` and `dtype` that is written piece by piece along its first axis."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Iterable[NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """The array's length in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


def write_npz(file: BinaryIO, arrays: Mapping[str, NDArray[Any] | ArrayPieces]) -> None:
    """Write `arrays` as an uncompressed npz whose bytes depend on nothing but the arrays.

    Every member starts on a 64-byte boundary, so that mapped arrays are aligned.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", _EARLIEST_DATE)
            info.external_attr = 0o644 << 16
            info.create_system = 3  # Unix, whatever system writes: the bytes must not differ
            info.extra = _padding(file.tell() + _LOCAL_HEADER_BYTES + len(info.filename))
            info.file_size = array.nbytes + 256  # lets zipfile choose the 64-bit layout for huge arrays
            with archive.open(info, "w") as member:
                if isinstance(array, ArrayPieces):
                    _write_pieces(member, array)
                else:
                    np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def _write_pieces(member: IO[bytes], array: ArrayPieces) -> None:
    descr = np.lib.format.dtype_to_descr(array.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(member, header)
    for piece in array.pieces:
        member.write(np.ascontiguousarray(piece, array.dtype).tobytes())


def _padding(position: int) -> bytes:
    """An extra field that moves what follows `position` to the next boundary."""
    field_header = struct.calcsize("<HH")
    fill = -(position + field_header) % _ALIGNMENT_BYTES
    return struct.pack("<HH", _PADDING_FIELD, fill) + bytes(fill)


def member_names(path: Path) -> dict[str, bool]:
    """Names of the arrays in an npz, each with whether it is compressed.

    Raises:
        DataError: when `path` cannot be read as an npz (cut short, or another format).
    """
    with path.open("rb") as file:
        return {
            info.filename.removesuffix(".npy"): info.compress_type != zipfile.ZIP_STORED
            for info in _open_archive(file, path).infolist()
        }


def find_members(path: Path, names: Sequence[str]) -> dict[str, Member]:
    """Locate the arrays `names` in the uncompressed npz `path`, by reading headers only.

    Raises:
        DataError: when the file is cut short or no npz, or an array is missing, compressed or of objects.
    """
    with path.open("rb") as file:
        infos = {info.filename: info for info in _open_archive(file, path).infolist()}
        found = {}
        for name in names:
            info = infos.get(f"{name}.npy")
            if info is None:
                held = ", ".join(sorted(key.removesuffix(".npy") for key in infos)) or "nothing"
                raise DataError(f"{path}: expected an array named '{name}', found {held}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise DataError(
                    f"{path}: array '{name}' is compressed and cannot be mapped into memory; "
                    "write it with np.savez, not np.savez_compressed"
                )
            found[name] = _locate(file, info, path)
    return found


def _open_archive(file: BinaryIO, path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable npz file, or cut short ({error})") from error


def _locate(file: BinaryIO, info: zipfile.ZipInfo, path: Path) -> Member:
    """Read a member's local zip header and `.npy` header; the array's bytes start right after them."""
    if info.header_offset < 0:  # zipfile computes it from other fields, and does not look at it
        raise DataError(f"{path}: '{info.filename}' should start before the file does: it is damaged")
    try:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        file.seek(info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length)
    except struct.error as error:
        raise DataError(f"{path}: '{info.filename}' has a damaged header ({error})") from error
    entry_end, size = file.tell() + info.file_size, path.stat().st_size
    member = _read_header(file, f"{path}: '{info.filename}'")
    if member.end != entry_end or member.end > size:
        raise DataError(
            f"{path}: array '{info.filename.removesuffix('.npy')}' should end at byte {member.end}, its "
            f"entry ends at {entry_end}, the file at {size}"
        )
    return member


def _read_header(file: IO[bytes], what: str) -> Member:
    """Read a `.npy` header from where `file` stands."""
    try:
        read_header = _HEADER_READERS[np.lib.format.read_magic(file)]
        shape, fortran_order, dtype = read_header(file)
    except _DAMAGED_HEADER as error:
        raise DataError(f"{what} has a damaged header ({type(error).__name__}: {error})") from error
    if dtype.hasobject:
        raise DataError(f"{what} holds Python objects; save it as numbers or as text")
    if (
        len(shape) > _MOST_AXES
        or min(shape, default=0) < 0
        or not 0 < dtype.itemsize * math.prod(length or 1 for length in shape) < _MOST_BYTES
    ):
        raise DataError(f"{what} has a damaged header: no array is {dtype} of shape {shape}")
    return Member(dtype=dtype, shape=shape, order="F" if fortran_order else "C", offset=file.tell())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz by name, in the file's order: mapped read-only, or unpacked where compressed.

    Raises:
        DataError: as `find_members` and `unpack_members` do.
    """
    compressed = member_names(path)
    plain = [name for name, is_compressed in compressed.items() if not is_compressed]
    arrays = map_members(path, find_members(path, plain))
    arrays |= unpack_members(path, compressed.keys() - arrays.keys())
    return {name: arrays[name] for name in compressed}


def unpack_members(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Read the compressed arrays `names` of an npz into memory.

    Raises:
        DataError: when an array is missing or damaged, or unpacks to more than recordings can.
    """
    unpacked = {}
    bytes_packed = bytes_unpacked = 0
    with path.open("rb") as file, _open_archive(file, path) as archive:
        for name in names:
            what = f"{path}: '{name}.npy'"
            try:
                info = archive.getinfo(f"{name}.npy")
                bytes_packed += info.compress_size
                bytes_unpacked += info.file_size
                _refuse_bomb(bytes_packed, bytes_unpacked, what)
                with archive.open(info) as packed:
                    member = _read_header(packed, what)
                    if member.end != info.file_size:
                        raise DataError(f"{what} should have {member.end} bytes, and has {info.file_size}")
                    content = packed.read()
            except _DAMAGED_ARCHIVE as error:
                raise DataError(f"{what} cannot be unpacked ({error})") from error
            unpacked[name] = np.ndarray(member.shape, member.dtype, buffer=content, order=member.order)
    return unpacked


def is_bomb(packed: int, unpacked: int) -> bool:
    """Whether `packed` bytes unpack to more than those of recordings do."""
    return unpacked > max(MOST_UNPACKED_BYTES, MOST_UNPACKED_RATIO * packed)


def _refuse_bomb(packed: int, unpacked: int, what: str) -> None:
    if is_bomb(packed, unpacked):
        raise DataError(
            f"{what} unpacks, with the arrays before it, from {packed:,} to {unpacked:,} bytes, more than "
            "recordings do; write it with np.savez, not np.savez_compressed"
        )


def map_members(path: Path, members: Mapping[str, Member]) -> dict[str, NDArray[Any]]:
    """Map the located `members` of `path` read-only; one map, kept open as long as an array lives.

    Raises:
        DataError: when the file has become shorter than where the members lie.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if any(member.end > len(mapped) for member in members.values()):
        raise DataError(f"{path}: changed while it was in use; it is now {len(mapped)} bytes long")
    return {
        name: np.ndarray(m.shape, m.dtype, buffer=mapped, offset=m.offset, order=m.order)
        for name, m in members.items()
    }
