"""What the program does when it is called: one short function a command.

A command is a settings model (`settings/models.py`) and a body here, under `@add_command(app, Model)`.
Bodies import what they need themselves: `biofound --help` must answer at once, and torch takes seconds.
"""

import signal
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import biofound
from biofound import console, report
from biofound.data.channels import Channel
from biofound.errors import DataError, SettingsError
from biofound.files import refused_as_data_error
from biofound.options import INTERRUPTED, Invocation, Terminated, add_command, ending_on_sigterm
from biofound.settings import (
    InflateSettings,
    PrepareSettings,
    PretrainSettings,
    VerifySettings,
    WindowsSettings,
    resolve_channels,
)
from biofound.settings.models import DEFAULT_STORE

if TYPE_CHECKING:
    from biofound.data.sources import Source
    from biofound.data.splits import Splits

app = typer.Typer(
    name="biofound",
    help=biofound.__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help answers sooner, and reads [mV] as it stands
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """The console script."""
    app(prog_name="biofound")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"biofound {biofound.__version__}")
        raise typer.Exit


@app.callback()
def _before_every_command(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    del version
    ctx.obj = {"debug": debug}


@add_command(app, PrepareSettings)
def prepare(run: Invocation[PrepareSettings]) -> None:
    """List the cases of a source and split them by patient."""
    from biofound.data.sources import SelectiveSource
    from biofound.data.sources.registry import open_source
    from biofound.data.splits import make_splits, save_splits

    settings = run.settings
    channels = resolve_channels(settings.channels_yaml, settings.section).channels
    source = open_source(name=settings.source, **settings.source_description())
    cases = source.cases(channels)
    splits = make_splits(
        cases,
        mode=settings.mode,
        seed=settings.seed,
        source=source.describe(),
        dataset_version=source.version(),
        channels=[channel.name for channel in channels],
        case_set=settings.case_set,
    )
    path = settings.output / f"splits_{settings.mode}.json"
    with refused_as_data_error(path, choose="--output"):
        save_splits(path, splits)
    left_out = source.left_out(channels) if isinstance(source, SelectiveSource) else {}
    report.show_splits(path, splits, cases, left_out, json=run.json)


@add_command(app, WindowsSettings)
def windows(run: Invocation[WindowsSettings]) -> None:
    """Cut recordings into windows, or look into a window store."""
    from biofound.data.integrity import inspect_store, splits_in
    from biofound.data.store import INDEX_NAME

    settings = run.settings
    if settings.inspect is not None:
        whole = not (settings.inspect / INDEX_NAME).is_file()
        names = splits_in(settings.inspect) if whole else [""]
        directories = [settings.inspect / name for name in names]
    else:
        directories = _build_stores(settings)
    report.show_stores([inspect_store(directory) for directory in directories], json=run.json)
    if settings.picture is not None:
        from biofound.commands.picture import draw_stores

        draw_stores(settings.picture, directories, seed=settings.picture_seed)
        console.note(f"written: {settings.picture}")


def _build_stores(settings: WindowsSettings) -> list[Path]:
    """Build the store of each split asked for; the directories. What fails in one does not stop the next."""
    from biofound.data.splits import SPLITS, load_splits

    splits = load_splits(settings.split_file)
    channels = resolve_channels(settings.channels_yaml, settings.section).channels
    _refuse_unfit_channels(settings, splits, channels)
    source = _open_source_of(splits, settings)

    from biofound.data.build import build_windows

    chosen = SPLITS if settings.split == "all" else (settings.split,)
    failures = []
    for split in chosen:
        results = build_windows(
            source=source,
            entries=splits.of(split),
            split=split,
            channels=channels,
            sfreq=settings.sfreq,
            window_seconds=settings.window_seconds,
            max_gap_seconds=settings.max_gap_seconds,
            dtype=settings.dtype,
            outdir=settings.outdir,
            workers=settings.workers,
            scheduler=settings.scheduler,
            skip_failed=settings.skip_failed,
        )
        try:
            with ending_on_sigterm(), closing(results):
                report.follow_cases(
                    split, results, total=len(splits.of(split)), skip_failed=settings.skip_failed
                )
        except DataError as failure:
            failures.append(str(failure))
        except (KeyboardInterrupt, Terminated):
            console.note("cases that were done are kept: the same command goes on from here")
            raise
    if failures:
        raise DataError("\n".join(failures))
    return [settings.outdir / split for split in chosen]


def _refuse_unfit_channels(settings: WindowsSettings, splits: "Splits", channels: list[Channel]) -> None:
    """Refuse, before anything is written, channels that the cases lack or whose band the rate cannot hold."""
    absent = [channel.name for channel in channels if channel.name not in splits.channels]
    if absent:
        raise DataError(
            f"{settings.split_file}: its cases were chosen for {', '.join(splits.channels)}, "
            f"not for {', '.join(absent)}; run biofound prepare with --section {settings.section}"
        )
    from biofound.data.conditioning import design

    for channel in channels:
        try:
            design(channel.band, sfreq=settings.sfreq)
        except SettingsError as problem:
            raise SettingsError(f"channel {channel.name}: {problem}") from problem


def _open_source_of(splits: "Splits", settings: WindowsSettings) -> "Source":
    from biofound.data.sources.registry import open_source

    description: dict[str, Any] = dict(splits.source)
    if settings.vitaldb_url is not None and description["name"] == "vitaldb":
        description["base_url"] = settings.vitaldb_url
    source = open_source(**description)
    if source.version() != splits.dataset_version:
        console.warning(
            f"the recordings have changed since the splits were made (they are {source.version()}, and were "
            f"{splits.dataset_version}); to take up new ones, run biofound prepare again"
        )
    return source


@add_command(app, PretrainSettings)
def pretrain(run: Invocation[PretrainSettings]) -> None:
    """Pretrain an encoder on windows by reconstructing hidden patches."""
    from biofound.commands.cohort import EMBEDDED, wants_embedded_cohort
    from biofound.commands.pretrain import draw_figures, open_pretraining, reports_of, stop_on_signals
    from biofound.core.devices import resolve_device
    from biofound.core.distributed import joined_group
    from biofound.core.trainer import LAST

    settings = run.settings
    data_dir = settings.data_dir or DEFAULT_STORE
    with joined_group(resolve_device(settings.device)) as (group, device):
        if wants_embedded_cohort(run.resolved):
            data_dir = settings.output_dir / EMBEDDED
            if group.rank == 0:
                _build_embedded_cohort(settings, data_dir)
            group.wait()
        with stop_on_signals() as received:
            pretraining = open_pretraining(
                run.resolved, data_dir, group=group, device=device, stop=lambda: bool(received)
            )
            trainer = pretraining.trainer
            report.show_facts(pretraining)
            report.follow_training(pretraining, reports_of(pretraining, settings))
        # Who stopped the run may give it seconds only: they are for the checkpoint, which is written.
        baseline = None if trainer.interrupted else trainer.evaluate(baseline=True)
        if group.rank == 0:
            draw_figures(pretraining)
    if baseline is not None:
        report.show_training(pretraining, baseline, json=run.json)
        return
    by = received[0] if received else signal.SIGTERM  # on another rank
    console.note(
        f"stopped by {by.name} after step {trainer.step} of {trainer.total_steps}; saved: "
        f"{settings.output_dir / LAST}; go on with --resume"
    )
    raise typer.Exit(INTERRUPTED if by == signal.SIGINT else 0)


def _build_embedded_cohort(settings: PretrainSettings, directory: Path) -> None:
    from biofound.commands.cohort import build_embedded_cohort

    console.warning(
        f"no --data-dir was given and {DEFAULT_STORE} holds nothing: training on the embedded SYNTHETIC "
        f"cohort, made into {directory}. What comes of it is for trying out, not for recordings of people."
    )
    with ending_on_sigterm():
        for split, cases, results in build_embedded_cohort(settings):
            report.follow_cases(split, results, total=cases)


@add_command(app, VerifySettings)
def verify(run: Invocation[VerifySettings]) -> None:
    """Measure that the parts, a checkpoint and a window store do what they claim."""
    from biofound.commands.verify import run_checks

    found = list(run_checks(run.settings))
    report.show_checks(found, json=run.json)
    if not all(check.passed for check in found):
        raise typer.Exit(1)


@add_command(app, InflateSettings)
def inflate(run: Invocation[InflateSettings]) -> None:
    """Give a pretrained encoder more input channels."""
    from biofound.commands.inflate import run_inflation

    report.show_inflation(run_inflation(run.settings), json=run.json)
