"""How the commands' results look: as tables on standard error, or as JSON on standard output."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biofound import console

if TYPE_CHECKING:
    from biofound.checks import Check
    from biofound.commands.inflate import Inflated
    from biofound.commands.pretrain import Pretraining
    from biofound.core.history import EpochMetrics, Losses, TrainingEvent
    from biofound.data.build import CaseResult
    from biofound.data.integrity import StoreSummary
    from biofound.data.sources import Case
    from biofound.data.splits import Splits

_SECONDS_AN_HOUR = 3600
_NAMED = 5
"""So many cases are named in a line."""


# ---------------------------------------------------------------------------------------------------------
# prepare


def show_splits(
    path: Path,
    splits: "Splits",
    cases: Sequence["Case"],
    left_out: Mapping[str, Sequence[str]],
    *,
    json: bool,
) -> None:
    """Cases, patients and hours of each split; hours are None where the source knows them after reading.

    `left_out` are the recordings that are no cases, with the channels they lack.
    """
    from biofound.data.splits import SPLITS

    seconds = {case.case_id: case.duration_s for case in cases}
    result: dict[str, Any] = {"split_file": str(path), "source": dict(splits.source), "splits": {}}
    result["left_out"] = {case_id: list(absent) for case_id, absent in left_out.items()}
    for name in SPLITS:
        durations = [seconds[case.case_id] for case in splits.of(name)]
        known = [duration for duration in durations if duration is not None]
        result["splits"][name] = {
            "cases": len(durations),
            "subjects": len(splits.subjects(name)),
            "hours": sum(known) / _SECONDS_AN_HOUR if len(known) == len(durations) else None,
        }
    if splits.mode == "full":
        _say_what_limits(splits.case_set)
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
    title = f"splits by patient: source {_source_name(splits.source)}, mode {splits.mode}, seed {splits.seed}"
    columns = ("split", "cases", "subjects", "hours")
    console.table(title, columns, rows, numbers=columns[1:])
    if left_out:
        named = [f"{case_id} (no {', '.join(absent)})" for case_id, absent in left_out.items()]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        console.note(f"left out, as they lack a channel: {', '.join(named[:_NAMED])}{more}")
    console.note(f"written: {path}")


def _say_what_limits(case_set: str | None) -> None:
    """`full` is not all of VitalDB unless it is told so."""
    from biofound.data.sources.vitaldb import case_ids_in

    members = None if case_set is None else case_ids_in(case_set)
    if members is not None:
        console.note(
            f"the case set {case_set}, {len(members):,} cases, limits these splits; "
            "--case-set all takes every case of VitalDB"
        )


def _source_name(source: Mapping[str, Any]) -> str:
    root = source.get("root")
    return f"{source['name']} in {root}" if root else f"{source['name']}"


# ---------------------------------------------------------------------------------------------------------
# windows


def follow_cases(
    split: str, results: Iterable["CaseResult"], *, total: int, skip_failed: bool = False
) -> None:
    """Progress over the cases of one split, with the hours and windows kept so far."""
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


def show_stores(summaries: Sequence["StoreSummary"], *, json: bool) -> None:
    """What each split's store holds, and what was dropped by reason and channel."""
    if json:
        console.print_json({summary.split: _plain(asdict(summary)) for summary in summaries})
        return
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
        title = "dropped windows, each under the first test it failed"
        console.table(title, columns, rows, numbers=("windows",))


def _show_quality(summaries: Sequence["StoreSummary"]) -> None:
    from biofound.data.integrity import QUANTILES

    rows = [
        (summary.split, channel, *(f"{value:.2f}" for value in values))
        for summary in summaries
        for channel, values in summary.quality.items()
    ]
    names = [f"{100 * quantile:g} %" for quantile in QUANTILES]
    if rows:
        title = "quality (0 bad, 1 good) of the kept windows: so many of them have at most"
        console.table(title, ("split", "channel", *names), rows, numbers=names)


# ---------------------------------------------------------------------------------------------------------
# pretrain


def show_facts(run: "Pretraining") -> None:
    """What the run is about to do, before its first step."""
    console.table("pretraining", ("what", "value"), list(run.summary.items()))


def follow_training(run: "Pretraining", reports: Iterable["TrainingEvent"]) -> None:
    """Progress over the steps, and a line an epoch."""
    from biofound.core.history import StepMetrics, WriteFailure

    trainer = run.trainer
    done = trainer.step
    with console.progress("training", total=trainer.total_steps, unit="steps") as progress:
        progress.advance(done)
        for report in reports:
            if isinstance(report, StepMetrics):
                text = f"loss {report.loss:.4f}  {report.windows_per_second:.0f} windows/s"
                progress.advance(report.step - done, text=f"epoch {report.epoch}  {text}")
                done = report.step
            elif isinstance(report, WriteFailure):
                progress.line(f"WARNING: {report.path} not written: {report.error}; the run goes on")
            else:
                progress.line(_epoch_line(report, trainer.config.epochs))


def _epoch_line(report: "EpochMetrics", epochs: int) -> str:
    parts = [
        f"{name} {losses.loss:.4f} (MSM {losses.msm:.4f}, STFT {losses.stft:.4f})"
        for name, losses in (("train", report.train), ("val", report.val))
    ]
    text = f"epoch {report.epoch:>{len(str(epochs))}}/{epochs}  {'  '.join(parts)}  lr {report.lr:.2e}"
    return f"{text}  {report.seconds:.0f} s{'  * best' if report.best else ''}"


def show_training(run: "Pretraining", baseline: "Losses", *, json: bool) -> None:
    """How the run ended: its best epoch beside a constant guess, and the files it left."""
    trainer = run.trainer
    reports = trainer.epochs_done
    best = max((report for report in reports if report.best), key=lambda report: report.epoch)
    kind = "synthetic" if run.synthetic else "recorded"
    files = sorted(path.name for path in trainer.output_dir.iterdir() if path.is_file())
    if json:
        result = {
            "output_dir": str(trainer.output_dir),
            "synthetic": run.synthetic,
            "epochs": len(reports),
            "best_epoch": best.epoch,
            "train": asdict(best.train),
            "val": asdict(best.val),
            "constant_guess": asdict(baseline),
            "seconds": sum(report.seconds for report in reports),
            "files": files,
        }
        console.print_json(result)
        return
    shown = {"train": best.train, "validation": best.val, "validation, constant guess": baseline}
    rows = [
        (
            name,
            *(f"{value:.4f}" for value in (losses.loss, losses.msm, losses.stft)),
            *(f"{losses.msm_by_channel[channel]:.4f}" for channel in run.channels),
        )
        for name, losses in shown.items()
    ]
    columns = (f"epoch {best.epoch}", "loss", "MSM", "STFT", *(f"MSM {channel}" for channel in run.channels))
    title = f"epoch {best.epoch} of {len(reports)} was best, on {kind} data"
    console.table(title, columns, rows, numbers=columns[1:])
    console.note(f"in {trainer.output_dir}: {', '.join(files)}")


# ---------------------------------------------------------------------------------------------------------
# verify and inflate


def show_checks(found: Sequence["Check"], *, json: bool) -> None:
    """The table of checks, and how many failed."""
    failed = [check.name for check in found if not check.passed]
    if json:
        console.print_json({"passed": not failed, "checks": [asdict(check) for check in found]})
        return
    console.checks("biofound verify", [(check.name, check.passed, check.measured) for check in found])
    told = f"{len(failed)} failed: {', '.join(failed)}" if failed else "all passed"
    console.note(f"{len(found)} checks, {told}")


def show_inflation(result: "Inflated", *, json: bool) -> None:
    """The status of every tensor; those copied in one row."""
    transfers = result.inflation.transfers
    if json:
        console.print_json(
            {
                "output": str(result.path),
                "channels": {"before": list(result.before), "after": list(result.after)},
                "synthetic": result.synthetic,
                "tensors": [_plain(asdict(item)) for item in transfers],
            }
        )
        return
    copied = [item for item in transfers if item.status == "copied"]
    rows = [("copied", f"{len(copied)} tensors of the encoder", _numbers(copied))]
    rows += [
        (item.status, item.name, _change(item.before, item.after))
        for item in transfers
        if item.status != "copied"
    ]
    title = f"inflated from {', '.join(result.before)} to {', '.join(result.after)}"
    console.table(title, ("status", "tensor", "shape"), rows)
    counts = ", ".join(
        f"{sum(item.status == status for item in transfers)} {status}"
        for status in ("copied", "inflated", "new", "dropped")
    )
    kind = "synthetic" if result.synthetic else "recorded"
    console.note(f"{counts}; pretrained on {kind} data")
    console.note(f"written: {result.path}")


def _numbers(transfers: Sequence[Any]) -> str:
    return f"{sum(math.prod(item.after) for item in transfers):,} numbers"


def _change(before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> str:
    shapes = ["(" + ", ".join(map(str, shape)) + ")" for shape in (before, after) if shape is not None]
    return " -> ".join(shapes)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
