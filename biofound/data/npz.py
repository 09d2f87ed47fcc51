"""Write uncompressed npz files with the same bytes every time, and map their arrays into memory.

`np.load(path, mmap_mode="r")` ignores `mmap_mode` for an npz and reads every member into memory;
an uncompressed member is a plain `.npy` at some offset of the file, and that is what is mapped here.
"""

import mmap
import struct
import tokenize
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

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
        return self.offset + self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def write_npz(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
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
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


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
        size = path.stat().st_size
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
            if found[name].end > size:
                raise DataError(
                    f"{path}: array '{name}' should end at byte {found[name].end}, the file at {size}"
                )
    return found


def _open_archive(file: BinaryIO, path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable npz file, or cut short ({error})") from error


def _locate(file: BinaryIO, info: zipfile.ZipInfo, path: Path) -> Member:
    """Read a member's local zip header and `.npy` header; the array's bytes start right after them."""
    try:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        file.seek(info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length)
        read_header = _HEADER_READERS[np.lib.format.read_magic(file)]
        shape, fortran_order, dtype = read_header(file)
    except (struct.error, ValueError, SyntaxError, KeyError, TypeError, tokenize.TokenError) as error:
        raise DataError(f"{path}: '{info.filename}' has a damaged header ({error})") from error
    if dtype.hasobject:
        raise DataError(f"{path}: '{info.filename}' holds Python objects; save it as numbers or as text")
    return Member(dtype=dtype, shape=shape, order="F" if fortran_order else "C", offset=file.tell())


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
