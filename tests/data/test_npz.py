"""Uncompressed npz files: the same bytes every time, and members mapped at their offset."""

import io
from pathlib import Path

import numpy as np
import pytest

from biofound.data.npz import find_members, map_members, member_names, write_npz
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
    whole, start = path.read_bytes(), find_members(path, ["x"])["x"].offset
    refused = 0
    for position in range(start):
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
