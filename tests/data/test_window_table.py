"""Window tables: what is written comes back, piece by piece, whole or not at all."""

import json
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest

from biofound.data.window_table import (
    PredictionsHeader,
    TableOrigin,
    VectorsHeader,
    VectorsOrigin,
    WindowPredictions,
    WindowVectors,
    read_header,
    refuse_other_table,
    write_table,
)
from biofound.errors import DataError

ORIGIN = VectorsOrigin(
    checkpoint="best.pt",
    checkpoint_sha256="0" * 64,
    readout="mean",
    gate=True,
    data={"source": {"name": "x"}},
)
PREDICTED_BY = TableOrigin(**ORIGIN.model_dump(exclude={"readout"}))
HEADER = VectorsHeader(
    biofound_version="0",
    origin=ORIGIN,
    channels=("PPG", "ECG"),
    present_channels=("PPG", "ECG"),
    sfreq=125.0,
    window_samples=1250,
)


def piece(rows: int, *, number: int = 0) -> WindowVectors:
    random = np.random.default_rng(number)
    return WindowVectors(
        case_id=np.array([f"case {number}" + "x" * row for row in range(rows)], str),
        subject_id=np.full(rows, ""),
        start_s=10.0 * np.arange(rows),
        quality=random.random((rows, 2), np.float32),
        vectors=random.normal(size=(rows, 7)).astype(np.float32),
    )


def joined(pieces: list[WindowVectors], name: str) -> np.ndarray:
    return np.concatenate([getattr(each, name) for each in pieces])


@pytest.fixture
def pieces() -> list[WindowVectors]:
    return [piece(3), piece(1, number=1), piece(4, number=2)]


def test_both_forms_hold_what_was_written_and_say_how_it_was_made(tmp_path, pieces) -> None:
    for name in ("v.parquet", "v.npz"):
        write_table(tmp_path / name, pieces, HEADER)
        assert read_header(tmp_path / name, VectorsHeader) == HEADER
    table = pq.read_table(tmp_path / "v.parquet").to_pydict()
    assert list(table) == ["case_id", "subject_id", "start_s", "quality_PPG", "quality_ECG", "vector"]
    with np.load(tmp_path / "v.npz") as arrays:
        for column in ("case_id", "subject_id", "start_s"):
            assert table[column] == arrays[column].tolist() == joined(pieces, column).tolist()
        np.testing.assert_array_equal(np.float32(table["vector"]), joined(pieces, "vectors"))
        np.testing.assert_array_equal(arrays["vector"], joined(pieces, "vectors"))
        np.testing.assert_array_equal(arrays["quality"], joined(pieces, "quality"))
        np.testing.assert_array_equal(np.float32(table["quality_ECG"]), joined(pieces, "quality")[:, 1])
        assert arrays["channels"].tolist() == ["PPG", "ECG"]
        assert json.loads(arrays["biofound"].item())["origin"]["readout"] == "mean"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.npz", "v.parquet"]


@pytest.mark.parametrize("classes", [(), ("N", "AF")])
def test_predictions_have_a_column_for_each_class_in_the_models_order(tmp_path, pieces, classes) -> None:
    random = np.random.default_rng(0)
    known = {key: joined(pieces, key) for key in ("case_id", "subject_id", "start_s", "quality")}
    chance = random.random((8, len(classes)), np.float32)
    numbers = random.normal(size=8).astype(np.float32)
    said = np.array(classes)[chance.argmax(1)] if classes else numbers
    rows = WindowPredictions(**known, prediction=said, probability=chance)
    header = PredictionsHeader(
        **{
            **HEADER.model_dump(exclude={"kind", "format_version", "present_channels"}),
            "origin": PREDICTED_BY,
        },
        target="rhythm",
        classes=classes,
    )
    for name in ("p.parquet", "p.npz"):
        write_table(tmp_path / name, [rows], header)
        assert read_header(tmp_path / name, PredictionsHeader) == header
        with pytest.raises(DataError, match="biofound embed"):
            read_header(tmp_path / name, VectorsHeader)
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    columns = [f"probability_{name}" for name in classes]
    assert list(table)[3:] == ["quality_PPG", "quality_ECG", "prediction", *columns]
    assert table["prediction"] == said.tolist()
    with np.load(tmp_path / "p.npz") as arrays:
        np.testing.assert_array_equal(arrays["prediction"], said)
        assert ("probability" in arrays) == ("classes" in arrays) == bool(classes)
        for k, column in enumerate(columns):
            np.testing.assert_array_equal(arrays["probability"][:, k], chance[:, k])
            np.testing.assert_array_equal(np.float32(table[column]), chance[:, k])
        if classes:
            assert arrays["classes"].tolist() == list(classes)


@pytest.mark.parametrize("name", ["v.parquet", "v.npz"])
def test_no_more_than_two_pieces_are_held_at_once(tmp_path, name: str) -> None:
    held: list[weakref.ref] = []
    most = 0

    def made():
        nonlocal most
        for number in range(6):
            one = piece(5, number=number)
            held.append(weakref.ref(one.vectors))
            most = max(most, sum(each() is not None for each in held))
            yield one

    write_table(tmp_path / name, made(), HEADER)
    assert most <= 2
    if name == "v.parquet":
        assert pq.ParquetFile(tmp_path / name).num_row_groups == 6


@pytest.mark.parametrize("name", ["v.parquet", "v.npz"])
def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path, name: str) -> None:
    (tmp_path / name).write_text("old")
    (tmp_path / f".{name}.abc.partial").touch()  # of a killed run: swept
    (tmp_path / ".other.abc.partial").touch()  # of somebody else: kept

    def failing():
        yield piece(2)
        raise DataError("half way")

    with pytest.raises(DataError, match="half way"):
        write_table(tmp_path / name, failing(), HEADER)
    assert (tmp_path / name).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".other.abc.partial", name])
    with pytest.raises(DataError, match="no window"):
        write_table(tmp_path / name, [], HEADER)


@pytest.mark.parametrize("name", ["v.parquet", "v.npz"])
def test_only_earlier_vectors_of_the_same_origin_are_replaced(tmp_path, name: str) -> None:
    path = tmp_path / name
    refuse_other_table(path, VectorsHeader, ORIGIN)  # nothing is there
    write_table(path, [piece(2)], HEADER)
    refuse_other_table(path, VectorsHeader, ORIGIN.model_copy(update={"checkpoint": "moved/best.pt"}))
    other = ORIGIN.model_copy(update={"readout": "mean_std", "data": {}})
    with pytest.raises(DataError, match=r"data, readout.*--overwrite"):
        refuse_other_table(path, VectorsHeader, other)
    for content in (b"something else", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no result of"):
            refuse_other_table(path, VectorsHeader, ORIGIN)
