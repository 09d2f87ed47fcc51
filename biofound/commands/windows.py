"""`biofound windows`: build a window store from recordings, or inspect one."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from biofound import console
from biofound.commands.recordings import open_recordings
from biofound.data.build import CaseResult, FailedCasesError, build_windows
from biofound.data.channels import Channel
from biofound.data.conditioning import design
from biofound.data.integrity import QUANTILES, StoreSummary, inspect_store, splits_in
from biofound.data.sources import Source
from biofound.data.splits import SPLITS, SplitName, Splits, load_splits, wanted_splits
from biofound.data.store import INDEX_NAME, StoreIndex, StoreWindows, random_windows
from biofound.errors import DataError, SettingsError
from biofound.figures import draw_windows
from biofound.files import path_to_text
from biofound.options import Invocation, Terminated, ending_on_sigterm
from biofound.settings import WindowsSettings, resolve_channels

PICTURE_ROWS = 12
TIMING_ROWS = 20

Store = tuple[Path, StoreIndex | None]
"""The directory of a split's store, and its index where that is not on disk, as some cases failed."""


def execute(invocation: Invocation[WindowsSettings]) -> None:
    """Build the stores asked for (with `inspect` none), and show what they hold."""
    settings = invocation.settings
    failures: list[str] = []
    if settings.inspect is None:
        stores, failures = _build_stores(settings)
    elif (settings.inspect / INDEX_NAME).is_file():
        stores = [(settings.inspect, None)]
    else:
        stores = [(settings.inspect / name, None) for name in splits_in(settings.inspect)]
    if stores:
        _show(invocation, stores)
    if failures:
        raise DataError("\n".join(failures))


def _show(invocation: Invocation[WindowsSettings], stores: Sequence[Store]) -> None:
    """Print what the stores hold, and draw the picture that was asked for."""
    settings = invocation.settings
    summaries = [inspect_store(directory, index) for directory, index in stores]
    if invocation.json:
        console.print_json(
            {s.split: {**asdict(s), "directory": path_to_text(s.directory)} for s in summaries}
        )
    else:
        _show_stores(summaries)
        _show_dropped(summaries)
        _show_quality(summaries)
        _show_timing(summaries)
        for summary in summaries:
            if summary.failed_cases:
                failed = ", ".join(summary.failed_cases)
                console.warning(f"{summary.split}: left out, as they failed: {failed}")
    if settings.picture is not None:
        _draw_stores(settings.picture, stores, seed=settings.picture_seed)
        console.note(f"written: {settings.picture}")


# ---------------------------------------------------------------------------------------------------------
# Building


def _build_stores(settings: WindowsSettings) -> tuple[list[Store], list[str]]:
    """Build the store of each split asked for; one that fails does not stop the next.

    Returns:
        the stores, also of splits some of whose cases failed; and a message for each split that failed.
    """
    splits = load_splits(settings.split_file)
    channels = resolve_channels(settings.channels_yaml, settings.section).channels
    _refuse_unfit_channels(settings, splits, channels)
    source = _open_source_of(splits, settings)
    builds = {  # all are checked before the first begins
        split: build_windows(
            source=source,
            entries=splits.of(split),
            split=split,
            channels=channels,
            sfreq=settings.sfreq,
            window_seconds=settings.window_seconds,
            max_gap_seconds=settings.max_gap_seconds,
            dtype=settings.dtype,
            motion_gate=settings.motion_gate,
            outdir=settings.outdir,
            workers=settings.workers,
            scheduler=settings.scheduler,
            skip_failed=settings.skip_failed,
            overwrite=settings.overwrite,
        )
        for split in _chosen_splits(splits, settings)
    }
    stores: list[Store] = []
    failures = []
    for split, results in builds.items():
        directory = settings.outdir / split
        try:
            with ending_on_sigterm(), closing(results):
                show_build_progress(
                    split, results, total=len(splits.of(split)), skip_failed=settings.skip_failed
                )
            stores.append((directory, None))
        except FailedCasesError as failure:
            failures.append(str(failure))
            if failure.index.totals.windows:
                stores.append((directory, failure.index))
        except DataError as failure:
            failures.append(str(failure))
        except (KeyboardInterrupt, Terminated):
            console.note("finished cases are kept: rerun the same command to resume")
            raise
    return stores, failures


def _chosen_splits(splits: Splits, settings: WindowsSettings) -> tuple[SplitName, ...]:
    """The splits to build. With `all` those that have cases; of the others it says that they are empty."""
    if settings.split != "all":
        return (settings.split,)
    wanted = wanted_splits(splits.fractions)
    if skipped := [name for name in SPLITS if name not in wanted]:
        shares = ",".join(f"{share:g}" for share in splits.fractions)
        console.note(f"split {', '.join(skipped)}: empty, as the fractions are {shares}; no store is built")
    for name in skipped:
        if (settings.outdir / name / INDEX_NAME).is_file():
            raise DataError(
                f"{settings.outdir / name}: holds the windows of other splits, but {settings.split_file} has "
                f"nobody in {name}; use another --outdir, or remove that directory"
            )
    return wanted


def _refuse_unfit_channels(settings: WindowsSettings, splits: Splits, channels: Sequence[Channel]) -> None:
    """Refuse, before anything is written, channels that the cases lack or whose band the rate cannot hold."""
    absent = [channel.name for channel in channels if channel.name not in splits.channels]
    if absent:
        raise DataError(
            f"{settings.split_file}: its cases were chosen for {', '.join(splits.channels)}, "
            f"not for {', '.join(absent)}; run biofound prepare with --section {settings.section}"
        )
    for channel in channels:
        try:
            design(channel.band, sfreq=settings.sfreq)
        except SettingsError as problem:
            raise SettingsError(f"channel {channel.name}: {problem}") from problem


def _open_source_of(splits: Splits, settings: WindowsSettings) -> Source:
    description: dict[str, Any] = dict(splits.source)
    if settings.vitaldb_url is not None and description["name"] == "vitaldb":
        description["base_url"] = settings.vitaldb_url
    source = open_recordings(description)
    if source.version() != splits.dataset_version:
        console.warning(
            f"the recordings have changed since the splits were made (now {source.version()}, then "
            f"{splits.dataset_version}); run biofound prepare again to include new ones"
        )
    return source


def show_build_progress(
    split: str, results: Iterable[CaseResult], *, total: int, skip_failed: bool = False
) -> None:
    """Take the results of a split's cases one by one, and show the windows and hours kept so far."""
    windows, hours, failed = 0, 0.0, 0
    with console.progress(f"windows of {split}", total=total, unit="cases") as progress:
        for result in results:
            windows += result.windows
            hours += result.hours
            if result.status == "failed":
                failed += 1
                if skip_failed:  # else the error at the end says it
                    progress.line(f"left out: {result.error}")
            text = f"{windows} windows, {hours:.1f} h kept"
            progress.advance(text=f"{text}, {failed} failed" if failed else text)


# ---------------------------------------------------------------------------------------------------------
# Showing


def _show_stores(summaries: Sequence[StoreSummary]) -> None:
    columns = ("split", "cases", "subjects", "windows", "kept", "kept %", "hours kept")
    rows = [
        (
            summary.split,
            summary.cases,
            summary.subjects,
            summary.candidates,
            summary.windows,
            f"{100 * summary.windows / max(summary.candidates, 1):.1f}",
            f"{summary.hours:.2f}",
        )
        for summary in summaries
    ]
    kinds = sorted({"synthetic" if summary.synthetic else "real" for summary in summaries})
    first = summaries[0]
    title = (
        f"windows of {first.window_seconds:g} s at {first.sfreq:g} Hz, {', '.join(first.channels)} "
        f"({' and '.join(kinds)} recordings)"
    )
    console.table(title, columns, rows, numbers=columns[1:])


def _show_dropped(summaries: Sequence[StoreSummary]) -> None:
    rows = [
        (summary.split, reason, channel, count)
        for summary in summaries
        for reason, counts in summary.dropped.items()
        for channel, count in counts.items()
    ]
    if rows:
        columns = ("split", "reason", "channel", "windows")
        title = "dropped windows, each under the first test it failed"
        console.table(title, columns, rows, numbers=("windows",))


def _show_quality(summaries: Sequence[StoreSummary]) -> None:
    rows = [
        (summary.split, channel, *(f"{value:.2f}" for value in values))
        for summary in summaries
        for channel, values in summary.quality.items()
    ]
    names = [f"{100 * quantile:g} %" for quantile in QUANTILES]
    if rows:
        title = "quality quantiles of the kept windows (0 bad, 1 good)"
        console.table(title, ("split", "channel", *names), rows, numbers=names)


def _show_timing(summaries: Sequence[StoreSummary]) -> None:
    rows = [
        (
            summary.split,
            case_id,
            channel,
            values["track"],
            f"{values['header_sfreq']:g}",
            f"{values['sfreq']:.6g}",
            values["bridged_samples"],
            values["overlapping_samples"],
            values["doubtful_samples"],
        )
        for summary in summaries
        for case_id, channels in summary.timing.items()
        for channel, values in channels.items()
    ]
    if not rows:
        return
    counted = ("bridged", "contradicting", "doubtful")
    columns = ("split", "case", "channel", "track", "header Hz", "true Hz", *counted)
    title = (
        "recordings whose clock drifts, or with samples that are bridged (many), contradict each other, or "
        "have a doubtful time: a long packet at the end, stamped with its start or with its end"
    )
    console.table(title, columns, rows[:TIMING_ROWS], numbers=columns[4:])
    if len(rows) > TIMING_ROWS:
        console.note(f"and {len(rows) - TIMING_ROWS} more: --inspect with --json lists all")


def _draw_stores(path: Path, stores: Sequence[Store], *, seed: int) -> None:
    """Draw random windows into the PNG `path`, as many of each split's store."""
    opened = [StoreWindows(directory, index) for directory, index in stores]
    first = opened[0]
    if any((windows.channels, windows.sfreq) != (first.channels, first.sfreq) for windows in opened):
        raise DataError(
            f"{first.directory.parent}: its splits differ in channels or rate; build them alike, or draw one "
            "with --inspect"
        )
    each = max(1, PICTURE_ROWS // len(opened))
    draw_windows(
        path,
        [sample for windows in opened for sample in random_windows(windows, count=each, seed=seed)],
        channels=first.channels,
        units=first.units,
        sfreq=first.sfreq,
        synthetic=first.synthetic,
    )
