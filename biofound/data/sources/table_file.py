"""Read columns of one CSV, TSV, Parquet or npz file as numbers, times and text.

CSV and Parquet are read a block at a time: memory holds the columns asked for, not the file.
"""

import csv
import math
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biofound.data.npz import is_bomb, read_arrays
from biofound.data.sources.packets import MOST_SAMPLES
from biofound.errors import DataError, damage_error_context

SUFFIXES = (".csv", ".tsv", ".parquet", ".npz")
"""Names of files that are tables end in one of these."""

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Length in seconds of the units of times."""

MISSING = ("", "NaN", "nan", "NAN", "NA", "N/A", "null", "NULL", "None")
"""Cells of a CSV that stand for no value."""

_DELIMITERS = (",", ";", "\t")
_HEAD_ROWS = 200
_LONGEST_HEADER = 1 << 20
_BLOCK_BYTES = 1 << 22
_LONGEST_TYPE = 100
_LONGEST_STAMP = 100
_NO_PARQUET = "not a readable Parquet file, or cut short"
_DAMAGED_PARQUET = "it is damaged or cut short"
_UNIT = re.compile(r"(.*\S)\s*\[([^\[\]]*)\]")
_ZONE = re.compile(r"\d(Z|[+-]\d\d(:?\d\d)?)$")


class Table(ABC):
    """A file with named columns of which some are signals. A name may end in its unit: `ECG [mV]`.

    Attributes:
        path: the file.
        what: how messages begin.
        names: the columns, as the file names them.
        rates: rate in Hz by column, where the file says it.
        lengths: number of samples by column; empty where only reading tells.
    """

    names: tuple[str, ...]
    rates: Mapping[str, float]
    lengths: Mapping[str, int]

    def __init__(self, path: Path, *, what: str) -> None:
        self.path, self.what = path, what
        self.rates, self.lengths = {}, {}

    @abstractmethod
    def is_numeric(self, name: str) -> bool:
        """Whether a column holds numbers, by its type or its first rows."""

    @abstractmethod
    def has_time_stamps(self, name: str) -> bool:
        """Whether a column of times holds time stamps rather than numbers."""

    @abstractmethod
    def read(
        self, columns: Sequence[str], *, time: str | None = None, rows: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """Columns as (N,) float32, NaN where there is no finite number; `time` as float64.

        Args:
            columns: names, `time` included.
            time: the column of times: numbers as they are, time stamps in seconds since 1970 in UTC.
            rows: read no more than so many of the first rows.

        Raises:
            DataError: a cell is no number or time, or the file is damaged.
        """

    @abstractmethod
    def texts(self, column: str) -> set[str]:
        """The different values of a column, as text; "" where there is none."""

    def track(self, name: str) -> str:
        """The name of a column without its unit."""
        match = _UNIT.fullmatch(name)
        return match[1] if match else name

    def unit(self, name: str) -> str | None:
        """The unit in the name of a column; None where there is none."""
        match = _UNIT.fullmatch(name)
        return match[2].strip() if match else None

    def unit_of_track(self, track: str) -> str | None:
        """The unit of the column of that name without unit."""
        return next(self.unit(name) for name in self.names if self.track(name) == track)

    def only_text(self, column: str) -> str:
        """The one value of a column.

        Raises:
            DataError: it has none, or several.
        """
        values = sorted(self.texts(column) - {""})
        if len(values) != 1:
            got = f"{len(values)}: {', '.join(values[:3])}" if values else "none"
            raise DataError(
                f"{self.what}: {self.path}, column {column}: expected one subject in all rows, got {got}"
            )
        return values[0]

    def error(self, text: str) -> DataError:
        """An error of this file."""
        return DataError(f"{self.what}: {self.path}: {text}")

    def damage_refused(self, text: str) -> AbstractContextManager[None]:
        """Turn whatever a reader trips over inside into an error of this file; see `damage_error_context`."""
        return damage_error_context(f"{self.what}: {self.path}: {text}")


def open_table(path: Path, *, what: str) -> Table:
    """Open a table by its suffix, and read the names of its columns.

    Raises:
        DataError: the names are missing or not unique, or the file is no such file.
    """
    kinds: dict[str, Callable[..., Table]] = {".parquet": _Parquet, ".npz": _Npz}
    table = kinds.get(path.suffix, _Csv)(path, what=what)
    tracks = [table.track(name) for name in table.names]
    if repeated := sorted({track for track in tracks if tracks.count(track) > 1}):
        raise table.error(f"expected columns of different names, got {', '.join(repeated)} more than once")
    return table


# ---------------------------------------------------------------- CSV and Parquet, by way of Arrow


class _ArrowTable(Table):
    """What CSV and Parquet have in common: batches of Arrow arrays."""

    @abstractmethod
    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """The columns, a batch of rows at a time."""

    def read(
        self, columns: Sequence[str], *, time: str | None = None, rows: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """See `Table.read`."""
        pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
        count = 0
        for batch in self.batches(columns):
            for name in columns:
                column = batch.column(name)
                pieces[name].append(self._times(column) if name == time else _float32(column))
            count += len(batch)
            if count > MOST_SAMPLES:
                raise self.error(f"more than {MOST_SAMPLES:,} rows; split it into several files")
            if rows is not None and count >= rows:
                break
        kinds = {name: np.float64 if name == time else np.float32 for name in columns}
        return {
            name: np.concatenate(arrays)[:rows] if arrays else np.empty(0, kinds[name])
            for name, arrays in pieces.items()
        }

    def texts(self, column: str) -> set[str]:
        """See `Table.texts`."""
        found: set[str] = set()
        for batch in self.batches([column]):
            values = batch.column(column).unique().to_pylist()
            found |= {"" if value is None else str(value).strip() for value in values}
        return found

    def _times(self, column: Any) -> NDArray[np.float64]:
        """A batch of the column of times."""
        if pa.types.is_dictionary(column.type):
            self._refuse_long_texts(column)
            column = column.dictionary_decode()
        if _is_text(column.type):
            column = column.cast(pa.timestamp("ns", tz="UTC" if _have_zones(column) else None))
        if pa.types.is_timestamp(column.type):
            return _float64(column.cast(pa.int64())) * SECONDS[column.type.unit]
        return _float64(column)

    def _refuse_long_texts(self, column: Any) -> None:
        """Refuse texts that are no time stamps before they are unfolded from their dictionary."""
        longest = max((len(text) for text in column.dictionary.to_pylist() if text is not None), default=0)
        if longest > _LONGEST_STAMP:
            raise self.error(f"expected time stamps, got text of {longest:,} characters")


def _have_zones(column: Any) -> bool:
    """Whether time stamps, as text, name their zone; by the first."""
    first = next((str(value) for value in column.to_pylist() if value is not None), "")
    return _ZONE.search(first.strip()) is not None


def _float64(column: Any) -> NDArray[np.float64]:
    """An Arrow array of numbers, NaN where it is null."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def _float32(column: Any) -> NDArray[np.float32]:
    """An Arrow array of numbers, NaN where it is null or not finite as float32."""
    with np.errstate(over="ignore"):
        values = _float64(column).astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    return values


class _Csv(_ArrowTable):
    """A CSV with names in its first line; separator and decimal mark follow from the first rows."""

    def __init__(self, path: Path, *, what: str) -> None:
        super().__init__(path, what=what)
        lines = self._first_lines()
        with self.damage_refused("it is no table"):
            self._delimiter = max(
                _DELIMITERS, key=lambda mark: len(next(csv.reader(lines[:1], delimiter=mark)))
            )
            header, *self._head = csv.reader(lines, delimiter=self._delimiter)
        self.names = tuple(name.strip() or f"column {i}" for i, name in enumerate(header, start=1))
        if not self._head:
            raise self.error("it has no row below its header")
        if sum(_is_number(name) for name in self.names) > len(self.names) / 2:
            raise self.error(
                f"line 1: expected names of columns, got {', '.join(self.names[:3])}: without a header, or "
                "with channels in rows; write one column a channel, below its name"
            )
        cells = (cell for row in self._head for cell in row)
        comma = self._delimiter != "," and any(re.fullmatch(r"\s*[+-]?\d+,\d+\s*", cell) for cell in cells)
        self._decimal = "," if comma else "."

    def _first_lines(self) -> list[str]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                first = file.readline(_LONGEST_HEADER)
                lines = [first, *(line for line in islice(file, _HEAD_ROWS) if line.strip())]
        except UnicodeDecodeError as error:
            raise self.error(
                f"expected text in UTF-8, got other bytes ({error}); save it as UTF-8"
            ) from error
        if not first.strip() or "\0" in first or len(first) == _LONGEST_HEADER:
            raise self.error("line 1: expected names of columns, got none")
        return lines

    def is_numeric(self, name: str) -> bool:
        """See `Table.is_numeric`."""
        cells = self._head_cells(name)
        return not cells or any(_is_number(cell, self._decimal) for cell in cells)

    def has_time_stamps(self, name: str) -> bool:
        """See `Table.has_time_stamps`."""
        cells = self._head_cells(name)
        return bool(cells) and not _is_number(cells[0], self._decimal)

    def _head_cells(self, name: str) -> list[str]:
        """The values of a column in the first rows."""
        place = self.names.index(name)
        cells = [row[place].strip() for row in self._head if place < len(row)]
        return [cell for cell in cells if cell not in MISSING]

    def read(
        self, columns: Sequence[str], *, time: str | None = None, rows: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """See `Table.read`."""
        stamps = time if time is not None and self.has_time_stamps(time) else None
        try:
            return super().read(columns, time=time, rows=rows)
        except (pa.ArrowException, ValueError) as error:
            raise self.error(self._find_problem(columns, stamps) or str(error)) from error

    def texts(self, column: str) -> set[str]:
        """See `Table.texts`."""
        try:
            return super().texts(column)
        except pa.ArrowException as error:
            raise self.error(self._find_problem((), None) or str(error)) from error

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """See `_ArrowTable.batches`; columns of text come as text."""
        from pyarrow import csv as arrow_csv

        kinds = {
            name: pa.float64() if self.is_numeric(name) and not self.has_time_stamps(name) else pa.string()
            for name in columns
        }
        with arrow_csv.open_csv(
            str(self.path),
            read_options=arrow_csv.ReadOptions(
                column_names=self.names, skip_rows=1, use_threads=False, block_size=_BLOCK_BYTES
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=self._delimiter,
                # In a table of one column an empty line is an empty cell.
                ignore_empty_lines=len(self.names) > 1,
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(columns),
                column_types=kinds,
                null_values=list(MISSING),
                strings_can_be_null=True,
                decimal_point=self._decimal,
            ),
        ) as reader:
            yield from reader

    def _find_problem(self, columns: Sequence[str], stamps: str | None) -> str | None:
        """The first line that is no row of the table, or cell that is no number or time; in words."""
        with (
            self.path.open(encoding="utf-8-sig", newline="", errors="replace") as file,
            self.damage_refused("it is no table"),
        ):
            rows = csv.reader(file, delimiter=self._delimiter)
            next(rows)
            for row in rows:
                if not row:
                    continue
                if len(row) != len(self.names):
                    return f"line {rows.line_num}: expected {len(self.names)} cells, got {len(row)}"
                for name in columns:
                    cell = row[self.names.index(name)].strip()
                    fits = _is_time(cell) if name == stamps else _is_number(cell, self._decimal)
                    if cell not in MISSING and not fits:
                        kind = "a time stamp like the first" if name == stamps else "a number"
                        return f"line {rows.line_num}, column {name}: expected {kind}, got {cell!r}"
        return None


def _is_number(cell: str, decimal: str = ".") -> bool:
    try:
        float(cell.replace(decimal, "."))
    except ValueError:
        return False
    return "_" not in cell and not (decimal == "," and "." in cell)


def _is_time(cell: str) -> bool:
    try:
        datetime.fromisoformat(cell)
    except ValueError:
        return False
    return True


class _Parquet(_ArrowTable):
    def __init__(self, path: Path, *, what: str) -> None:
        super().__init__(path, what=what)
        with self._opened() as file, self.damage_refused(_NO_PARQUET):
            self._types = {field.name: field.type for field in file.schema_arrow}
            self.names = tuple(file.schema_arrow.names)
            rows = file.metadata.num_rows
        if not 0 <= rows <= MOST_SAMPLES:
            raise self.error(f"{rows:,} rows, more than {MOST_SAMPLES:,}; split it into several files")
        self.lengths = dict.fromkeys(self.names, rows)

    def _opened(self, *, texts: Sequence[str] = ()) -> Any:
        """The file; columns of `texts` come as a dictionary, so that equal ones take no memory."""
        from pyarrow import parquet

        self.path.open("rb").close()  # the system's own words where it may not be read
        with self.damage_refused(_NO_PARQUET):
            return parquet.ParquetFile(self.path, read_dictionary=texts)

    def is_numeric(self, name: str) -> bool:
        """See `Table.is_numeric`."""
        kind, types = self._types[name], pa.types
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))

    def has_time_stamps(self, name: str) -> bool:
        """See `Table.has_time_stamps`."""
        return not self.is_numeric(name)

    def read(
        self, columns: Sequence[str], *, time: str | None = None, rows: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """See `Table.read`."""
        for name in columns:
            kind = self._types[name]
            if not (
                self.is_numeric(name) or (name == time and (_is_text(kind) or pa.types.is_timestamp(kind)))
            ):
                expected = "numbers or time stamps" if name == time else "numbers"
                got = textwrap.shorten(str(kind), _LONGEST_TYPE)
                raise self.error(f"column {name}: expected {expected}, got {got}")
        with self.damage_refused(_DAMAGED_PARQUET):
            return super().read(columns, time=time, rows=rows)

    def texts(self, column: str) -> set[str]:
        """See `Table.texts`."""
        with self.damage_refused(_DAMAGED_PARQUET):
            return super().texts(column)

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """See `_ArrowTable.batches`."""
        with self._opened(texts=[name for name in columns if _is_text(self._types[name])]) as file:
            self._refuse_bomb(file.metadata, columns)
            yield from file.iter_batches(columns=list(columns))

    def _refuse_bomb(self, metadata: Any, columns: Sequence[str]) -> None:
        """Refuse columns that unpack to more than recordings do."""
        chunks = [
            chunk
            for group in map(metadata.row_group, range(metadata.num_row_groups))
            for chunk in map(group.column, range(group.num_columns))
            if chunk.path_in_schema.partition(".")[0] in columns
        ]
        packed = sum(chunk.total_compressed_size for chunk in chunks)
        unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
        if is_bomb(packed, unpacked):
            raise self.error(f"it unpacks from {packed:,} to {unpacked:,} bytes, more than recordings do")


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


# ---------------------------------------------------------------- npz


class _Npz(Table):
    """An npz with one array (T,) a channel; `sfreq` and `sfreq_NAME` are rates in Hz."""

    def __init__(self, path: Path, *, what: str) -> None:
        super().__init__(path, what=what)
        try:
            self._arrays = self._load()
        except DataError as error:
            raise DataError(f"{what}: {error}") from error
        self.names = tuple(name for name in self._arrays if not _is_rate(name))
        self.lengths = {name: len(array) for name, array in self._arrays.items() if array.ndim == 1}
        self.rates = {name: rate for name in self.names if (rate := self._rate_of(name)) is not None}

    def _load(self) -> dict[str, NDArray[Any]]:
        arrays = read_arrays(self.path)
        for name, array in arrays.items():
            if array.ndim > 1:
                raise DataError(
                    f"{self.path}: array {name}: expected one array (samples,) a channel, got the shape "
                    f"{array.shape}; write np.savez(path, PPG=x[0], ECG=x[1], sfreq=125.0)"
                )
        return arrays

    def is_numeric(self, name: str) -> bool:
        """See `Table.is_numeric`."""
        return self._arrays[name].ndim == 1 and self._arrays[name].dtype.kind in "fiu"

    def has_time_stamps(self, name: str) -> bool:
        """See `Table.has_time_stamps`."""
        return self._arrays[name].dtype.kind == "M"

    def _rate_of(self, name: str) -> float | None:
        key = next((key for key in (f"sfreq_{self.track(name)}", "sfreq") if key in self._arrays), None)
        if key is None:
            return None
        value = self._arrays[key]
        if value.size != 1 or value.dtype.kind not in "fiu" or not 0 < value.item() < math.inf:
            raise self.error(f"{key}: expected one number of Hz above 0, got {value}")
        return float(value.item())

    def read(
        self, columns: Sequence[str], *, time: str | None = None, rows: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """See `Table.read`."""
        read = {}
        for name in columns:
            array = self._arrays[name]
            if array.ndim != 1 or array.dtype.kind not in ("fiuM" if name == time else "fiu"):
                raise self.error(
                    f"array {name}: expected numbers (samples,), got {array.dtype} {array.shape}"
                )
            if time is not None and len(array) != len(self._arrays[time]):
                raise self.error(
                    f"array {name}: expected {len(self._arrays[time])} samples, one for each of {time}, got "
                    f"{len(array)}"
                )
            if len(array) > MOST_SAMPLES:
                raise self.error(f"array {name}: more than {MOST_SAMPLES:,} samples; split it")
            if name != time:
                read[name] = _float32(pa.array(array[:rows]))
            elif array.dtype.kind == "M":
                missing = np.isnat(array[:rows])
                read[name] = np.where(
                    missing, np.nan, array[:rows].astype("datetime64[ns]").astype(np.int64) * 1e-9
                )
            else:
                read[name] = array[:rows].astype(np.float64)
        return read

    def texts(self, column: str) -> set[str]:
        """See `Table.texts`."""
        return {str(value).strip() for value in np.unique(self._arrays[column])}


def _is_rate(name: str) -> bool:
    return name == "sfreq" or name.startswith("sfreq_")
