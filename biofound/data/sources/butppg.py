"""Read the BUT PPG database (PhysioNet `butppg` 2.0.0): PPG of a phone's camera, ECG, acceleration.

https://physionet.org/content/butppg/2.0.0/. A record `100001` is ten seconds in up to three WFDB records,
`100001_PPG` (30 Hz), `100001_ECG` (1000 Hz) and `100001_ACC` (100 Hz). They are read here,
not by the `wfdb` package, for two reasons: headers of the first release have signals and samples transposed
(one signal a *sample*, ten thousand in an ECG, over which `wfdb` takes seconds), and the package takes the
unit `a.u.` for the name of the signal.
"""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.data.sources import (
    AbsentChannelError,
    Case,
    ListedTrack,
    Recording,
    Signal,
    Source,
    Survey,
    TrackList,
    list_recordings,
    missing_channels,
    present_channels,
    survey_recordings,
)
from biofound.data.sources.units import conversion
from biofound.errors import DataError
from biofound.files import path_from_text, path_to_text, sha256_of

PARTS = ("PPG", "ECG", "ACC")
"""The WFDB records of a record, by the end of their names."""

ANNOTATIONS_CSV, SUBJECTS_CSV = "quality-hr-ann.csv", "subject-info.csv"
"""The CSVs in the root: one row a record, with the column ID."""

ID_COLUMN = "ID"
SUBJECT_DIGITS = 3
"""The first digits of a record's id are the subject."""

_TRACKS: dict[tuple[str, int], dict[str, tuple[int, float]]] = {
    ("PPG", 1): {"PPG": (0, 1.0)},
    ("PPG", 3): {"PPG": (0, -1.0), "PPG_R": (0, 1.0), "PPG_G": (1, 1.0), "PPG_B": (2, 1.0)},
    ("ECG", 1): {"ECG": (0, 1.0)},
    ("ACC", 3): {"ACC_X": (0, 1.0), "ACC_Y": (1, 1.0), "ACC_Z": (2, 1.0)},
}
"""By part and number of signals: name of each track, its column, and 1 or, where it is inverted, -1.

Brightness falls when the pulse comes. The first release has one PPG, inverted by its authors; later records
have the brightness in red, green and blue, and PPG is the red one, inverted.
"""
_MOST_SIGNALS = 3
_FORMATS = {"16": "<i2", "32": "<i4", "61": ">i2"}
_FILE = re.compile(r"(\d{6})_(PPG|ECG|ACC)\.hea")
_GAIN = re.compile(r"([-+.\deE]+)(?:\((-?\d{1,10})\))?(?:/(\S+))?")
_DEFAULT_GAIN = 200.0  # of WFDB, where a header says 0


class ButppgSource(Source):
    """The BUT PPG database; a case is a record, its id six digits, of which the first three are the subject.

    Tracks are named by their place, not by the header: `PPG`, `ECG`, `ACC_X`, `ACC_Y`, `ACC_Z`, and `PPG_R`,
    `PPG_G`, `PPG_B` where the PPG has three colours. Values come in the channel's unit.

    A header with signals and samples transposed is repaired, if the file's size leaves no doubt; else the
    record is refused.

    Args:
        root: the directory; headers are searched in it and its subdirectories.
        ignore_checksums: read samples also where the header's checksum contradicts them.

    Raises:
        DataError: when there is no such directory.
    """

    name = "butppg"

    def __init__(self, *, root: str | Path, ignore_checksums: bool = False) -> None:
        self.root = path_from_text(root).expanduser().absolute()
        if not self.root.is_dir():
            raise DataError(f"butppg source: expected the directory of BUT PPG at {self.root}, found none")
        self.ignore_checksums = ignore_checksums

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Plain JSON that opens this source again."""
        return {
            "name": self.name,
            "root": path_to_text(self.root),
            "ignore_checksums": self.ignore_checksums,
        }

    def version(self) -> str:
        """A digest of the headers."""
        digest = hashlib.sha256()
        for case_id, parts in self._records.items():
            for part, path in parts.items():
                digest.update(f"{case_id} {part}\n".encode() + path.read_bytes())
        return f"butppg-{digest.hexdigest()[:16]}"

    def survey(self, channels: Sequence[Channel]) -> Survey:
        """All records by the channels that they have; `repaired` are those with transposed headers.

        Refused are records with a header that cannot be true, and those whose unit does not convert.
        """
        repaired: dict[str, str] = {}

        def look(case_id: str) -> Case | tuple[str, ...]:
            record = self._open(case_id, channels)
            found = {channel.name: record.find(channel) for channel in channels}
            lacking = missing_channels(channels, lambda channel: found[channel.name] is not None)
            if lacking:
                return lacking
            for channel in channels:
                track = found[channel.name]
                if track is not None:
                    conversion(track.part.unit, channel, what=f"case {case_id}, channel {channel.name}")
            if mended := [part.header.name for part in record.parts.values() if part.transposed]:
                repaired[case_id] = ", ".join(mended)
            return Case(
                case_id=case_id,
                subject_id=case_id[:SUBJECT_DIGITS],
                tracks=tuple(record.tracks),
                duration_s=min(part.seconds for part in record.parts.values()),
            )

        return replace(survey_recordings(self._records, look), repaired=repaired)

    def tracks(self) -> TrackList:
        """The tracks of every record."""

        def look(case_id: str) -> tuple[ListedTrack, ...]:
            return tuple(
                ListedTrack(
                    name=name, sfreq=track.part.sfreq, unit=track.part.unit, duration_s=track.part.seconds
                )
                for name, track in self._open(case_id).tracks.items()
            )

        return list_recordings(self._records, look)

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        """One record's channels at their native rates, float32 in the channels' units, NaN where invalid.

        Raises:
            DataError: when the record or a channel is missing or invalid throughout, a header contradicts
                itself, its file or (unless `ignore_checksums`) its samples, or a unit cannot be converted.
        """
        record = self._open(case_id, channels)
        values: dict[Path, NDArray[np.float64]] = {}

        def signal_of(channel: Channel) -> Signal:
            what = f"case {case_id}, channel {channel.name}"
            track = record.find(channel)
            if track is None:
                raise AbsentChannelError(
                    f"{what}: expected {' or '.join(channel.tracks)}, the record has "
                    f"{', '.join(record.tracks) or 'none of PPG, ECG and ACC'}"
                )
            part = track.part
            if part.header not in values:
                values[part.header] = part.read(what, ignore_checksums=self.ignore_checksums)
            samples = values[part.header][:, track.column]
            if not np.isfinite(samples).any():
                raise AbsentChannelError(f"{what}: no sample of {part.data.name} is valid")
            factor, unit = conversion(part.unit, channel, what=what)
            return Signal(
                samples=(track.sign * factor * samples).astype(np.float32),
                sfreq=part.sfreq,
                unit=unit,
                track=track.name,
            )

        return Recording(case_id=case_id, signals=present_channels(channels, signal_of))

    def fingerprint(self, case_id: str) -> str:
        """A SHA-256 over the record's headers and signal files."""
        digest = hashlib.sha256()
        for part in self._open(case_id).parts.values():
            for path in (part.header, part.data):
                digest.update(f"{path.name}\n".encode() + bytes.fromhex(sha256_of(path)))
        return digest.hexdigest()

    @cached_property
    def _records(self) -> dict[str, dict[str, Path]]:
        """The headers of each record by part, sorted."""
        records: dict[str, dict[str, Path]] = {}
        for path in sorted(self.root.rglob("*.hea")):
            if (match := _FILE.fullmatch(path.name)) is None:
                continue
            other = records.setdefault(match[1], {}).setdefault(match[2], path)
            if other != path:
                raise DataError(f"{path} and {other} are the same record; remove one")
        if not records:
            raise DataError(
                f"{self.root}: expected headers such as 100001/100001_PPG.hea, found none. Check the path."
            )
        return {
            case_id: {part: records[case_id][part] for part in PARTS if part in records[case_id]}
            for case_id in sorted(records)
        }

    def _headers(self, case_id: str) -> dict[str, Path]:
        if case_id not in self._records:
            raise DataError(f"case {case_id}: {self.root} has no such record. Prepare the splits again.")
        return self._records[case_id]

    def _open(self, case_id: str, channels: Sequence[Channel] | None = None) -> "_Record":
        """The record with those parts that the channels need."""
        tracks = (track.upper() for channel in channels or () for track in channel.tracks)
        needed = {track.split("_")[0] for track in tracks} if channels is not None else set(PARTS)
        headers = {part: path for part, path in self._headers(case_id).items() if part in needed}
        return _Record({part: _read_part(case_id, part, path) for part, path in headers.items()})


def table_of(source: ButppgSource) -> dict[str, dict[str, str]]:
    """The columns of the two CSVs in the root: column to record id to cell, blank cells left out.

    Raises:
        DataError: with file and line, when a CSV cannot be used, or there is none.
    """
    columns: dict[str, dict[str, str]] = {}
    paths = [source.root / name for name in (ANNOTATIONS_CSV, SUBJECTS_CSV)]
    if not any(path.is_file() for path in paths):
        raise DataError(f"{source.root}: expected {ANNOTATIONS_CSV} or {SUBJECTS_CSV}, found neither")
    for path in paths:
        if path.is_file():
            for column, cells in _read_csv(path).items():
                if column in columns:
                    raise DataError(f"{path}: the column {column} is in {paths[0].name}, too")
                columns[column] = cells
    return columns


def _read_csv(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            fields = [field.strip() for field in reader.fieldnames or []]
            reader.fieldnames = fields
            if ID_COLUMN not in fields or len(set(fields)) < len(fields):
                raise DataError(
                    f"{path}:1: expected the column {ID_COLUMN} and others, each once; got "
                    f"{', '.join(fields) or 'none'}"
                )
            columns: dict[str, dict[str, str]] = {field: {} for field in fields if field != ID_COLUMN}
            seen: set[str] = set()
            for row in reader:
                _take_row(f"{path}:{reader.line_num}", row, columns, seen)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error
    return columns


def _take_row(where: str, row: Mapping[Any, Any], columns: dict[str, dict[str, str]], seen: set[str]) -> None:
    if None in row or None in row.values():
        raise DataError(f"{where}: expected as many cells as the first line has columns")
    case_id = row[ID_COLUMN].strip()
    if not case_id or case_id in seen:
        raise DataError(f"{where}: expected a record's {ID_COLUMN}, each once; got {case_id!r}")
    seen.add(case_id)
    for column, cells in columns.items():
        if cell := row[column].strip():
            cells[case_id] = cell


# ---------------------------------------------------------------- one record


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One WFDB record of a record: T samples of S signals, as its header has them, or as it was repaired.

    `gain` and `baseline` are (1, S), or (T, 1) where each sample is described as a signal of its own;
    `checksum` (S,), None where the header has none.
    """

    header: Path
    data: Path
    signals: int
    samples: int
    sfreq: float
    unit: str
    dtype: str
    gain: NDArray[np.float64]
    baseline: NDArray[np.float64]
    checksum: NDArray[np.int64] | None
    transposed: bool

    @property
    def seconds(self) -> float:
        return self.samples / self.sfreq

    def read(self, what: str, *, ignore_checksums: bool) -> NDArray[np.float64]:
        """The samples (T, S) in the header's unit, NaN where they are invalid."""
        stored = np.fromfile(self.data, self.dtype, count=self.samples * self.signals)
        digital = stored.astype(np.int64).reshape(self.samples, self.signals)
        known = self.checksum is not None and not ignore_checksums
        if known and np.any((digital.sum(axis=0) - self.checksum) % 2**16):
            raise DataError(
                f"{what}: the samples in {self.data.name} have another checksum than {self.header.name} "
                "says: one of the files is damaged. Download it again; if the header is known to be wrong, "
                "run biofound prepare with --ignore-checksums"
            )
        physical = (digital - self.baseline) / self.gain
        physical[digital == np.iinfo(self.dtype).min] = np.nan
        return physical


@dataclass(frozen=True, kw_only=True)
class _PartTrack:
    name: str
    part: _Part
    column: int
    sign: float


class _Record:
    """A record: its parts by name, and its tracks by theirs."""

    def __init__(self, parts: dict[str, _Part]) -> None:
        self.parts = parts
        self.tracks = {
            name: _PartTrack(name=name, part=part, column=column, sign=sign)
            for kind, part in parts.items()
            for name, (column, sign) in _TRACKS[kind, part.signals].items()
        }

    def find(self, channel: Channel) -> _PartTrack | None:
        """The first of the channel's tracks that the record has, in upper or lower case."""
        names = (name.upper() for name in channel.tracks)
        return next((self.tracks[name] for name in names if name in self.tracks), None)


def _read_part(case_id: str, kind: str, header: Path) -> _Part:
    """Read a header, check it against its file, and repair it where signals and samples are transposed."""
    what = f"case {case_id}: {header.name}"
    text = header.read_text(encoding="utf-8", errors="replace")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    try:
        signals, sfreq, samples = int(lines[0][1]), float(lines[0][2].split("/")[0]), int(lines[0][3])
        specs = [_Spec.parse(words) for words in lines[1:]]
    except (IndexError, ValueError) as error:
        raise DataError(
            f"{what}: expected a WFDB header with numbers of signals and samples, a rate, and signals of "
            f"format {', '.join(_FORMATS)}; got {error}"
        ) from error
    files, formats, units = ({getattr(spec, name) for spec in specs} for name in ("file", "format", "unit"))
    if not (len(files) == len(formats) == len(units) == 1 and 0 < sfreq < 1e5):
        raise DataError(
            f"{what}: expected a rate above 0 Hz and signals of one file, format and unit; got {sfreq:g} Hz, "
            f"{len(files)} files, {len(formats)} formats, {len(units)} units"
        )
    data, dtype = header.with_name(files.pop()), _FORMATS[formats.pop()]
    if not data.is_file():
        raise DataError(f"{what}: its signal file {data.name} is missing; download it again")
    size, width = data.stat().st_size, np.dtype(dtype).itemsize
    transposed = signals > _MOST_SIGNALS and samples < signals
    one_a_sample = transposed and samples == 1 and len(specs) == signals
    if transposed:
        if not (one_a_sample or len(specs) == samples) or size != signals * samples * width:
            raise DataError(
                f"{what}: promises {signals} signals of {samples} samples, which must be transposed; "
                f"it cannot be repaired, as it describes {len(specs)} signals and {data.name} has {size} "
                f"bytes (expected {signals * samples * width}). Correct the header, or leave the record out"
            )
        signals, samples = samples, signals
    elif len(specs) != signals or samples < 2 or size < signals * samples * width:
        raise DataError(
            f"{what}: promises {signals} signals of {samples} samples, but describes {len(specs)}, and "
            f"{data.name} has {size} bytes (expected {signals * samples * width}); download both again"
        )
    if (kind, signals) not in _TRACKS:
        known = " or ".join(str(number) for part, number in _TRACKS if part == kind)
        raise DataError(f"{what}: expected {known} signals, got {signals}")
    checksums = [spec.checksum for spec in specs if spec.checksum is not None]
    return _Part(
        header=header,
        data=data,
        signals=signals,
        samples=samples,
        sfreq=sfreq,
        unit=specs[0].unit,
        dtype=dtype,
        gain=np.array([spec.gain for spec in specs]).reshape(-1, signals),
        baseline=np.array([spec.baseline for spec in specs], np.float64).reshape(-1, signals),
        checksum=np.reshape(checksums, (-1, signals)).sum(axis=0) if len(checksums) == len(specs) else None,
        transposed=transposed,
    )


@dataclass(frozen=True, kw_only=True)
class _Spec:
    """A line of a header that describes a signal."""

    file: str
    format: str
    gain: float
    baseline: int
    unit: str
    checksum: int | None

    @classmethod
    def parse(cls, words: Sequence[str]) -> "_Spec":
        """From the words of the line; ValueError or IndexError where they are none."""
        file, kind = words[:2]
        if kind not in _FORMATS or Path(file).name != file:
            raise ValueError(f"file {file} of format {kind}")
        match = _GAIN.fullmatch(words[2]) if len(words) > 2 else None
        zero, checksum = (_small(words[k]) if len(words) > k else None for k in (4, 6))
        return cls(
            file=file,
            format=kind,
            gain=(float(match[1]) if match else 0.0) or _DEFAULT_GAIN,
            baseline=int(match[2]) if match and match[2] is not None else zero or 0,
            unit=(match[3] if match else None) or "mV",
            checksum=checksum,
        )


def _small(text: str) -> int:
    """A number that fits 32 bits."""
    if abs(number := int(text)) >= 2**32:
        raise ValueError(text)
    return number
