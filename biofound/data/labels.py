"""Labels of windows: from a CSV, WFDB numerics or annotations, BUT PPG's tables, or synthetic truth.

Whatever they come from, labels are rows of one case with a start, an end and a value. A window takes the
mean (numbers) or the majority (words) of the rows that overlap it, each weighted by the seconds of overlap.
"""

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.sources.butppg import ButppgSource, table_of
from biofound.data.sources.heart_truth import Truth
from biofound.data.sources.wfdb import WfdbSource, check_files, import_wfdb, normalised
from biofound.errors import DataError

POSITIVE_NUMERICS = frozenset({"HR", "PULSE", "RESP", "SpO2"})
"""Numerics of which a 0 is no value: a monitor writes 0 (BIDMC 13 and 19) while it measures nothing."""

LONGEST_RR_SECONDS = 5.0
"""Beats further apart are taken for a gap in the annotations, not for a rate below 12 beats a minute."""

BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")
"""The symbols of beats (https://archive.physionet.org/physiobank/annotations.shtml)."""

TRUTHS = {
    "HR": "heart_rate",
    "RESP": "breathing_rate",
    **{name: name for name in ("rhythm", "pulse_delay", "stiffness", "motion", "cadence")},
}
"""Target to the field of `Truth` that holds it: rates have the names that monitors give them."""

BUTPPG_CODES = frozenset({"quality", "motion", "ear/finger"})
"""Columns of BUT PPG whose numbers are names of classes: quality 1 good, motion 0 rest, 3 walking, ..."""

_ENDLESS_NOTE = re.compile(rb"## (?!time resolution: \d|annotation type definitions|end of definitions)")
_RATE_NOTE = b"## time resolution: "
_TOUCHING = 1e-6  # s: overlap shorter than this is rounding between neighbours
_SHOWN = 5  # names listed in one message
_CASE, _START, _END = "case_id", "start_s", "end_s"


@dataclass(frozen=True, kw_only=True)
class WindowTimes:
    """Where N windows lie: `case_id` (N,) str, `start_s` (N,) s since the case started, one length in s."""

    case_id: NDArray[np.str_]
    start_s: NDArray[np.float64]
    window_seconds: float


@dataclass(frozen=True, kw_only=True)
class WindowLabels:
    """The labels of N windows for one target, in the order of the windows.

    `values` is (N,) float64 with NaN where a window has no label, or (N,) object: a word, or None. `outside`
    says how many rows lie before the first or after the last window of their case; empty where none does.
    """

    target: str
    values: NDArray[Any]
    outside: str = ""

    @property
    def numeric(self) -> bool:
        """True for numbers (regression), False for words (classification)."""
        return self.values.dtype != object

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) True where a window has a label."""
        if self.numeric:
            return np.isfinite(self.values.astype(np.float64))
        return np.array([value is not None for value in self.values], dtype=np.bool_)

    @property
    def missing(self) -> int:
        """The number of windows without a label."""
        return int(len(self.values) - self.known.sum())


@dataclass(frozen=True, kw_only=True)
class LabelRows:
    """Labelled intervals [start_s, end_s) of one case: `values` (K,) float64, or object for words."""

    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    values: NDArray[Any]


def label_windows(
    rows: Mapping[str, LabelRows], windows: WindowTimes, *, target: str, numeric: bool
) -> WindowLabels:
    """Give each window the mean or the majority of the rows of its case that overlap it.

    Both are weighted by the seconds of overlap. Of words with equal time the one that comes first wins.

    Args:
        rows: the labelled intervals by case id.
        windows: where the N windows lie.
        target: the name of the label.
        numeric: True for numbers, False for words.
    """
    values = np.full(len(windows.case_id), np.nan if numeric else None, np.float64 if numeric else object)
    for case_id in np.unique(windows.case_id):
        if case_id in rows:
            mine = np.flatnonzero(windows.case_id == case_id)
            for index, overlap, found in _overlaps(rows[case_id], windows.start_s[mine], windows):
                place = mine[index]
                values[place] = overlap @ found / overlap.sum() if numeric else _majority(overlap, found)
    return WindowLabels(target=target, values=values)


def _overlaps(
    rows: LabelRows, start_s: NDArray[np.float64], windows: WindowTimes
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[Any]]]:
    """For each window that rows overlap: its index, the seconds of overlap (k,), and their values (k,)."""
    order = np.argsort(rows.start_s, kind="stable")
    starts, ends, values = rows.start_s[order], rows.end_s[order], rows.values[order]
    stop_s = start_s + windows.window_seconds
    # Rows may overlap one another: the largest end so far says from where on one can reach a window.
    first = np.searchsorted(np.maximum.accumulate(ends), start_s, side="right")
    last = np.searchsorted(starts, stop_s, side="left")
    for index, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        overlap = np.minimum(ends[low:high], stop_s[index]) - np.maximum(starts[low:high], start_s[index])
        touched = overlap > _TOUCHING
        if touched.any():
            yield index, overlap[touched], values[low:high][touched]


def _majority(weights: NDArray[np.float64], words: NDArray[Any]) -> str:
    seconds: dict[str, float] = {}
    for word, weight in zip(words.tolist(), weights.tolist(), strict=True):
        seconds[word] = seconds.get(word, 0.0) + weight
    return max(seconds, key=lambda word: round(seconds[word], 6))


# ---------------------------------------------------------------- CSV


def labels_from_csv(
    path: Path, target: str, *, windows: WindowTimes, words: bool | None = None
) -> WindowLabels:
    """Labels from a CSV with the columns case_id, start_s, end_s and one or more labels.

    Empty cells are no labels. A column of numbers is averaged, a column of words gives the majority.

    Args:
        path: the CSV.
        target: the column to read.
        windows: where the windows lie.
        words: True reads numbers as the names of classes (0 and 1, say); None decides by what the column
            holds.

    Raises:
        DataError: with file and line, when the CSV cannot be used, or has rows for none of the windows.
    """
    lines = _read_csv(path, target)
    if words is None:
        words = not any(_as_number(text) is not None for *_, text in lines)
    by_case: dict[str, list[tuple[float, float, Any]]] = {}
    outside = _rows_outside(path, lines, windows)
    for number, case_id, start, end, text in lines:
        value: Any = text if words else _as_number(text)
        if value is None:
            raise DataError(
                f"{path}:{number}: {target}: expected a finite number, as in other rows of this column, got "
                f"{text!r}; correct it, leave it empty, or have the whole column read as words"
            )
        by_case.setdefault(case_id, []).append((start, end, value))
    if not by_case.keys() & set(windows.case_id.tolist()):
        raise DataError(
            f"{path}: no row is of a case that the windows hold: expected case ids such as "
            f"{_some(windows.case_id.tolist())}, got {_some(by_case)}"
        )
    rows = {
        case_id: LabelRows(
            start_s=np.array([start for start, _, _ in found]),
            end_s=np.array([end for _, end, _ in found]),
            values=np.array([value for _, _, value in found], dtype=object if words else np.float64),
        )
        for case_id, found in by_case.items()
    }
    return replace(label_windows(rows, windows, target=target, numeric=not words), outside=outside)


def _rows_outside(
    path: Path, lines: Sequence[tuple[int, str, float, float, str]], windows: WindowTimes
) -> str:
    """How many rows lie outside the time of their case's windows, with the first; "" where none does."""
    spans = {}
    for case_id in np.unique(windows.case_id).tolist():
        starts = windows.start_s[windows.case_id == case_id]
        spans[case_id] = float(starts.min()), float(starts.max()) + windows.window_seconds
    known = [line for line in lines if line[1] in spans]
    outside = [line for line in known if line[3] <= spans[line[1]][0] or line[2] >= spans[line[1]][1]]
    if not outside:
        return ""
    number, case_id, start, end, _ = outside[0]
    first, last = spans[case_id]
    return (
        f"{path}: {len(outside)} of {len(known)} rows label nothing, as they lie before the first or after "
        f"the last window of their recording. The first is in line {number}: {case_id}, {start:g} to {end:g} "
        f"s, whose windows span {first:g} to {last:g} s. Seconds count from the start of the recording"
    )


def _read_csv(path: Path, target: str) -> list[tuple[int, str, float, float, str]]:
    """The rows whose cell for `target` is filled in: line number, case id, start and end in s, the cell."""
    lines = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(path, target, list(reader.fieldnames or []))
            for row in reader:
                lines.append(_parse_row(f"{path}:{reader.line_num}", reader.line_num, row, target))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"labels file {path}: cannot be read as CSV: {error}") from error
    if not any(line[-1] for line in lines):
        raise DataError(f"{path}: expected rows with {target} filled in, found none")
    return [line for line in lines if line[-1]]


def _check_columns(path: Path, target: str, columns: list[str]) -> None:
    needed = [_CASE, _START, _END]
    absent = [name for name in needed if name not in columns]
    if absent or len(set(columns)) < len(columns):
        raise DataError(
            f"{path}:1: expected the columns {', '.join(needed)} and labels, each once; got "
            f"{', '.join(columns) or 'none'}"
        )
    if target not in columns or target in needed:
        labels = [name for name in columns if name not in needed]
        raise DataError(f"{path}:1: no label {target!r}; the file has {', '.join(labels) or 'none'}")


def _parse_row(
    where: str, number: int, row: dict[Any, Any], target: str
) -> tuple[int, str, float, float, str]:
    if None in row or None in row.values():
        raise DataError(f"{where}: expected as many cells as the first line has columns")
    case_id = row[_CASE].strip()
    times = [_as_number(row[name].strip()) for name in (_START, _END)]
    if not case_id or times[0] is None or times[1] is None or times[1] <= times[0]:
        raise DataError(
            f"{where}: expected a case id and seconds with {_END} after {_START}; got "
            f"{_CASE} {row[_CASE]!r}, {_START} {row[_START]!r}, {_END} {row[_END]!r}"
        )
    return number, case_id, times[0], times[1], row[target].strip()


def _as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# ---------------------------------------------------------------- WFDB


def labels_from_numerics(source: WfdbSource, target: str, *, windows: WindowTimes) -> WindowLabels:
    """Labels from the numerics beside WFDB records (`<record>n`): BIDMC has HR, PULSE, RESP, SpO2 at 1 Hz.

    A value holds from its sample to the next. HR, PULSE, RESP and SpO2 of 0 or less are no values. Cases
    whose numerics lack the target have no labels.

    Raises:
        DataError: when a numerics record cannot be decoded, or none has the target.
    """
    seen: set[str] = set()

    def rows_of(record: Path) -> LabelRows | None:
        numerics = record.with_name(f"{record.name}n")
        if not numerics.with_name(f"{numerics.name}.hea").is_file():
            return None
        check_files(numerics)
        parsed = _decoded(numerics, "rdrecord", str(numerics))
        names = [normalised(name or "") for name in parsed.sig_name or ()]
        seen.update(names)
        if target not in names:
            return None
        values = parsed.p_signal[:, names.index(target)]
        ticks = np.arange(len(values) + 1) / float(parsed.fs) + _seconds_after(parsed, record)
        valid = np.isfinite(values) & ((values > 0) | (target not in POSITIVE_NUMERICS))
        return LabelRows(start_s=ticks[:-1][valid], end_s=ticks[1:][valid], values=values[valid])

    rows = _rows_by_case(source, windows, rows_of)
    if not rows:
        raise DataError(
            f"{source.root}: expected numerics (<record>n) with {target} beside the records of the windows; "
            f"found {', '.join(sorted(seen)) or 'no numerics'}"
        )
    return label_windows(rows, windows, target=target, numeric=True)


def labels_from_annotations(
    source: WfdbSource, target: str, *, windows: WindowTimes, annotator: str = "atr"
) -> WindowLabels:
    """Labels from the annotations beside WFDB records (`<record>.atr`): `HR` from beats, or `rhythm`.

    `HR`, in beats a minute, is the mean over the window's time of 60 / RR: the beats and parts of beats in
    it, per minute. `rhythm` is the word of the last change of rhythm ("AFIB"), by the majority of the time.
    Cases without the file, or without such annotations, have no labels.

    Raises:
        DataError: when the target is another, a file cannot be decoded, or no case has such annotations.
    """
    readers: dict[str, Callable[[Any, float, float], LabelRows | None]] = {
        "HR": _heart_rate,
        "rhythm": _rhythm,
    }
    if target not in readers:
        raise DataError(
            f"no label {target!r} from annotations; expected {' or '.join(readers)}, or give a CSV of labels"
        )

    def rows_of(record: Path) -> LabelRows | None:
        file = record.with_name(f"{record.name}.{annotator}")
        if not file.is_file():
            return None
        _refuse_endless_notes(file)
        found = _decoded(record, "rdann", str(record), annotator)
        header = _decoded(record, "rdheader", str(record))
        sfreq = float(found.fs or header.fs)
        last = found.sample[-1] / sfreq if len(found.sample) else 0.0
        return readers[target](found, sfreq, max(last, (header.sig_len or 0) / float(header.fs)))

    rows = _rows_by_case(source, windows, rows_of)
    if not rows:
        kind = "beats" if target == "HR" else "changes of rhythm"
        raise DataError(
            f"{source.root}: expected annotations of {kind} (<record>.{annotator}) beside the records of the "
            "windows, found none; give a CSV of labels, or another annotator"
        )
    return label_windows(rows, windows, target=target, numeric=target == "HR")


def _refuse_endless_notes(path: Path) -> None:
    """Refuse annotations that wfdb 4.3 never stops reading: "## ..." that is none of its definitions."""
    content = path.read_bytes()
    unknown = _ENDLESS_NOTE.search(content)
    if unknown or content.count(_RATE_NOTE) > 1:
        shown = content[unknown.start() :][:40] if unknown else _RATE_NOTE
        raise DataError(
            f"{path}: expected notes that begin with '## ' to give the time resolution, once, or to define "
            f"annotation types; got {shown!r}: the file is damaged, or the note has to be taken out"
        )


def _heart_rate(found: Any, sfreq: float, _end_s: float) -> LabelRows | None:
    """The rate between each two neighbouring beats."""
    beat = np.array([symbol in BEATS for symbol in found.symbol], dtype=np.bool_)
    times = np.unique(found.sample[beat]) / sfreq
    gaps = np.diff(times)
    kept = gaps <= LONGEST_RR_SECONDS
    if not kept.any():
        return None
    return LabelRows(start_s=times[:-1][kept], end_s=times[1:][kept], values=60.0 / gaps[kept])


def _rhythm(found: Any, sfreq: float, end_s: float) -> LabelRows | None:
    """The rhythm from each change to the next, the last one to the end of the record."""
    changes = [
        (sample / sfreq, note.strip("\0 ")[1:])
        for sample, symbol, note in zip(found.sample, found.symbol, found.aux_note, strict=True)
        if symbol == "+" and note.startswith("(")
    ]
    if not changes:
        return None
    starts = np.array([start for start, _ in changes])
    ends = np.append(starts[1:], end_s)
    return LabelRows(start_s=starts, end_s=ends, values=np.array([word for _, word in changes], dtype=object))


def _rows_by_case(
    source: WfdbSource, windows: WindowTimes, rows_of: Callable[[Path], LabelRows | None]
) -> dict[str, LabelRows]:
    """What `rows_of` finds beside the record of each case of the windows; cases without anything left out."""
    found = {case_id: rows_of(source.record_path(case_id)) for case_id in np.unique(windows.case_id).tolist()}
    return {case_id: rows for case_id, rows in found.items() if rows is not None}


def _decoded(record: Path, reader: str, *arguments: str) -> Any:
    try:
        return getattr(import_wfdb(), reader)(*arguments)
    except Exception as error:  # the decoder has no exception family of its own
        raise DataError(f"{record}: cannot be decoded ({reader}): {error}") from error


def _seconds_after(numerics: Any, record: Path) -> float:
    """How much later than the record its numerics start, in s; 0 where either does not say."""
    if numerics.base_datetime is None:
        return 0.0
    start = _decoded(record, "rdheader", str(record)).base_datetime
    return 0.0 if start is None else float((numerics.base_datetime - start).total_seconds())


# ---------------------------------------------------------------- BUT PPG


def labels_from_butppg(source: ButppgSource, target: str, *, windows: WindowTimes) -> WindowLabels:
    """Labels from the tables of BUT PPG: a row holds for its whole record.

    A column is found by its name without unit, in upper or lower case: `quality`, `HR`, `motion`, `age`.
    Codes (`BUTPPG_CODES`) are names of classes, as are columns that hold words; the others are numbers.

    Raises:
        DataError: when a table cannot be used, or none has the target.
    """
    columns = {column.split("[")[0].strip(): cells for column, cells in table_of(source).items()}
    column = next((name for name in columns if name.casefold() == target.casefold()), None)
    if column is None:
        raise DataError(f"{source.root}: no label {target!r}; its tables have {', '.join(columns)}")
    cells = columns[column]
    numbers = {case_id: _as_number(cell) for case_id, cell in cells.items()}
    words = column.casefold() in BUTPPG_CODES or None in numbers.values()
    rows = {
        case_id: LabelRows(
            start_s=np.zeros(1),
            end_s=np.full(1, np.inf),
            values=np.array([cells[case_id] if words else numbers[case_id]], object if words else np.float64),
        )
        for case_id in cells
    }
    return label_windows(rows, windows, target=target, numeric=not words)


# ---------------------------------------------------------------- Synthetic windows


def labels_from_truth(truth: Truth, target: str) -> WindowLabels:
    """Labels of synthetic windows, from what is true of them.

    Raises:
        DataError: when the target is not in `TRUTHS`.
    """
    if target not in TRUTHS:
        raise DataError(f"no label {target!r} of synthetic windows; expected one of {', '.join(TRUTHS)}")
    values = getattr(truth, TRUTHS[target])
    return WindowLabels(target=target, values=values if values.dtype.kind == "f" else values.astype(object))


def _some(names: Any) -> str:
    distinct = sorted(set(names))
    return ", ".join(distinct[:_SHOWN]) + (" ..." if len(distinct) > _SHOWN else "")
