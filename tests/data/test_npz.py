"""Uncompressed npz files: the same bytes every time, and members mapped at their offset."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from biofound.data import npz
from biofound.data.npz import find_members, map_members, member_names, unpack_members, write_npz
from biofound.errors import DataError

ARRAYS = {
    "x": np.arange(24, dtype=np.float16).reshape(2, 3, 4),
    "long_name_of_an_array": np.linspace(0, 1, 7),
    "none": np.zeros((0, 2, 1250), np.float32),
    "text": np.array(["PPG", "ECG"]),
    "scalar": np.array(125.0),
}


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with path.open("wb") as file:
        write_npz(file, arrays)
    return path


def test_numpy_reads_what_is_written(tmp_path):
    with np.load(save(tmp_path / "a.npz", ARRAYS)) as archive:
        assert archive.files == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert archive[name].dtype == array.dtype
            np.testing.assert_array_equal(archive[name], array)


@pytest.mark.parametrize("save_as", [save, lambda path, arrays: (np.savez(path, **arrays), path)[1]])
def test_mapped_members_equal_what_numpy_reads(tmp_path, save_as):
    path = save_as(
        tmp_path / "a.npz", {**ARRAYS, "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4))}
    )
    mapped = map_members(path, find_members(path, list(member_names(path))))
    with np.load(path) as archive:
        for name in archive.files:
            assert mapped[name].dtype == archive[name].dtype
            np.testing.assert_array_equal(mapped[name], archive[name])


def test_mapped_arrays_cannot_be_written_to(tmp_path):
    path = save(tmp_path / "a.npz", ARRAYS)
    x = map_members(path, find_members(path, ["x"]))["x"]
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 0


def test_the_same_arrays_give_the_same_bytes_wherever_their_memory_lies():
    def written(x: np.ndarray) -> bytes:
        file = io.BytesIO()
        write_npz(file, {"x": x})
        return file.getvalue()

    x = np.arange(24.0).reshape(4, 6)
    assert written(x) == written(np.asfortranarray(x)) == written(np.repeat(x, 2, axis=0)[::2])


def test_members_start_on_64_byte_boundaries(tmp_path):
    members = find_members(save(tmp_path / "a.npz", ARRAYS), list(ARRAYS))
    assert [member.offset % 64 for member in members.values()] == [0] * len(ARRAYS)


def test_a_compressed_array_is_refused_with_the_way_out(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(9))
    with pytest.raises(DataError, match=r"a\.npz: .*'x'.*np\.savez_compressed"):
        find_members(tmp_path / "a.npz", ["x"])


def test_names_that_are_no_text_are_refused(tmp_path):
    content = save(tmp_path / "a.npz", {"µ": np.zeros(1)}).read_bytes()
    (tmp_path / "b.npz").write_bytes(content.replace("µ".encode(), b"\xff\xfe"))
    with pytest.raises(DataError, match=r"b\.npz: not a readable npz"):
        find_members(tmp_path / "b.npz", ["x"])


def test_a_missing_array_is_named_beside_those_that_are_there(tmp_path):
    path = save(tmp_path / "a.npz", {"mean": np.zeros(1), "std": np.zeros(1)})
    with pytest.raises(DataError, match=r"'x'.*mean, std"):
        find_members(path, ["x"])


def test_python_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"a\.npz: 'x\.npy'.*objects"):
        find_members(tmp_path / "a.npz", ["x"])


def test_a_file_cut_short_anywhere_is_an_error(tmp_path):
    whole = save(tmp_path / "whole.npz", ARRAYS).read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.npz"):
            find_members(tmp_path / "cut.npz", ["x"])


def test_an_array_longer_than_its_file_is_an_error(tmp_path):
    path = save(tmp_path / "a.npz", {"x": np.arange(6.0)})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(6,), }   ", b"(9999,), }"))
    with pytest.raises(DataError, match=rf"a\.npz: .*'x'.* {len(content)}"):
        find_members(path, ["x"])


def test_damage_to_a_header_is_a_data_error_or_changes_nothing_of_the_layout(tmp_path):
    path = save(tmp_path / "a.npz", {"x": np.arange(6.0)})
    whole, x = path.read_bytes(), find_members(path, ["x"])["x"]
    refused = 0
    for position in (*range(x.offset), *range(x.end, len(whole))):
        (tmp_path / "b.npz").write_bytes(whole[:position] + b"\xff" + whole[position + 1 :])
        try:
            find_members(tmp_path / "b.npz", ["x"])
        except DataError:
            refused += 1
    assert refused > 50


def test_a_file_that_shrank_after_its_members_were_found_is_an_error(tmp_path):
    path = save(tmp_path / "a.npz", ARRAYS)
    members = find_members(path, ["text"])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=f"{path}: .* 300 bytes"):
        map_members(path, members)


# What no array can be


def write_raw(path: Path, header: str, *, compression: int) -> Path:
    """An npz of one array `x`, 64 zero bytes under a header of one's own."""
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", content)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize(
    ("shape", "descr"),
    [
        ((2**62, 8), "<f4"),
        ((2**61, 2, 2), "<f4"),
        ((2**70,), "<f4"),
        ((-16,), "<f4"),
        ((0, 2**62, 2**62), "<f4"),
        ((1,) * 40 + (16,), "<f4"),
        ((10**15,), "<U0"),
        ((17,), "<f4"),
    ],
)
def test_a_shape_that_the_file_cannot_hold_is_refused(tmp_path, shape, descr, compression):
    path = tmp_path / "a.npz"
    header = repr({"descr": descr, "fortran_order": False, "shape": shape})
    write_raw(path, header, compression=compression)
    read = find_members if compression == zipfile.ZIP_STORED else unpack_members
    with pytest.raises(DataError, match=r"a\.npz: .*'x(\.npy)?'"):
        read(path, ["x"])


@pytest.mark.parametrize("header", ["(" * 9000, "-" * 9000 + "1", "{'descr': '<f4'}", "[1]", ""])
def test_a_header_that_is_none_is_refused(tmp_path, header):
    path = write_raw(tmp_path / "a.npz", header, compression=zipfile.ZIP_STORED)
    with pytest.raises(DataError, match="damaged header"):
        find_members(path, ["x"])


def test_compressed_arrays_equal_what_numpy_reads(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **ARRAYS, fortran=np.asfortranarray(np.arange(12.0).reshape(3, 4)))
    unpacked = unpack_members(path, member_names(path))
    with np.load(path) as archive:
        assert unpacked.keys() == set(archive.files)
        for name, array in unpacked.items():
            assert array.dtype == archive[name].dtype
            np.testing.assert_array_equal(array, archive[name])


def test_what_unpacks_to_far_more_than_signals_do_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "MOST_UNPACKED_BYTES", 10_000)
    noise = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    np.savez_compressed(tmp_path / "a.npz", signal=noise, bomb=np.zeros(1_000_000))
    np.testing.assert_array_equal(unpack_members(tmp_path / "a.npz", ["signal"])["signal"], noise)
    with pytest.raises(DataError, match=r"a\.npz: 'bomb\.npy' unpacks, .* from .* to 8,000,128 bytes"):
        unpack_members(tmp_path / "a.npz", ["bomb"])
    monkeypatch.setattr(npz, "MOST_UNPACKED_RATIO", 10)
    halves = {name: np.zeros(700) for name in "ab"}  # 5.7 kB each: together they are too much
    np.savez_compressed(tmp_path / "b.npz", **halves)
    assert unpack_members(tmp_path / "b.npz", ["a"])["a"].nbytes == 5_600
    with pytest.raises(DataError, match=r"'b\.npy' unpacks, with the arrays before it, .* to 11,456 bytes"):
        unpack_members(tmp_path / "b.npz", ["a", "b"])


def test_damage_to_a_compressed_array_is_a_data_error(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).integers(0, 50, 300))
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 9):
        (tmp_path / "b.npz").write_bytes(
            whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]
        )
        try:
            read = unpack_members(tmp_path / "b.npz", ["x"])["x"]
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(read, np.random.default_rng(0).integers(0, 50, 300))
    assert refused > 30
