"""Whole files that hold something odd: what damage of bytes would hardly ever come to."""

import contextlib
import io
from random import Random
from typing import Any

import numpy as np


def change_a_value(content: bytes, random: Random) -> bytes:
    """Replace or drop one value of a checkpoint, wherever it stands, and make the digests fit again."""
    import torch

    from biofound.core.archive import with_digests

    odd: list[object] = [
        None,
        -1,
        0,
        10**30,
        float("nan"),
        float("inf"),
        "x",
        "",
        [],
        {},
        True,
        ["PPG", "PPG"],
    ]
    whole = torch.load(io.BytesIO(content), weights_only=True)
    inner: Any = whole
    while True:
        key = random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if not isinstance(inner[key], (dict, list)) or not inner[key] or random.random() < 0.15:
            break
        inner = inner[key]
    old = inner[key]
    if isinstance(old, torch.Tensor):
        odd += [old.double(), old.flatten()[:0], old.flatten(), old.to_sparse(), old.bool()]
        odd += [old * float("nan")]
        odd += [torch.zeros(1).expand(10**6, 10**6), old.tolist()] * 2
    if isinstance(inner, dict) and random.random() < 0.2:
        del inner[key]
    else:
        inner[key] = random.choice(odd)
    with contextlib.suppress(
        RuntimeError, MemoryError
    ):  # a tensor that is sparse, or a number repeated without end
        whole = with_digests(whole)
    out = io.BytesIO()
    torch.save(whole, out)
    return out.getvalue()


def write_odd_parquet(content: bytes, random: Random) -> bytes:
    """Write the table with a column of another type, odd metadata, or columns and rows without end."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(content))
    name = random.choice(table.column_names)
    place, rows = table.column_names.index(name), table.num_rows
    what = random.choice((0, 0, 0, 0, 1, 1, 2, 2, 3, 4))
    if what == 0:
        odd = random.choice(_odd_columns(rows))
        table = table.set_column(place, name, odd)
    elif what == 1:
        odd_text = random.choice((b"[" * 200_000, b'{"a":' * 200_000, b"", b"{}", b"\xff", b"9" * 100_000))
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"biofound": odd_text})
    elif what == 2:
        names = [random.choice(("", "time", "x", name, "\0", "[", "PPG [V]", "x" * 10**6)) for _ in range(9)]
        for each in names:
            table = table.append_column(each, table.column(place))
    elif what == 3:
        one = table.column(place)
        table = pa.table({**{f"c{k}": one for k in range(random.choice((10, 2000)))}, name: one})
    else:
        return _parquet_bomb(random)
    out = io.BytesIO()
    parquet.write_table(table, out, compression=random.choice(("none", "snappy", "zstd", "gzip")))
    return out.getvalue()


def _odd_columns(rows: int) -> list[Any]:
    import pyarrow as pa

    whole = pa.array(range(rows), pa.int64())
    deep = whole
    for _ in range(90):
        deep = pa.StructArray.from_arrays([deep], ["a"])
    columns = [
        pa.nulls(rows),
        pa.nulls(rows, pa.float32()),
        pa.array([None, 1] * rows, pa.int64()),
        pa.array([2**62] * rows),
        pa.array([float("nan"), 1e308] * rows),
        pa.array([True, False] * rows),
        pa.array(["x", ""] * rows),
        pa.array(["2026-01-01", "9999-12-31T23:59:59"] * rows),
        pa.array(["2026-01-01T00:00:00+01:00", "12:00"] * rows),
        pa.array([b"\xff"] * rows),
        pa.array(["x" * 10**5] * rows).dictionary_encode(),
        pa.array([[1.0]] * rows),
        pa.array([[1.0] * 3] * rows, pa.list_(pa.float32(), 3)),
        pa.array([{"a": 1}] * rows),
        pa.array([1] * rows, pa.decimal128(38, 10)),
        pa.array([2**40] * rows, pa.timestamp("s")),
        pa.array([2**62] * rows, pa.timestamp("ns", tz="Europe/Berlin")),
        pa.array([0] * rows, pa.timestamp("us", tz="UTC")),
        pa.array([1] * rows, pa.date32()),
        pa.array([1] * rows, pa.time64("ns")),
        pa.array([1] * rows, pa.duration("s")),
        pa.array([np.float16(1)] * rows, pa.float16()),
        deep,
    ]
    return [column[:rows] for column in columns]


def _parquet_bomb(random: Random) -> bytes:
    """A table with 300 million rows, or 5,000 equal texts of a megabyte: kilobytes on disk."""
    import pyarrow as pa
    from pyarrow import parquet

    if random.random() < 0.5:
        texts, index = pa.array(["x" * 10**6]), pa.array(np.zeros(5_000, np.int32))
        pieces, piece = 1, pa.table({"time": pa.DictionaryArray.from_arrays(index, texts)})
    else:
        rows = 10**7
        pieces, piece = (
            30,
            pa.table({"time": pa.nulls(rows, pa.float32()), "PPG": pa.nulls(rows, pa.float32())}),
        )
    out = io.BytesIO()
    with parquet.ParquetWriter(out, piece.schema, compression="zstd") as writer:
        for _ in range(pieces):
            writer.write_table(piece)
    return out.getvalue()


_EDF_MAIN = (8, 80, 80, 8, 8, 8, 44, 8, 8, 4)
_EDF_SIGNAL = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)


def change_an_edf_field(content: bytes, random: Random) -> bytes:
    """Set a field of the header, of the file or of a signal, to something odd of the same width."""
    signals = int(content[252:256])
    fields, at = [], 0
    for width in (*_EDF_MAIN, *(width for width in _EDF_SIGNAL for _ in range(signals))):
        fields.append((at, width))
        at += width
    at, width = random.choice(fields)
    own = content[at : at + width].strip()
    odd = random.choice(
        (
            *(
                b"",
                b"0",
                b"-1",
                b"1",
                b"2",
                b"1e9",
                b"1e-9",
                b"99999999",
                b"inf",
                b"nan",
                b"x",
                b"1_0",
                b"1,5",
            ),
            *(b"\xff" * 8, b"\0" * 8, b"EDF+D", b"BDF+D", b"-32768", b"32767", b"ECG II", b"EDF Annotations"),
            *(own + b"0", own[::-1], own[:-1]),
        )
    )
    return content[:at] + odd[:width].ljust(width) + content[at + width :]
