"""Write a window table: what `embed` and `predict` share, from windows or recordings to the file's rows."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from biofound import console
from biofound.commands.inputs import TableInputs
from biofound.commands.left_out import show_left_out, show_repaired
from biofound.data.channels import Channel
from biofound.data.model_input import ModelInput
from biofound.data.prefetch import prefetch_cases
from biofound.data.sources import UNREADABLE, Source, why_unreadable
from biofound.data.splits import UNKNOWN
from biofound.data.window_table import Rows, TableHeader, write_table
from biofound.data.windows import Windows
from biofound.errors import DataError, SettingsError, write_error_context
from biofound.options import ending_on_sigterm
from biofound.settings import ResolvedChannels
from biofound.settings.window_table import WindowTableSettings


@dataclass(kw_only=True)
class TableCounts:
    """What has been written, and what was left out with the reason, by recording."""

    windows: int = 0
    hours: float = 0.0
    seconds: float = 0.0
    cases: set[str] = field(default_factory=set)
    subjects: set[str] = field(default_factory=set)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "cases": len(self.cases),
            "subjects": len(self.subjects),
            "windows": self.windows,
            "hours": self.hours,
            "seconds": self.seconds,
            "left_out": self.left_out,
            "failed": self.failed,
        }

    def show(self, title: str, settings: WindowTableSettings, **more: object) -> None:
        """Print the table of counts, with columns of `more`, and what was left out."""
        counted = {"cases": len(self.cases), "subjects": len(self.subjects), "windows": self.windows}
        cells = {**counted, "hours": f"{self.hours:.2f}", **more, "seconds": f"{self.seconds:.1f}"}
        console.table(title, list(cells), [list(cells.values())], numbers=list(cells))
        show_left_out(self.left_out, self.failed)
        console.note(f"written: {settings.output}")


def write_window_table(
    settings: WindowTableSettings,
    inputs: TableInputs,
    model_input: ModelInput,
    rows_of: Callable[[Windows], Iterator[Rows]],
    header: TableHeader,
    *,
    verb: str,
    on_rows: Callable[[Rows], None] = lambda _: None,
) -> TableCounts:
    """Write the rows of all windows, or of all recordings, into the output file.

    Args:
        settings: of the command.
        inputs: windows, which must be of the model's kind (`check_fit`), or recordings.
        model_input: the model's channels, and how windows are made of recordings.
        rows_of: the rows of some windows.
        header: what the file says of itself.
        verb: what is done with a window, for the progress: "embedded".
        on_rows: called with all rows, some at a time.

    Raises:
        SettingsError: when the channel table contradicts the model's file.
        DataError: when recordings cannot be read, no window is left, or the file cannot be written.
    """
    counts = TableCounts()
    if inputs.windows is not None:
        pieces = _of_windows(inputs.windows, rows_of, verb=verb)
    else:
        assert inputs.source is not None  # the settings have one of both
        channels = _with_tracks(settings, header.origin.checkpoint, model_input.channels, inputs.table)
        extract = partial(model_input.extract, channels=channels)
        pieces = _of_recordings(
            inputs.source, channels, extract, rows_of, counts, verb=verb, skip_failed=settings.skip_failed
        )

    def counted() -> Iterator[Rows]:
        for piece in pieces:
            counts.windows += len(piece.case_id)
            counts.cases |= set(piece.case_id.tolist())
            counts.subjects |= set(piece.subject_id.tolist()) - {UNKNOWN}
            on_rows(piece)
            yield piece

    began = time.monotonic()
    with ending_on_sigterm(), write_error_context(settings.output, option="--output"):
        write_table(settings.output, counted(), header)
    counts.seconds = time.monotonic() - began
    counts.hours = counts.windows * header.window_samples / header.sfreq / 3600
    return counts


def _of_windows(
    parts: Sequence[Windows], rows_of: Callable[[Windows], Iterator[Rows]], *, verb: str
) -> Iterator[Rows]:
    with console.progress(verb, total=sum(map(len, parts)), unit="windows") as progress:
        for windows in parts:
            for piece in rows_of(windows):
                yield piece
                progress.advance(len(piece.case_id))


def _with_tracks(
    settings: WindowTableSettings, name: str, channels: Sequence[Channel], table: ResolvedChannels
) -> list[Channel]:
    """The channels of the table, with the filters, units and quality thresholds of the model's file.

    Raises:
        SettingsError: when a table of the user's own lacks a channel, or has another filter or unit.
    """
    named = table.named([channel.name for channel in channels])
    for ours, theirs in zip(channels, named, strict=True):
        for what, own, other in (("filter", ours.band, theirs.band), ("unit", ours.unit, theirs.unit)):
            if settings.channels_yaml is not None and own != other:
                raise SettingsError(
                    f"{table.origin}: the {what} of {ours.name} is {other}, but {name} was "
                    f"trained on windows with {own}; give the table that these were built with"
                )
    return [
        replace(theirs, band=ours.band, unit=ours.unit, quality_threshold=ours.quality_threshold)
        for ours, theirs in zip(channels, named, strict=True)
    ]


def _of_recordings(
    source: Source,
    channels: Sequence[Channel],
    extract: Callable[..., Windows],
    rows_of: Callable[[Windows], Iterator[Rows]],
    counts: TableCounts,
    *,
    verb: str,
    skip_failed: bool,
) -> Iterator[Rows]:
    """The rows case by case; one recording is held at a time."""
    found = source.survey(channels)
    show_repaired(found.repaired)
    counts.left_out = {case_id: list(absent) for case_id, absent in found.left_out.items()}
    counts.failed = dict(found.refused)
    cases = found.usable(skip_failed=skip_failed)
    if not cases:
        raise DataError(f"none of {len(found.left_out)} recordings has {', '.join(c.name for c in channels)}")
    with (
        console.progress(verb, total=len(cases), unit="cases") as progress,
        prefetch_cases(source, [case.case_id for case in cases]),
    ):
        for case in cases:
            try:
                recording = source.read(case.case_id, channels)
                windows = extract(recording, subject_id=case.subject_id or UNKNOWN)
            except UNREADABLE as error:
                reason = why_unreadable(case.case_id, error)
                if not skip_failed:
                    raise DataError(f"{reason}; correct this, or leave it out with --skip-failed") from error
                counts.failed[case.case_id] = reason
            else:
                yield from rows_of(windows)
            progress.advance(text=f"{counts.windows} windows")
    if not counts.windows:
        raise DataError(
            f"no window of {len(cases)} recordings was kept, and {len(counts.failed)} failed; "
            "`biofound windows` says what is wrong with them, --no-gate keeps windows of bad quality"
        )
