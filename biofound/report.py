"""How the commands' results look: as tables on standard error, or as JSON on standard output."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biofound import console

if TYPE_CHECKING:
    from biofound.data.build import CaseResult
    from biofound.data.integrity import StoreSummary
    from biofound.data.sources import Case
    from biofound.data.splits import Splits

_SECONDS_AN_HOUR = 3600


# ---------------------------------------------------------------------------------------------------------
# prepare


def show_splits(path: Path, splits: "Splits", cases: Sequence["Case"], *, json: bool) -> None:
    """Cases, patients and hours of each split; hours are None where the source knows them after reading."""
    from biofound.data.splits import SPLITS

    seconds = {case.case_id: case.duration_s for case in cases}
    result: dict[str, Any] = {"split_file": str(path), "source": dict(splits.source), "splits": {}}
    for name in SPLITS:
        durations = [seconds[case.case_id] for case in splits.of(name)]
        known = [duration for duration in durations if duration is not None]
        result["splits"][name] = {
            "cases": len(durations),
            "subjects": len(splits.subjects(name)),
            "hours": sum(known) / _SECONDS_AN_HOUR if len(known) == len(durations) else None,
        }
    if json:
        console.print_json(result)
        return
    rows = [
        (
            name,
            row["cases"],
            row["subjects"],
            "not known yet" if row["hours"] is None else f"{row['hours']:.2f}",
        )
        for name, row in result["splits"].items()
    ]
    title = f"splits of {_source_name(splits.source)}, mode {splits.mode}, seed {splits.seed}"
    columns = ("split", "cases", "subjects", "hours")
    console.table(title, columns, rows, numbers=columns[1:])
    if splits.case_set not in (None, "all") and splits.mode == "full":
        console.note(f"the case set {splits.case_set} limits these splits; --case-set all takes every case")
    console.note(f"written: {path}")


def _source_name(source: Mapping[str, Any]) -> str:
    root = source.get("root")
    return f"{source['name']} in {root}" if root else f"{source['name']}"


# ---------------------------------------------------------------------------------------------------------
# windows


def follow_cases(split: str, results: Iterable["CaseResult"], *, total: int) -> None:
    """Progress over the cases of one split, with the hours and windows kept so far."""
    windows, hours = 0, 0.0
    with console.progress(f"windows of {split}", total=total, unit="cases") as progress:
        for result in results:
            windows += result.windows
            hours += result.hours
            if result.status == "failed":
                progress.line(f"failed: {result.error}")
            progress.advance(text=f"{windows} windows, {hours:.1f} h kept")


def show_stores(summaries: Sequence["StoreSummary"], *, json: bool) -> None:
    """What each split's store holds, and what was dropped by reason and channel."""
    if json:
        console.print_json({summary.split: _plain(asdict(summary)) for summary in summaries})
        return
    columns = ("split", "cases", "subjects", "windows", "kept", "kept %", "hours")
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
    kinds = {"synthetic" if summary.synthetic else "real" for summary in summaries}
    first = summaries[0]
    title = (
        f"windows of {first.window_seconds:g} s at {first.sfreq:g} Hz, {', '.join(first.channels)} "
        f"({' and '.join(sorted(kinds))} recordings)"
    )
    console.table(title, columns, rows, numbers=columns[1:])
    _show_dropped(summaries)
    _show_quality(summaries)
    for summary in summaries:
        if summary.failed_cases:
            console.warning(f"{summary.split}: left out, as they failed: {', '.join(summary.failed_cases)}")


def _show_dropped(summaries: Sequence["StoreSummary"]) -> None:
    """Each dropped window counts once, under the first test failed and the first channel that failed it."""
    rows = [
        (summary.split, reason, channel, count)
        for summary in summaries
        for reason, counts in summary.dropped.items()
        for channel, count in counts.items()
    ]
    if rows:
        columns = ("split", "reason", "channel", "windows")
        console.table("dropped windows", columns, rows, numbers=("windows",))


def _show_quality(summaries: Sequence["StoreSummary"]) -> None:
    from biofound.data.integrity import QUANTILES

    rows = [
        (summary.split, channel, *(f"{value:.2f}" for value in values))
        for summary in summaries
        for channel, values in summary.quality.items()
    ]
    names = [f"{100 * quantile:g} %" for quantile in QUANTILES]
    if rows:
        console.table("quality of the kept windows", ("split", "channel", *names), rows, numbers=names)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
