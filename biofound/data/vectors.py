"""Vector files: a row a window, with its recording, start, quality and vector; Parquet or npz.

Rows are written as they come, so memory does not grow with their number. An npz says how many rows follow
before the first: it is made from a temporary Parquet file.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

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


@dataclass(frozen=True, kw_only=True)
class WindowVectors(WindowInfo):
    """Vectors of B windows beside case, subject, start and quality: `vectors` is (B, F) float32."""

    vectors: NDArray[np.float32]


class VectorsOrigin(StrictModel):
    """What decides the vectors: a checkpoint, a read-out, and the windows.

    Attributes:
        checkpoint: path of the checkpoint.
        checkpoint_sha256: SHA-256 of that file.
        readout: name of the read-out.
        gate: whether windows of bad quality were left out; of a window store what was built is taken.
        data: the window store with the fingerprints of its splits, or the source with its version.
    """

    checkpoint: str
    checkpoint_sha256: str
    readout: str
    gate: bool
    data: dict[str, Any]


class VectorsHeader(JsonFile):
    """What a vector file says of its rows.

    `channels` are the encoder's, `present_channels` those of them that it was given.
    """

    kind: Literal["biofound-vectors"] = "biofound-vectors"
    format_version: Literal[2] = 2
    biofound_version: str
    origin: VectorsOrigin
    channels: tuple[str, ...]
    present_channels: tuple[str, ...]
    sfreq: float
    window_samples: int


def write_vectors(path: Path, pieces: Iterable[WindowVectors], header: VectorsHeader) -> None:
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


def _write_parquet(file: IO[bytes], pieces: Iterable[WindowVectors], header: VectorsHeader) -> None:
    with ExitStack() as stack:
        writer = None
        for piece in pieces:
            if writer is None:
                schema = _schema(header, width=piece.vectors.shape[1])
                text = ["case_id", "subject_id"]  # floats hardly repeat, so a dictionary of them is no use
                writer = pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=text)
                stack.enter_context(writer)
            writer.write_table(_table(piece, schema))
    if writer is None:
        raise DataError("there is no window, so no vector")


def _schema(header: VectorsHeader, *, width: int) -> pa.Schema:
    fields = [
        *(("case_id", pa.string()), ("subject_id", pa.string()), ("start_s", pa.float64())),
        *((name, pa.float32()) for name in _quality_columns(header)),
        ("vector", pa.list_(pa.float32(), width)),
    ]
    return pa.schema(fields, metadata={HEADER_KEY: header.model_dump_json()})


def _table(piece: WindowVectors, schema: pa.Schema) -> pa.Table:
    columns = [
        pa.array([printable_name(name) for name in piece.case_id.tolist()]),
        pa.array([printable_name(name) for name in piece.subject_id.tolist()]),
        pa.array(piece.start_s),
        *(pa.array(np.ascontiguousarray(column)) for column in piece.quality.T),
        pa.FixedSizeListArray.from_arrays(pa.array(piece.vectors.reshape(-1)), piece.vectors.shape[1]),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _quality_columns(header: VectorsHeader) -> list[str]:
    return [f"quality_{name}" for name in header.channels]


def _arrays_of(table: pq.ParquetFile, header: VectorsHeader) -> dict[str, NDArray[Any] | ArrayPieces]:
    """The columns as the arrays of an npz, read one row group after the other."""
    rows, quality = table.metadata.num_rows, _quality_columns(header)
    width = table.schema_arrow.field("vector").type.list_size
    float32 = np.dtype(np.float32)

    def groups(*names: str) -> Iterator[pa.Table]:
        return (table.read_row_group(k, columns=list(names)) for k in range(table.num_row_groups))

    def text(name: str) -> ArrayPieces:
        longest = max(len(word) for group in groups(name) for word in group[name].to_pylist())
        dtype = np.dtype(f"U{max(longest, 1)}")
        pieces = (np.array(group[name].to_pylist(), dtype) for group in groups(name))
        return ArrayPieces(dtype=dtype, shape=(rows,), pieces=pieces)

    return {
        "case_id": text("case_id"),
        "subject_id": text("subject_id"),
        "start_s": ArrayPieces(
            dtype=np.dtype(np.float64),
            shape=(rows,),
            pieces=(group["start_s"].to_numpy() for group in groups("start_s")),
        ),
        "quality": ArrayPieces(
            dtype=float32,
            shape=(rows, len(quality)),
            pieces=(np.stack([group[c].to_numpy() for c in quality], axis=1) for group in groups(*quality)),
        ),
        "vector": ArrayPieces(
            dtype=float32,
            shape=(rows, width),
            pieces=(group["vector"].combine_chunks().flatten().to_numpy() for group in groups("vector")),
        ),
        "channels": np.array(header.channels),
        HEADER_KEY: np.array([header.model_dump_json()]),
    }


def read_vectors_header(path: Path) -> VectorsHeader:
    """What a vector file says of its rows.

    Raises:
        DataError: when it is no vector file, or damaged.
    """
    try:
        if path.suffix == ".parquet":
            said = (pq.read_schema(path).metadata or {})[HEADER_KEY.encode()]
        else:
            said = map_members(path, find_members(path, [HEADER_KEY]))[HEADER_KEY].item()
        return VectorsHeader.model_validate_json(said)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:  # pydantic's are ValueErrors
        raise DataError(f"{path}: no vector file that `biofound embed` wrote") from error


def refuse_other_vectors(path: Path, origin: VectorsOrigin) -> None:
    """Refuse to replace a file that does not hold earlier vectors of the same origin.

    Raises:
        DataError: when `path` holds something else.
    """
    if not path.exists():
        return
    try:
        before = read_vectors_header(path).origin
        names = set(VectorsOrigin.model_fields) - {"checkpoint"}  # the same file may have moved
        differing = sorted(name for name in names if getattr(before, name) != getattr(origin, name))
    except DataError:
        differing = ["no vectors of `biofound embed`"]
    if differing:
        raise DataError(
            f"{path}: is there, and not what this command wrote ({', '.join(differing)}); choose another "
            "file with --output, or replace it with --overwrite"
        )
