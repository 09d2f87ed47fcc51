"""`biofound embed`: one vector a window, of a window store or of recordings."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from biofound import __version__, console
from biofound.commands.left_out import show_left_out
from biofound.commands.probe_data import check_fit
from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.devices import resolve_device
from biofound.core.embed import WindowEmbedder
from biofound.data.channels import Channel
from biofound.data.prefetch import prefetch_cases
from biofound.data.sources import UNREADABLE, Source, why_unreadable
from biofound.data.splits import UNKNOWN
from biofound.data.vectors import VectorsHeader, VectorsOrigin, WindowVectors, write_vectors
from biofound.data.windows import Windows
from biofound.errors import DataError, SettingsError, checkpoint_error_context, write_error_context
from biofound.options import Invocation, ending_on_sigterm
from biofound.settings import EmbedSettings, ResolvedChannels


def execute(
    invocation: Invocation[EmbedSettings],
    windows: Sequence[Windows] | None,
    source: Source | None,
    table: ResolvedChannels,
    origin: VectorsOrigin,
) -> None:
    """Write the vectors, and say of how many windows and cases they are.

    Args:
        invocation: the command's settings.
        windows: the windows of each split of `data_dir`; None where recordings are embedded.
        source: the recordings; None where windows are embedded.
        table: the channel table, which says the tracks of the recordings.
        origin: what the file says of itself.

    Raises:
        CheckpointError: when the checkpoint cannot be read.
        SettingsError: when the channel table contradicts the checkpoint.
        DataError: when windows or recordings do not fit or cannot be read, none is left, or the file cannot
            be written.
    """
    settings = invocation.settings
    checkpoint = load_checkpoint(settings.checkpoint)
    with checkpoint_error_context(settings.checkpoint):
        embedder = WindowEmbedder(
            checkpoint,
            readout=settings.readout,
            gate=settings.gate,
            batch_size=settings.batch_size,
            device=resolve_device(settings.device),
        )
    counts = _Counts()
    if windows is not None:
        check_fit(str(settings.checkpoint), checkpoint, windows)
        pieces = _embed_windows(embedder, windows)
    else:
        assert source is not None  # the settings have one of both
        channels = _with_tracks(settings, embedder.channels, table)
        pieces = _embed_recordings(embedder, source, channels, counts, skip_failed=settings.skip_failed)
    header = VectorsHeader(
        biofound_version=__version__,
        origin=origin,
        channels=checkpoint.model.channels,
        sfreq=checkpoint.data.sfreq,
        window_samples=checkpoint.model.context_length,
    )
    began = time.monotonic()
    with ending_on_sigterm(), write_error_context(settings.output, option="--output"):
        write_vectors(settings.output, counts.counting(pieces), header)
    result = counts.summary(header) | {"seconds": time.monotonic() - began, "output": str(settings.output)}
    if invocation.json:
        console.print_json(result | {"left_out": counts.left_out, "failed": counts.failed})
    else:
        _show(result, counts, checkpoint, settings)


class _Counts:
    """What has been embedded, and what was left out with the reason, by recording."""

    def __init__(self) -> None:
        self.windows, self.vector_length = 0, 0
        self.cases: set[str] = set()
        self.subjects: set[str] = set()
        self.left_out: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}

    def counting(self, pieces: Iterator[WindowVectors]) -> Iterator[WindowVectors]:
        for piece in pieces:
            self.windows += len(piece.vectors)
            self.vector_length = piece.vectors.shape[1]
            self.cases |= set(piece.case_id.tolist())
            self.subjects |= set(piece.subject_id.tolist()) - {UNKNOWN}
            yield piece

    def summary(self, header: VectorsHeader) -> dict[str, Any]:
        hours = self.windows * header.window_samples / header.sfreq / 3600
        return {
            "cases": len(self.cases),
            "subjects": len(self.subjects),
            "windows": self.windows,
            "hours": hours,
            "vector_length": self.vector_length,
        }


def _embed_windows(embedder: WindowEmbedder, parts: Sequence[Windows]) -> Iterator[WindowVectors]:
    with console.progress("embedded", total=sum(map(len, parts)), unit="windows") as progress:
        for windows in parts:
            for piece in embedder.embed(windows):
                yield piece
                progress.advance(len(piece.vectors))


def _with_tracks(
    settings: EmbedSettings, channels: Sequence[Channel], table: ResolvedChannels
) -> list[Channel]:
    """The channels of the table, with the filters, units and quality thresholds of the checkpoint's.

    Raises:
        SettingsError: when a table of the user's own lacks a channel, or has another filter or unit.
    """
    named = table.named([channel.name for channel in channels])
    for ours, theirs in zip(channels, named, strict=True):
        for what, own, other in (("filter", ours.band, theirs.band), ("unit", ours.unit, theirs.unit)):
            if settings.channels_yaml is not None and own != other:
                raise SettingsError(
                    f"{table.origin}: the {what} of {ours.name} is {other}, but {settings.checkpoint} was "
                    f"trained on windows with {own}; give the table that these were built with"
                )
    return [
        replace(theirs, band=ours.band, unit=ours.unit, quality_threshold=ours.quality_threshold)
        for ours, theirs in zip(channels, named, strict=True)
    ]


def _embed_recordings(
    embedder: WindowEmbedder,
    source: Source,
    channels: Sequence[Channel],
    counts: _Counts,
    *,
    skip_failed: bool,
) -> Iterator[WindowVectors]:
    """Embed case by case; one recording is held at a time."""
    found = source.survey(channels)
    counts.left_out = {case_id: list(absent) for case_id, absent in found.left_out.items()}
    counts.failed = dict(found.refused)
    cases = found.usable(skip_failed=skip_failed)
    if not cases:
        raise DataError(f"none of {len(found.left_out)} recordings has {', '.join(c.name for c in channels)}")
    with (
        console.progress("embedded", total=len(cases), unit="cases") as progress,
        prefetch_cases(source, [case.case_id for case in cases]),
    ):
        for case in cases:
            try:
                recording = source.read(case.case_id, channels)
                windows = embedder.extract(
                    recording, channels=channels, subject_id=case.subject_id or UNKNOWN
                )
            except UNREADABLE as error:
                reason = why_unreadable(case.case_id, error)
                if not skip_failed:
                    raise DataError(f"{reason}; correct this, or leave it out with --skip-failed") from error
                counts.failed[case.case_id] = reason
            else:
                yield from embedder.embed(windows)
            progress.advance(text=f"{counts.windows} windows")
    if not counts.windows:
        raise DataError(
            f"no window of {len(cases)} recordings was kept, and {len(counts.failed)} failed; "
            "`biofound windows` says what is wrong with them, --no-gate keeps windows of bad quality"
        )


def _show(result: dict[str, Any], counts: _Counts, checkpoint: Checkpoint, settings: EmbedSettings) -> None:
    kind = "synthetic" if checkpoint.data.synthetic else "recorded"
    title = f"vectors of {settings.checkpoint}, trained on {kind} data, read-out {settings.readout}"
    columns = ("cases", "subjects", "windows", "hours", "vector length", "seconds")
    row = (
        *(result["cases"], result["subjects"], result["windows"]),
        *(f"{result['hours']:.2f}", result["vector_length"], f"{result['seconds']:.1f}"),
    )
    console.table(title, columns, [row], numbers=columns)
    show_left_out(counts.left_out, counts.failed)
    console.note(f"written: {settings.output}")
