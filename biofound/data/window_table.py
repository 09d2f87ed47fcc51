"""Window tables: a row a window, with its recording, start, quality and what a model says; Parquet or npz.

Rows are written as they come, so memory does not grow with their number. An npz says how many rows follow
before the first: it is made from a temporary Parquet file.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from biofound.data.npz import ArrayPieces, find_members, map_members, write_npz
from biofound.data.segments import WindowInfo
from biofound.errors import DataError
from biofound.files import JsonFile, StrictModel, printable_name, sweep_temporary_files, write_atomically

HEADER_KEY = "biofound"
"""The key of the header in the metadata of a Parquet file, and its array in an npz."""


# ---------------------------------------------------------------------------------------------------------
# Rows


@dataclass(frozen=True, kw_only=True)
class WindowRows(WindowInfo):
    """Rows of B windows; a subclass adds what a model says of them."""

    def columns(self) -> dict[str, NDArray[Any]]:
        """What stands beside the info, by name: (B,) numbers or text, or (B, F) numbers."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class WindowVectors(WindowRows):
    """Vectors of B windows beside case, subject, start and quality: `vectors` is (B, F) float32."""

    vectors: NDArray[np.float32]

    def columns(self) -> dict[str, NDArray[Any]]:
        """`vector`."""
        return {"vector": self.vectors}


@dataclass(frozen=True, kw_only=True)
class WindowPredictions(WindowRows):
    """Predictions of a task model for B windows beside case, subject, start and quality.

    Attributes:
        prediction: (B,) float32 in the target's unit, or text: the most probable class.
        probability: (B, K) float32 of the K classes; (B, 0) for numbers.
    """

    prediction: NDArray[Any]
    probability: NDArray[np.float32]

    def columns(self) -> dict[str, NDArray[Any]]:
        """`prediction`, and of classes `probability`."""
        found = {"prediction": self.prediction}
        return {**found, "probability": self.probability} if self.probability.shape[1] else found


Rows = TypeVar("Rows", bound=WindowRows)


def join_rows(pieces: Sequence[Rows]) -> Rows:
    """The rows of one or more pieces as one."""
    joined = {key: np.concatenate([vars(piece)[key] for piece in pieces]) for key in vars(pieces[0])}
    return type(pieces[0])(**joined)


# ---------------------------------------------------------------------------------------------------------
# Headers


class TableOrigin(StrictModel):
    """What decides the rows: a model, and the windows.

    Attributes:
        checkpoint: path of the model's file.
        checkpoint_sha256: SHA-256 of that file.
        gate: whether windows of bad quality were left out; of a window store what was built is taken.
        data: the window store with the fingerprints of its splits, or the source with its version.
    """

    checkpoint: str
    checkpoint_sha256: str
    gate: bool
    data: dict[str, Any]


class VectorsOrigin(TableOrigin):
    """What decides the vectors: also `readout`, the name of the read-out."""

    readout: str


class TableHeader(JsonFile):
    """What a window table says of its rows."""

    spread: ClassVar[dict[str, str]] = {"quality": "channels"}
    """Arrays (B, K) that Parquet holds as K columns `<array>_<name>`, and the key that has the K names."""
    command: ClassVar[str]
    """The command that writes such tables, for messages."""

    biofound_version: str
    origin: TableOrigin
    channels: tuple[str, ...]
    sfreq: float
    window_samples: int


class VectorsHeader(TableHeader):
    """What a vector file says of its rows: `present_channels` are those of `channels` that there were."""

    command: ClassVar[str] = "embed"

    kind: Literal["biofound-vectors"] = "biofound-vectors"
    format_version: Literal[2] = 2
    origin: VectorsOrigin
    present_channels: tuple[str, ...]


class PredictionsHeader(TableHeader):
    """What a file of predictions says of its rows: `target` is what is predicted, `classes` are its words.

    `classes` is empty for numbers, which are in the unit of the labels.
    """

    spread: ClassVar[dict[str, str]] = {**TableHeader.spread, "probability": "classes"}
    command: ClassVar[str] = "predict"

    kind: Literal["biofound-predictions"] = "biofound-predictions"
    format_version: Literal[1] = 1
    target: str
    classes: tuple[str, ...]


Header = TypeVar("Header", bound=TableHeader)


# ---------------------------------------------------------------------------------------------------------
# Writing


def write_table(path: Path, pieces: Iterable[WindowRows], header: TableHeader) -> None:
    """Write `path` whole or not at all: Parquet, or npz where its name ends in .npz.

    Args:
        path: the file.
        pieces: the rows, some at a time; each piece becomes a row group.
        header: what the file says of them.

    Raises:
        DataError: when there is no row.
        OSError: when the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporary_files(path.parent, name=path.name)
    if path.suffix == ".parquet":
        write_atomically(path, lambda file: _write_parquet(file, pieces, header))
        return
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        _write_parquet(spool, pieces, header)
        write_atomically(path, lambda file: write_npz(file, _arrays_of(pq.ParquetFile(spool), header)))


def _write_parquet(file: IO[bytes], pieces: Iterable[WindowRows], header: TableHeader) -> None:
    with ExitStack() as stack:
        writer = None
        for piece in pieces:
            table = _table(piece, header)
            if writer is None:
                # Floats hardly repeat, so a dictionary of them is no use.
                text = [field.name for field in table.schema if pa.types.is_string(field.type)]
                writer = pq.ParquetWriter(file, table.schema, compression="zstd", use_dictionary=text)
                stack.enter_context(writer)
            writer.write_table(table)
    if writer is None:
        raise DataError("there is no window, so no row to write")


def _table(piece: WindowRows, header: TableHeader) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    info = {key: getattr(piece, key) for key in ("case_id", "subject_id", "start_s", "quality")}
    for name, array in {**info, **piece.columns()}.items():
        if name in header.spread:
            for column, values in zip(_spread_columns(name, header), array.T, strict=True):
                columns[column] = pa.array(np.ascontiguousarray(values))
        elif array.ndim == 2:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
        elif array.dtype.kind == "U":
            columns[name] = pa.array([printable_name(word) for word in array.tolist()], pa.string())
        else:
            columns[name] = pa.array(array)
    return pa.table(columns, metadata={HEADER_KEY: header.model_dump_json()})


def _spread_columns(name: str, header: TableHeader) -> list[str]:
    return [f"{name}_{label}" for label in getattr(header, header.spread[name])]


def _arrays_of(table: pq.ParquetFile, header: TableHeader) -> dict[str, NDArray[Any] | ArrayPieces]:
    """The columns as the arrays of an npz, read one row group after the other."""
    rows, schema = table.metadata.num_rows, table.schema_arrow
    array_of = {column: name for name in header.spread for column in _spread_columns(name, header)}
    columns: dict[str, list[str]] = {}
    for column in schema.names:
        columns.setdefault(array_of.get(column, column), []).append(column)

    def groups(names: list[str]) -> Iterator[pa.Table]:
        return (table.read_row_group(k, columns=names) for k in range(table.num_row_groups))

    def array(name: str, names: list[str]) -> ArrayPieces:
        type_ = schema.field(names[0]).type
        shape: tuple[int, ...] = (rows,)
        pieces: Iterator[NDArray[Any]]
        if name in header.spread:
            shape, dtype = (rows, len(names)), np.dtype(type_.to_pandas_dtype())
            pieces = (np.stack([group[c].to_numpy() for c in names], axis=1) for group in groups(names))
        elif pa.types.is_fixed_size_list(type_):
            shape, dtype = (rows, type_.list_size), np.dtype(type_.value_type.to_pandas_dtype())
            pieces = (group[name].combine_chunks().flatten().to_numpy() for group in groups(names))
        elif pa.types.is_string(type_):
            longest = max(len(word) for group in groups(names) for word in group[name].to_pylist())
            dtype = np.dtype(f"U{max(longest, 1)}")
            pieces = (np.array(group[name].to_pylist(), dtype) for group in groups(names))
        else:
            dtype = np.dtype(type_.to_pandas_dtype())
            pieces = (group[name].to_numpy() for group in groups(names))
        return ArrayPieces(dtype=dtype, shape=shape, pieces=pieces)

    keys = {header.spread[name] for name in columns if name in header.spread}
    return {
        **{name: array(name, names) for name, names in columns.items()},
        **{key: np.array(getattr(header, key)) for key in sorted(keys)},
        HEADER_KEY: np.array([header.model_dump_json()]),
    }


# ---------------------------------------------------------------------------------------------------------
# Reading


def read_header(path: Path, kind: type[Header]) -> Header:
    """What a window table says of its rows.

    Raises:
        DataError: when it is no table of this kind, or damaged.
    """
    try:
        if path.suffix == ".parquet":
            said = (pq.read_schema(path).metadata or {})[HEADER_KEY.encode()]
        else:
            said = map_members(path, find_members(path, [HEADER_KEY]))[HEADER_KEY].item()
        return kind.model_validate_json(said)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:  # pydantic's are ValueErrors
        raise DataError(f"{path}: no file that `biofound {kind.command}` wrote") from error


def refuse_other_table(path: Path, kind: type[TableHeader], origin: TableOrigin) -> None:
    """Refuse to replace a file that does not hold an earlier table of the same kind and origin.

    Raises:
        DataError: when `path` holds something else.
    """
    if not path.exists():
        return
    try:
        before = read_header(path, kind).origin
        names = set(type(origin).model_fields) - {"checkpoint"}  # the same file may have moved
        differing = sorted(name for name in names if getattr(before, name) != getattr(origin, name))
    except DataError:
        differing = [f"no result of `biofound {kind.command}`"]
    if differing:
        raise DataError(
            f"{path}: is there, and not what this command wrote ({', '.join(differing)}); choose another "
            "file with --output, or replace it with --overwrite"
        )
