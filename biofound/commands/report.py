"""`biofound report`: one HTML page about a training run, or about two side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from biofound import console
from biofound.commands.inputs import require_writable
from biofound.core.run_files import BEST
from biofound.data.dropped import DroppedWindow, dropped_examples
from biofound.errors import BiofoundError, DataError, SettingsError, write_error_context
from biofound.files import path_from_text, require_checkpoint_file, write_atomically
from biofound.options import Invocation
from biofound.report_data import RunData, read_probe, read_runs, read_verification
from biofound.report_page import MARKER, MARKER_WITHIN, Examples, Report, facts, render
from biofound.settings import COMMANDS, ReportSettings, resolve_channels
from biofound.settings.base import extra_of

MAX_EXAMPLES = 12
"""Dropped windows that are drawn of a run."""


def execute(invocation: Invocation[ReportSettings]) -> None:
    """Read the runs, draw example windows where they can be, and write the page.

    Raises:
        SettingsError: when the output is a directory.
        DataError: when a directory holds no run, a file cannot be read, or the page must not or cannot be
            written.
    """
    settings = invocation.settings
    output = settings.output
    _refuse_other_file(output, overwrite=settings.overwrite)
    runs = read_runs(settings.run)
    report = Report(
        runs=runs,
        verifications={str(path): read_verification(path) for path in settings.verify},
        probes={str(path): read_probe(path) for path in settings.probe},
        examples=[_examples(run, wanted=settings.examples) for run in runs],
        units=_units(),
    )
    page = render(report).encode(errors="backslashreplace")  # names that are not UTF-8
    with write_error_context(output, option="--output"):
        write_atomically(output, lambda file: file.write(page))
    for run, examples in zip(runs, report.examples, strict=True):
        for what, absent in (
            ("reconstructions", examples.reconstructions_absent),
            ("examples of dropped windows", examples.dropped_absent),
        ):
            if absent and settings.examples:
                console.warning(f"{run.name}: {what} not drawn: {absent}")
    if invocation.json:
        console.print_json({"output": str(output), "bytes": len(page), "runs": facts(report)})
    else:
        for run in runs:
            console.note(f"{run.name}: {run.state}, {run.epochs_done} epochs done")
        console.note(f"written: {output} ({len(page) / 1e6:.2f} MB)")


def _refuse_other_file(output: Path, *, overwrite: bool) -> None:
    """Refuse to replace what is no report, and a place that cannot be written."""
    if output.is_dir():
        raise SettingsError(f"--output {output}: this is a directory; name a file")
    require_writable(output.parent, option="--output")
    if overwrite or not output.exists():
        return
    with output.open("rb") as file:
        if MARKER.encode() not in file.read(MARKER_WITHIN):
            raise DataError(
                f"--output {output}: this file is no report of biofound; name another, or replace it with "
                "--overwrite"
            )


def _units() -> dict[str, str]:
    """The units of the settings of all commands that train, by name."""
    models = [model for model in COMMANDS if model.command in ("pretrain", "finetune")]
    return {
        name: str(extra_of(info, "unit") or "")
        for model in models
        for name, info in model.model_fields.items()
    }


# ---------------------------------------------------------------------------------------------------------
# Example windows


def _examples(run: RunData, *, wanted: bool) -> Examples:
    if not wanted:
        absent = "example windows were switched off (--no-examples)"
        return Examples(reconstructions_absent=absent, dropped_absent=absent)
    dropped: list[DroppedWindow] = []
    reconstructions, reconstructions_absent, dropped_absent = None, "", ""
    try:
        dropped += _dropped(run)
    except (BiofoundError, OSError) as problem:
        dropped_absent = _why(problem)
    try:
        require_checkpoint_file(run.directory / BEST)
        from biofound.commands.report_examples import reconstruct_validation  # torch takes seconds

        reconstructions = reconstruct_validation(run.directory, run.config.directories)
    except (BiofoundError, OSError) as problem:
        reconstructions_absent = _why(problem)
    return Examples(
        reconstructions=reconstructions,
        reconstructions_absent=reconstructions_absent,
        dropped=dropped[:MAX_EXAMPLES],
        dropped_absent=dropped_absent,
    )


def _why(problem: BiofoundError | OSError) -> str:
    if isinstance(problem, OSError):
        return f"{problem.filename}: {problem.strerror}"
    return str(problem).rstrip(".")


def _dropped(run: RunData) -> Iterator[DroppedWindow]:
    """Dropped training windows of the run's stores, where these are still the run's."""
    tracks = _tracks(run)
    for store in run.stores:
        if store.split == "train" and store.dropped and store.same is not False:
            yield from dropped_examples(store.directory / store.split, tracks)


def _tracks(run: RunData) -> dict[str, Sequence[str]]:
    """The tracks of the run's own channel table, else of the built-in one."""
    given = run.config.settings.get("channels_yaml")
    path = None if given is None or given.value is None else path_from_text(str(given.value))
    tables = [resolve_channels(None, "finetune")] if path is None else []
    tables.append(resolve_channels(path, "pretrain"))
    return {channel.name: channel.tracks for table in tables for channel in table.channels}
