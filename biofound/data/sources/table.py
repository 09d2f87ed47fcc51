"""Read tables of samples: CSV, Parquet and npz files, one recording a file, one column a channel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from biofound.data.channels import Channel
from biofound.data.sources import AbsentChannelError, ListedTrack, Recording, Signal, present_channels
from biofound.data.sources.packets import (
    align_packets,
    check_rate,
    check_span,
    find_rate,
    place_packets,
)
from biofound.data.sources.recording_files import FilesSource
from biofound.data.sources.registry import TimeUnit
from biofound.data.sources.table_file import SECONDS, SUFFIXES, Table, open_table
from biofound.data.sources.units import conversion
from biofound.errors import DataError, SettingsError

TIME_COLUMNS = ("time", "timestamp", "t", "seconds")
"""Names of a column of times, in any case, in order of preference, where none is named."""

ROWS_LISTED = 10_000
"""Rows from which the rate is taken when recordings are listed."""

_MOST_SEAMS = 0.04  # of the times may not continue the one before
_FEWEST_ROWS = 3


class TableSource(FilesSource):
    """A directory of CSV, TSV, Parquet and npz files; `docs/own_recordings.md` describes them.

    Sampling times come from a time column, where there is one: the rate is then found from it, and its gaps
    are gaps of the signals. Without one, samples follow one another at `sfreq`, or at the rate that an npz
    file says (`sfreq`, or `sfreq_NAME` for one channel), and NaN or an empty cell is a gap.

    Args:
        root: the directory.
        sfreq: sampling rate in Hz, of every column. With a time column: what that must agree with.
        time_column: name of the column of times; by default the first of `TIME_COLUMNS` that there is.
        time_unit: unit of times that are numbers; time stamps need none, and are UTC where they name no zone.
        subject_column: name of the column whose one value is the subject.
        subjects_csv: see `FilesSource`.
        subject_pattern: see `FilesSource`.
        record_is_subject: see `FilesSource`.

    Raises:
        DataError: when the directory or the CSV of subjects cannot be read.
        SettingsError: for a value that cannot be, or more than one rule for who the subject is.
    """

    name = "table"
    suffixes = SUFFIXES

    def __init__(
        self,
        *,
        root: str | Path,
        sfreq: float | None = None,
        time_column: str | None = None,
        time_unit: TimeUnit = "s",
        subject_column: str | None = None,
        subjects_csv: str | Path | None = None,
        subject_pattern: str | None = None,
        record_is_subject: bool = False,
    ) -> None:
        if sfreq is not None and not 0 < sfreq < float("inf"):
            raise SettingsError(f"sfreq: expected a number of Hz above 0, got {sfreq}")
        if time_unit not in SECONDS:
            raise SettingsError(f"time_unit: expected {', '.join(get_args(TimeUnit))}; got {time_unit!r}")
        if subject_column is not None and (subjects_csv or subject_pattern or record_is_subject):
            raise SettingsError("subject_column: another rule says who was recorded, too; keep one")
        self.sfreq, self.time_column, self.time_unit = sfreq, time_column, time_unit
        self.subject_column = subject_column
        super().__init__(
            root=root,
            subjects_csv=subjects_csv,
            subject_pattern=subject_pattern,
            record_is_subject=record_is_subject,
        )

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Plain JSON that opens this source again."""
        own = ("sfreq", "time_column", "time_unit", "subject_column")
        return {**super().describe(), **{name: getattr(self, name) for name in own}}

    def subject_of(self, case_id: str) -> str | None:
        """Who was recorded; of a column of subjects every row is read.

        Raises:
            DataError: the file lacks that column, or it has no value, or several.
        """
        if self.subject_column is None:
            return super().subject_of(case_id)
        table = open_table(self.path_of(case_id), what=f"case {case_id}")
        return table.only_text(_required(table, self.subject_column, "subject_column"))

    def list_file(self, path: Path, *, what: str) -> tuple[ListedTrack, ...]:
        """The columns of a file, each with its rate by the first rows."""
        table = open_table(path, what=what)
        time = self._time_of(table)
        names = [name for name in self._tracks_of(table, time) if table.is_numeric(name)]
        read = table.read([*names, *([time] if time else [])], time=time, rows=ROWS_LISTED)
        stamps = None if time is None else self._seconds(read.pop(time), table, time)
        listed = []
        for name in names:
            rows = table.lengths.get(name)
            sfreq = self._rate_said(table, name)
            if stamps is not None and np.isfinite(read[name]).any():
                sfreq = _packets(read[name], stamps, sfreq, what=f"{what}, column {name}").sfreq
            seconds = rows / sfreq if rows is not None and sfreq and stamps is None else None
            listed.append(
                ListedTrack(
                    name=table.track(name), sfreq=sfreq, unit=table.unit(name) or "", duration_s=seconds
                )
            )
        return tuple(listed)

    def read(self, case_id: str, channels: Sequence[Channel]) -> Recording:
        """The samples of one file at their native rates, NaN in gaps, on one clock.

        With a time column all signals start at the first sample of any of them, and a channel's rate is that
        of the rows in which it has a value. A column without a unit is taken to be in the channel's.

        Raises:
            DataError: the file cannot be read, or a channel is absent or all gaps; a cell is no number, or
                times cannot be right. The message names the file, and the line or row, and the column.
        """
        what = f"case {case_id}"
        table = open_table(self.path_of(case_id), what=what)
        time = self._time_of(table)
        by_track = {table.track(name): name for name in self._tracks_of(table, time)}

        def column_of(channel: Channel) -> str:
            track = self.find_track(channel, by_track, what=f"{what}, channel {channel.name}")
            if track is None:
                raise AbsentChannelError(
                    f"{what}, channel {channel.name}: expected a column named {' or '.join(channel.tracks)}; "
                    f"{table.path} has {', '.join(by_track) or 'none'}. Name it in the channel's tracks."
                )
            return by_track[track]

        columns = present_channels(channels, column_of)
        wanted = list(dict.fromkeys(columns.values()))
        read = table.read([*wanted, *([time] if time else [])], time=time)

        def filled(channel: Channel) -> str:
            column = columns[channel.name]
            if not np.isfinite(read[column]).any():
                raise AbsentChannelError(
                    f"{what}, channel {channel.name}: {table.path}: column {column} holds no value. Leave "
                    "the file out."
                )
            return column

        there = [channel for channel in channels if channel.name in columns]
        held = present_channels(there, filled)
        wanted = list(dict.fromkeys(held.values()))
        if time is None:
            signals = {name: self._untimed(table, name, read[name]) for name in wanted}
            _check_durations(signals, table)
        else:
            stamps = self._seconds(read.pop(time), table, time)
            signals = self._timed(table, {name: read[name] for name in wanted}, stamps)
        return Recording(
            case_id=case_id,
            signals={
                channel.name: _in_unit(signals[held[channel.name]], channel, table)
                for channel in channels
                if channel.name in held
            },
        )

    def _time_of(self, table: Table) -> str | None:
        """The column of times; None where there is none, and the rate is said."""
        if self.time_column is not None:
            return _required(table, self.time_column, "time_column")
        by_folded = {name.casefold(): name for name in table.names}
        found = next((by_folded[name] for name in TIME_COLUMNS if name in by_folded), None)
        if found is None and self.sfreq is None and not table.rates:
            raise DataError(
                f"{table.what}: {table.path} has no column of times ({', '.join(TIME_COLUMNS)}) among "
                f"{', '.join(table.names)}; name it with --time-column, or give the rate with --sfreq"
            )
        return found

    def _tracks_of(self, table: Table, time: str | None) -> list[str]:
        """The columns that may be channels."""
        return [name for name in table.names if name not in (time, self.subject_column)]

    def _rate_said(self, table: Table, name: str) -> float | None:
        return table.rates.get(name, self.sfreq)

    def _untimed(self, table: Table, name: str, samples: NDArray[np.float32]) -> Signal:
        sfreq = self._rate_said(table, name)
        if sfreq is None:
            raise DataError(
                f"{table.what}: {table.path} does not say the rate of {name}; add it as sfreq or "
                f"sfreq_{table.track(name)}, or give it with --sfreq"
            )
        return Signal(samples=samples, sfreq=sfreq, unit="", track=table.track(name))

    def _timed(
        self, table: Table, columns: Mapping[str, NDArray[np.float32]], stamps: NDArray[np.float64]
    ) -> dict[str, Signal]:
        packets = {
            name: _packets(samples, stamps, self._rate_said(table, name), what=f"{table.what}, column {name}")
            for name, samples in columns.items()
        }
        origin = min(float(packet.starts[0]) for packet in packets.values())
        return {
            name: packet.signal(origin, track=table.track(name), header_sfreq=self._rate_said(table, name))
            for name, packet in packets.items()
        }

    def _seconds(self, times: NDArray[np.float64], table: Table, column: str) -> NDArray[np.float64]:
        """Times (N,) in seconds, ascending; steps back of less than a sample are taken for none."""
        what = f"{table.what}: {table.path}, column {column}"
        if len(times) < _FEWEST_ROWS:
            raise DataError(f"{what}: expected {_FEWEST_ROWS} rows or more, got {len(times)}")
        if not np.isfinite(times).all():
            row = int(np.argmin(np.isfinite(times))) + 1
            raise DataError(f"{what}: row {row} below the header has no time; fill it in or remove the row")
        seconds = times if table.has_time_stamps(column) else times * SECONDS[self.time_unit]
        steps = np.diff(seconds)
        forward = steps[steps > 0]
        least = -float(np.median(forward)) if len(forward) else 0.0
        if (steps < least).any():
            row = int(np.argmax(steps < least)) + 1
            raise DataError(
                f"{what}: the time goes back by {-steps[row - 1]:g} s from row {row} to row {row + 1} below "
                "the header. Sort the rows; local times that are set back in autumn must be written in UTC"
            )
        return np.maximum.accumulate(seconds)


@dataclass(frozen=True, kw_only=True)
class _Packets:
    """A column's samples (N,), in packets of one time stamp: K times in seconds, K numbers of samples."""

    what: str
    samples: NDArray[np.float32]
    starts: NDArray[np.float64]
    counts: NDArray[np.int64]
    sfreq: float

    def signal(self, origin: float, *, track: str, header_sfreq: float | None) -> Signal:
        """The samples on a grid that starts at `origin`, NaN in gaps; see `packets.align_packets`."""
        check_span(self.starts, sfreq=self.sfreq, origin=origin, what=self.what)
        first = align_packets(self.starts, self.counts, sfreq=self.sfreq, origin=origin)
        seams = np.count_nonzero(np.diff(first) != self.counts[:-1])
        if seams > max(_MOST_SEAMS * len(first), 1):
            raise DataError(
                f"{self.what}: {seams} of {len(first)} times do not continue the one before at "
                f"{self.sfreq:g} Hz: they jitter by more than a sample or come in bursts, as times of "
                "arrival do. Where no sample is missing, remove the column of times and give the rate with "
                "--sfreq"
            )
        samples, replaced = place_packets(self.samples, first, self.counts)
        return Signal(
            samples=samples,
            sfreq=self.sfreq,
            unit="",
            header_sfreq=header_sfreq,
            overlapping_samples=replaced,
            track=track,
        )


def _packets(
    samples: NDArray[np.float32], stamps: NDArray[np.float64], sfreq: float | None, *, what: str
) -> _Packets:
    """The samples that a column has, in packets, and its rate.

    Rows of one stamp are a packet: times that are written to the second hold many. Where every row has a
    stamp of its own, rows without a value are left out, so that a slow column beside a fast one has its own
    rate.
    """
    if (np.diff(stamps) > 0).all():
        real = np.isfinite(samples)
        samples, stamps = samples[real], stamps[real]
    firsts = np.flatnonzero(np.diff(stamps, prepend=-np.inf) > 0)
    starts, counts = stamps[firsts], np.diff(firsts, append=len(stamps))
    if sfreq is None:
        sfreq = _found_rate(starts, counts, what=what)
    else:
        check_rate(starts, counts, sfreq=sfreq, what=what)
        sfreq = find_rate(starts, counts, sfreq=sfreq)
    return _Packets(what=what, samples=samples, starts=starts, counts=counts, sfreq=sfreq)


def _found_rate(starts: NDArray[np.float64], counts: NDArray[np.int64], *, what: str) -> float:
    """The rate in Hz by the stamps; one of few digits, where it fits them as well."""
    if len(starts) < _FEWEST_ROWS:
        raise DataError(
            f"{what}: {len(starts)} different times with a value are too few to find its rate; give it with "
            "--sfreq"
        )
    usual = float(f"{np.median(counts[:-1] / np.diff(starts)):.6g}")
    found = find_rate(starts, counts, sfreq=usual)
    rounded = float(f"{found:.4g}")
    if rounded != found and find_rate(starts, counts, sfreq=rounded) == rounded:
        return rounded
    return found


def _required(table: Table, column: str, setting: str) -> str:
    if column not in table.names:
        raise DataError(
            f"{table.what}: {table.path} has no column {column} ({setting}); it has {', '.join(table.names)}"
        )
    return column


def _check_durations(signals: Mapping[str, Signal], table: Table) -> None:
    """Refuse columns without times that end at different times: one has another rate, or is cut short."""
    seconds = {name: len(signal.samples) / signal.sfreq for name, signal in signals.items()}
    if max(seconds.values()) - min(seconds.values()) > 1.0:
        named = ", ".join(
            f"{name} {len(signal.samples)} samples at {signal.sfreq:g} Hz, {seconds[name]:g} s"
            for name, signal in signals.items()
        )
        raise DataError(
            f"{table.what}: {table.path}: expected columns of one length in time, got {named}. Say another "
            "rate as sfreq_NAME, or fill what is missing with NaN"
        )


def _in_unit(signal: Signal, channel: Channel, table: Table) -> Signal:
    """The signal in the channel's unit, and of its own array."""
    what = f"{table.what}, channel {channel.name}"
    factor, unit = 1.0, channel.unit
    said = table.unit_of_track(signal.track)
    if said is not None:
        factor, unit = conversion(said, channel, what=what)
    return replace(signal, samples=signal.samples * np.float32(factor), unit=unit)
