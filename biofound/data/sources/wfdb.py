"""Read WFDB records as PhysioNet ships them: cases, subjects and samples.

The format is described at https://physionet.org/physiotools/wag/header-5.htm; the bytes are decoded by the
`wfdb` package, which is imported only when a record is opened. Checked here is what that package accepts
silently: a header that promises more samples than its file has, or with signals and samples transposed, and
samples whose sum is not the header's checksum.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePosixPath
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
from biofound.data.sources.subjects import SubjectRule
from biofound.data.sources.units import conversion
from biofound.errors import DataError
from biofound.files import path_from_text, path_to_text, printable_name, sha256_of

SUBJECT_PATTERN = re.compile(r"mimic2wdb/matched/(s\d+)")
"""Finds the patient in BIDMC's headers: the directory of the MIMIC-II record that each is taken from."""

_BYTES_PER_SAMPLE = {
    "8": Fraction(1),
    "16": Fraction(2),
    "24": Fraction(3),
    "32": Fraction(4),
    "61": Fraction(2),
    "80": Fraction(1),
    "160": Fraction(2),
    "212": Fraction(3, 2),
    "310": Fraction(4, 3),
    "311": Fraction(4, 3),
}  # the FLAC formats 508, 516 and 524 have no fixed size: their samples are counted after decoding


class WfdbSource(Source):
    """A directory of WFDB records.

    The records are those of the `RECORDS` file (which may name directories with a `RECORDS` of their own),
    else every header below `root` that is not a segment of another. A record is a case when it has all
    channels asked for; companions such as BIDMC's 1 Hz numerics lack them and are no cases.

    The subject of a record comes from `record_is_subject`, `subjects_csv` or `subject_pattern`, where given;
    else from `subjects.csv` in the root; else from `SUBJECT_PATTERN`. Patterns are searched in the header
    comments of the record's numerics companion (`<record>n`), then in its own. A record for which none is
    found has the subject None.

    Args:
        root: the directory.
        subjects_csv: a CSV with the columns `record` (as in RECORDS) and `subject`.
        subject_pattern: a regular expression whose first group is the subject.
        record_is_subject: treat each record as a different subject.
        ignore_checksums: read samples also where the header's checksum contradicts them, for data sets
            whose headers are known to be wrong.

    Raises:
        DataError: when the directory or the CSV cannot be read.
        SettingsError: when the pattern is no regular expression with a group, or `record_is_subject` is
            given together with a CSV of subjects.
    """

    name = "wfdb"

    def __init__(
        self,
        *,
        root: str | Path,
        subjects_csv: str | Path | None = None,
        subject_pattern: str | None = None,
        record_is_subject: bool = False,
        ignore_checksums: bool = False,
    ) -> None:
        self.root = path_from_text(root).expanduser().absolute()
        if not self.root.is_dir():
            raise DataError(f"wfdb source: expected a directory of records at {self.root}, found none")
        self.ignore_checksums = ignore_checksums
        self._rule = SubjectRule(
            root=self.root,
            subjects_csv=subjects_csv,
            subject_pattern=subject_pattern,
            record_is_subject=record_is_subject,
            source=self.name,
            columns=("record",),
            key_of=lambda name: PurePosixPath(name).as_posix(),  # without "./"
        )

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Plain JSON that opens this directory with the same rule for subjects."""
        return {
            "name": self.name,
            "root": path_to_text(self.root),
            **self._rule.describe(),
            "ignore_checksums": self.ignore_checksums,
        }

    def version(self) -> str:
        """A digest of the list of records and of their headers, which hold the signals' own checksums."""
        digest = hashlib.sha256()
        for case_id, path in sorted(self._records.items()):
            digest.update(f"{case_id}\n".encode())
            header = path.with_name(f"{path.name}.hea")
            digest.update(header.read_bytes() if header.is_file() else b"")
        return f"wfdb-{digest.hexdigest()[:16]}"

    def survey(self, channels: Sequence[Channel]) -> Survey:
        """All records by the channels that they have.

        Refused are those whose header is missing, cannot be read, or contradicts itself or its files (file
        missing or short, one sample, signals and samples transposed). Companions of other records
        (`<record>n`), which hold numbers by the second, are not listed.
        """

        def look(case_id: str) -> Case | tuple[str, ...] | None:
            path = self._records[case_id]
            header = _read_header(case_id, path)
            absent = missing_channels(channels, lambda channel: header.index_of(channel) is not None)
            if absent:
                is_companion = case_id.endswith("n") and case_id.removesuffix("n") in self._records
                return None if is_companion else absent
            header.check()
            return self._case(case_id, path, header)

        return survey_recordings(self._records, look)

    def tracks(self) -> TrackList:
        """The signals of every record, as its header has them."""
        return list_recordings(
            self._records, lambda case_id: _read_header(case_id, self._records[case_id]).tracks()
        )

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        """One record's channels at their native rates, float32, NaN where the record has no valid sample.

        Values come in the channel's unit: V, mV and uV, g, mg and m/s2 are converted.

        Raises:
            DataError: when the record or a channel is missing or NaN throughout, the header contradicts
                the files or (unless `ignore_checksums`) their samples, or a unit cannot be converted.
        """
        path = self.record_path(case_id)
        header = _read_header(case_id, path)
        indices = present_channels(channels, lambda channel: _found(header, channel))
        header.check()
        tracks = _read_tracks(header, sorted(set(indices.values())), ignore_checksums=self.ignore_checksums)
        signals = present_channels(
            (channel for channel in channels if channel.name in indices),
            lambda channel: _signal(case_id, channel, tracks[indices[channel.name]]),
        )
        return Recording(case_id=case_id, signals=signals)

    def fingerprint(self, case_id: str) -> str:
        """A SHA-256 over the record's header and signal files, with their names."""
        header = _read_header(case_id, self.record_path(case_id))
        digest = hashlib.sha256()
        for path in header.files():
            if not path.is_file():
                raise DataError(f"case {case_id}: {path.name} is missing from {path.parent}")
            digest.update(os.fsencode(path.name) + f"\0{path.stat().st_size}\0".encode())
            digest.update(bytes.fromhex(sha256_of(path)))
        return digest.hexdigest()

    @cached_property
    def _records(self) -> dict[str, Path]:
        """The records by case id: the path without suffix."""
        paths = list(_listed_records(self.root)) or list(_found_records(self.root))
        if not paths:
            raise DataError(f"wfdb source: {self.root} has neither a RECORDS file nor headers (*.hea)")
        records: dict[str, Path] = {}
        for path in paths:
            case_id = printable_name("__".join(path.relative_to(self.root).parts))
            if records.setdefault(case_id, path) != path:
                raise DataError(f"wfdb source: {path} and {records[case_id]} would both be case {case_id}")
        return records

    def record_path(self, case_id: str) -> Path:
        """Where a case's record lies, without suffix.

        Raises:
            DataError: when the data set has no such record.
        """
        if case_id not in self._records:
            raise DataError(
                f"case {case_id}: no such record among the {len(self._records)} of {self.root}; make the "
                "splits again if the data set has changed"
            )
        return self._records[case_id]

    def _case(self, case_id: str, path: Path, header: "_Header") -> Case:
        return Case(
            case_id=case_id,
            subject_id=self._subject_of(case_id, path, header),
            tracks=tuple(normalised(name) for name in header.names),
            duration_s=header.samples / header.frame_rate,
        )

    def _subject_of(self, case_id: str, path: Path, header: "_Header") -> str | None:
        if self._rule.record_is_subject:
            return case_id
        if self._rule.listed is not None:
            return self._rule.listed.get(printable_name(path.relative_to(self.root).as_posix()))
        comments = [*_comments_of(path.with_name(f"{path.name}n.hea")), *header.comments]
        pattern = self._rule.pattern or SUBJECT_PATTERN
        found = (pattern.search(comment) for comment in comments)
        return next((match[1] for match in found if match and match[1]), None)


def import_wfdb() -> Any:
    """Import the `wfdb` package at first use, because that takes over a second."""
    with warnings.catch_warnings():
        # Its import does what pandas 3 calls deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb
    return wfdb


def check_files(record: Path) -> None:
    """Refuse a record (its path without suffix) whose header promises what its files do not hold.

    wfdb would first make room for all that a header promises.

    Raises:
        DataError: when a file is missing, or they cannot belong together.
    """
    _read_header(record.name, record).check_files()


def normalised(name: str) -> str:
    """A signal's name without surrounding blanks and trailing commas: BIDMC has 'PLETH,'."""
    return name.strip().rstrip(",").strip()


@dataclass(frozen=True, kw_only=True)
class _Track:
    """One signal as decoded: `samples` (T,) float64 with NaN, rate in Hz, and its unit."""

    samples: NDArray[np.float64]
    sfreq: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class _Header:
    """A record's header; `parsed` is wfdb's own object.

    `segments` are the headers of a multi-segment record's segments. `samples` counts frames: a signal may
    have several samples in each.
    """

    case_id: str
    path: Path
    parsed: Any
    names: tuple[str, ...]
    samples: int
    frame_rate: float
    comments: tuple[str, ...]
    segments: tuple["_Header", ...]

    def index_of(self, channel: Channel) -> int | None:
        """The signal of a channel: the first of its tracks that the record has, whatever the case."""
        names = [normalised(name).casefold() for name in self.names]
        wanted = (normalised(track).casefold() for track in channel.tracks)
        return next((names.index(track) for track in wanted if track in names), None)

    def tracks(self) -> tuple[ListedTrack, ...]:
        """The signals, each at its own rate."""
        if self.segments:  # those of the layout, or of the first segment
            seconds = self.samples / self.frame_rate
            return tuple(replace(track, duration_s=seconds) for track in self.segments[0].tracks())
        per_frame = getattr(self.parsed, "samps_per_frame", None) or []
        units = getattr(self.parsed, "units", None) or []
        return tuple(
            ListedTrack(
                name=normalised(name),
                sfreq=self.frame_rate * count,
                unit=unit or "",
                duration_s=self.samples / self.frame_rate,
            )
            for name, count, unit in zip(self.names, per_frame, units, strict=False)
        )

    def files(self) -> list[Path]:
        """The header and the signal files of the record and of its segments, each once."""
        own = [self.path.with_name(f"{self.path.name}.hea")]
        own += [self.path.parent / name for name in dict.fromkeys(self._signal_files())]
        return list(dict.fromkeys(own + [path for segment in self.segments for path in segment.files()]))

    def segments_with_samples(self) -> list["_Header"]:
        """The segments without the layout header, whose length is 0."""
        return [segment for segment in self.segments if segment.samples > 0]

    def check(self) -> None:
        """Compare the header with itself and with its files.

        Raises:
            DataError: when it cannot be true.
        """
        if self.samples < 2:
            raise DataError(
                f"case {self.case_id}: the header {self.path.name}.hea promises {self.samples} sample(s) of "
                f"{self.parsed.n_sig} signal(s); expected a recording. Are the number of signals and the "
                "number of samples transposed? Correct the header or take the record out of RECORDS"
            )
        self.check_files()

    def check_files(self) -> None:
        """Compare the header with its files, and those of its segments with theirs.

        Raises:
            DataError: when they cannot belong together.
        """
        for segment in self.segments_with_samples():
            segment._check_files()
        if not self.segments:
            self._check_files()

    def _signal_files(self) -> list[str]:
        # "~" is the file of signals that a layout header only names.
        return [name for name in getattr(self.parsed, "file_name", None) or [] if name != "~"]

    def _check_files(self) -> None:
        parsed = self.parsed
        if parsed.n_sig != len(self.names):
            raise DataError(
                f"case {self.case_id}: the header {self.path.name}.hea promises {parsed.n_sig} signals of "
                f"{self.samples} samples but describes {len(self.names)}; are the two numbers transposed? "
                "Correct the header or take the record out of RECORDS"
            )
        for name in dict.fromkeys(self._signal_files()):
            path = self.path.parent / name
            if not path.is_file():
                raise DataError(
                    f"case {self.case_id}: {name} is missing from {path.parent}; download it again"
                )
            self._check_size(path, name)

    def _check_size(self, path: Path, name: str) -> None:
        frame, offset = _frame_bytes(self.parsed, name)
        if frame is None:
            return
        # Formats 310 and 311 pack three samples into four bytes, so the last byte may be shared.
        got, expected = path.stat().st_size, offset + int(frame * self.samples)
        if got < expected:
            count, found = self.parsed.file_name.count(name), max(0, int((got - offset) / frame))
            raise DataError(
                f"case {self.case_id}: the header promises {self.samples} samples of {count} signal(s) in "
                f"{name}, {expected} bytes, but the file has {got} bytes, {found} samples; download it again "
                "or take the record out of RECORDS"
            )


def _frame_bytes(parsed: Any, file_name: str) -> tuple[Fraction | None, int]:
    """Bytes of a frame in a signal file (None without a fixed size), and the first frame's offset."""
    signals = [i for i, name in enumerate(parsed.file_name) if name == file_name]
    width = _BYTES_PER_SAMPLE.get(parsed.fmt[signals[0]])
    frame = None if width is None else width * sum(parsed.samps_per_frame[i] for i in signals)
    return frame, parsed.byte_offset[signals[0]] or 0


def _read_header(case_id: str, path: Path, *, is_segment: bool = False) -> _Header:
    """Parse the header of the record at `path` (no suffix), and those of its segments."""
    wfdb = import_wfdb()
    file = path.with_name(f"{path.name}.hea")
    if not file.is_file():
        raise DataError(
            f"case {case_id}: expected the header {file.name} in {file.parent}, found none; download it, or "
            "take the record out of RECORDS"
        )
    try:
        parsed = wfdb.rdheader(str(path))
    except Exception as error:  # the parser lets out whatever its regular expressions trip over
        raise DataError(f"case {case_id}: {file.name} is not a WFDB header: {error}") from error
    # "~" stands for time without data; wfdb gives NaN there.
    listed = [name for name in getattr(parsed, "seg_name", None) or [] if name != "~"]
    if listed and is_segment:
        raise DataError(f"case {case_id}: {file.name} is a segment, and must not have segments of its own")
    segments = tuple(_read_header(case_id, path.parent / name, is_segment=True) for name in listed)
    # The names of the signals of a multi-segment record are in its first segment (the layout).
    names = segments[0].names if segments else getattr(parsed, "sig_name", None) or ()
    if not parsed.fs:
        raise DataError(
            f"case {case_id}: {file.name} has no sampling frequency above 0 Hz; correct the header"
        )
    return _Header(
        case_id=case_id,
        path=path,
        parsed=parsed,
        names=tuple(name or "" for name in names),
        samples=_length_of(case_id, parsed, path),
        frame_rate=float(parsed.fs),
        comments=tuple(parsed.comments),
        segments=segments,
    )


def _length_of(case_id: str, parsed: Any, path: Path) -> int:
    """Number of frames by the header, else by the size of the first signal file."""
    if parsed.sig_len is not None:
        return int(parsed.sig_len)
    files = getattr(parsed, "file_name", None) or []
    if not files:
        return 0
    frame, offset = _frame_bytes(parsed, files[0])
    file = path.parent / files[0]
    if frame is None or not file.is_file():
        raise DataError(f"case {case_id}: neither the header nor {file} tells the number of samples")
    return int((file.stat().st_size - offset) / frame)


def _read_tracks(header: _Header, indices: list[int], *, ignore_checksums: bool) -> dict[int, _Track]:
    """Decode the signals at `indices`, each at its own rate."""
    if header.segments:
        return {index: _read_joined(header, index, ignore_checksums=ignore_checksums) for index in indices}
    wfdb = import_wfdb()
    try:
        record = wfdb.rdrecord(str(header.path), channels=indices, smooth_frames=False, physical=False)
        physical = record.dac(expanded=True)
    except Exception as error:  # as above: the decoder has no exception family of its own
        raise DataError(f"case {header.case_id}: {header.path.name} cannot be decoded: {error}") from error
    tracks = {}
    for column, index in enumerate(indices):
        per_frame = int(header.parsed.samps_per_frame[index])
        samples = physical[column]
        _check_length(header, index, len(samples), header.samples * per_frame)
        if not ignore_checksums:
            _check_sum(header, index, record.e_d_signal[column])
        tracks[index] = _Track(
            samples=samples, sfreq=header.frame_rate * per_frame, unit=record.units[column] or ""
        )
    return tracks


def _read_joined(header: _Header, index: int, *, ignore_checksums: bool) -> _Track:
    """Decode one signal of a multi-segment record into one array, NaN where no segment has it.

    The wfdb package joins segments too, but fails on records of fixed layout with a gap.
    """
    name = normalised(header.names[index])
    read = {
        segment.path.name: _read_named(segment, name, ignore_checksums=ignore_checksums)
        for segment in header.segments_with_samples()
    }
    kinds = {(track.sfreq, track.unit) for track in read.values() if track is not None}
    if len(kinds) > 1:
        raise DataError(
            f"case {header.case_id}, signal {name}: its segments differ in rate or unit "
            f"({', '.join(f'{sfreq:g} Hz {unit}' for sfreq, unit in sorted(kinds))}); list them as records "
            "of their own"
        )
    sfreq, unit = kinds.pop() if kinds else (header.frame_rate, "")
    per_frame = round(sfreq / header.frame_rate)
    pieces = []
    for segment_name, frames in zip(header.parsed.seg_name, header.parsed.seg_len, strict=True):
        track = read.get(segment_name)
        samples = np.full(frames * per_frame, np.nan) if track is None else track.samples
        _check_length(header, index, len(samples), frames * per_frame)
        pieces.append(samples)
    joined = np.concatenate(pieces)
    _check_length(header, index, len(joined), header.samples * per_frame)
    return _Track(samples=joined, sfreq=header.frame_rate * per_frame, unit=unit)


def _read_named(segment: _Header, name: str, *, ignore_checksums: bool) -> _Track | None:
    """The signal of that name in a segment; None where the segment has none."""
    names = [normalised(other) for other in segment.names]
    if name not in names:
        return None
    index = names.index(name)
    return _read_tracks(segment, [index], ignore_checksums=ignore_checksums)[index]


def _check_sum(header: _Header, index: int, samples: NDArray[Any]) -> None:
    """Compare the sum of a signal's samples (T,), as stored, with the header's 16-bit checksum.

    A header may have none. With a skew some of the samples lie outside of the array, and cannot be summed.
    """
    parsed = header.parsed
    promised = parsed.checksum[index]
    if promised is None or (parsed.skew and parsed.skew[index]):
        return
    got = int(samples.sum(dtype=np.int64))
    if (got - promised) % 2**16:
        raise DataError(
            f"case {header.case_id}, signal {header.names[index]}: the samples in "
            f"{parsed.file_name[index]} have the checksum {got % 2**16}, the header {header.path.name}.hea "
            f"promises {promised % 2**16}: one of the files is damaged. Download it again; for a data set "
            "whose headers are known to be wrong, run biofound prepare with --ignore-checksums"
        )


def _check_length(header: _Header, index: int, got: int, expected: int) -> None:
    if got != expected:
        raise DataError(
            f"case {header.case_id}, signal {header.names[index]}: the header promises {expected} samples, "
            f"the file gives {got}; download it again or take the record out of RECORDS"
        )


def _found(header: _Header, channel: Channel) -> int:
    index = header.index_of(channel)
    if index is None:
        raise AbsentChannelError(
            f"case {header.case_id}, channel {channel.name}: expected a signal named "
            f"{' or '.join(channel.tracks) or '(no tracks given)'}, the record has "
            f"{', '.join(normalised(name) for name in header.names) or 'none'}; add its name to the "
            "channel's tracks"
        )
    return index


def _signal(case_id: str, channel: Channel, track: _Track) -> Signal:
    if not np.isfinite(track.samples).any():
        raise AbsentChannelError(
            f"case {case_id}, channel {channel.name}: all {len(track.samples)} samples are invalid (NaN); "
            "take the record out of RECORDS"
        )
    factor, unit = conversion(track.unit, channel, what=f"case {case_id}, channel {channel.name}")
    return Signal(samples=(track.samples * factor).astype(np.float32), sfreq=track.sfreq, unit=unit)


def _listed_records(directory: Path) -> Iterator[Path]:
    """The records that RECORDS in `directory` lists.

    An entry that ends in "/" stands for what the RECORDS there lists, else for every header below. One
    without either, as in a data set that was downloaded in part, is given as a record that is not there.
    """
    listing = directory / "RECORDS"
    if not listing.is_file():
        return
    for line in dict.fromkeys(os.fsdecode(listing.read_bytes()).split()):
        if Path(line).is_absolute() or ".." in Path(line).parts:
            raise DataError(f"{listing}: the entry {line} lies outside the data set")
        entry = directory / line
        if line.endswith("/") and entry.resolve() in (directory.resolve(), *directory.resolve().parents):
            raise DataError(f"{listing}: the entry {line} names the directory of this list; remove it")
        below = list(_listed_records(entry)) or list(_found_records(entry)) if line.endswith("/") else []
        yield from below or [entry]


def _found_records(directory: Path) -> Iterator[Path]:
    """Every header below `directory` but the segments of multi-segment records."""
    headers = sorted(path for path in directory.rglob("*.hea") if path.is_file())
    segments = {header.parent / name for header in headers for name in _segment_names(header)}
    for header in headers:
        record = header.with_name(header.name.removesuffix(".hea"))
        if record not in segments:
            yield record


def _segment_names(header: Path) -> list[str]:
    """Names of the segments of a multi-segment header ("name/count" in its first line), else none."""
    lines = [line for line in _lines_of(header) if line.strip() and not line.lstrip().startswith("#")]
    if not lines or "/" not in lines[0].split()[0]:
        return []
    return [line.split()[0] for line in lines[1:]]


def _comments_of(header: Path) -> list[str]:
    """Comments of a header, none if it is missing. Not parsed by wfdb, which fails on some companions."""
    if not header.is_file():
        return []
    return [line.lstrip("# \t") for line in _lines_of(header) if line.lstrip().startswith("#")]


def _lines_of(header: Path) -> list[str]:
    return header.read_text(encoding="ascii", errors="ignore").splitlines()
