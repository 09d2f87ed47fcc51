"""The page of a report: charts and tables from the data of its runs, as one self-contained HTML file."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from biofound import __version__
from biofound.core.run_files import RECONSTRUCTIONS
from biofound.data.dropped import DroppedWindow
from biofound.report_charts import (
    EDGES,
    HEIGHT,
    SIGNAL_HEIGHT,
    WIDTH,
    Chart,
    Series,
    SignalPlot,
    by_bins,
    line_chart,
    number,
    signal_plot,
)
from biofound.report_data import (
    History,
    Key,
    Probe,
    RunData,
    Verification,
    differing_settings,
    text_of,
)

if TYPE_CHECKING:
    from biofound.commands.report_examples import Reconstructions

MARKER = '<meta name="generator" content="biofound report'
"""What a report holds within its first `MARKER_WITHIN` bytes."""
MARKER_WITHIN = 1000
EARLIER_DRAWN = 5
"""Earlier runs, the latest ones, whose curves are drawn."""
MAX_PICTURE_BYTES = 1_500_000
"""Size of a picture of a run up to which it is put into the page."""
DASHES = ("strong", "thin", "dashed", "dotted", "dash-dot")
TITLES = {
    "loss": "Loss",
    "msm": "MSM",
    "stft": "STFT",
    "qrs": "QRS",
    "lr": "Learning rate",
    "seconds": "Seconds an epoch",
    "windows_per_second": "Windows a second",
    "variance_ratio": "Variance, reconstruction / signal",
    "latent_rank": "Effective rank of the latents",
}
"""Titles of measures; others are called by their key."""
SECTIONS = {"lr": "losses", "seconds": "speed", "windows_per_second": "speed"}
"""Sections of measures that are not by split."""
NOTED = ("data", "train", "validation", "channels", "model", "device", "resumed", "forced", "output")
"""What a run noted at its start, in the order of the summary; the rest follows."""
SCORES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "pearson": "Pearson r",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "balanced accuracy",
}


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Example windows of one run; each is there, or `..._absent` says why not."""

    reconstructions: "Reconstructions | None" = None
    reconstructions_absent: str = ""
    dropped: Sequence[DroppedWindow] = ()
    dropped_absent: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page shows."""

    runs: Sequence[RunData]
    examples: Sequence[Examples]
    verifications: Mapping[str, Verification]
    probes: Mapping[str, Probe]
    units: Mapping[str, str]
    """Units of settings by name."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Where a measure by epoch is drawn: section, chart, label and style of its line."""

    section: str
    title: str
    label: str
    style: int


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("biofound", "templates"),
        autoescape=True,  # names of cases and paths are other people's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "text": text_of, "size": size_text, "score": score_text}
    return environment.get_template("report.html")


def render(report: Report) -> str:
    """The page as HTML."""
    runs = report.runs
    return _template().render(
        version=__version__,
        marker=MARKER,
        runs=runs,
        title=f"{' and '.join(run.name for run in runs)}: training report",
        summary=_summary(runs),
        charts=_charts(runs),
        settings=_settings(runs, report.units),
        epoch_tables=[_epoch_table(run.history) for run in runs],
        dropped=[_dropped(run) for run in runs],
        examples=[_drawn(examples) for examples in report.examples],
        pictures=[_picture(run, one) for run, one in zip(runs, report.examples, strict=True)],
        verifications=report.verifications,
        probes=report.probes,
        scores=SCORES,
        size=(WIDTH, HEIGHT, SIGNAL_HEIGHT),
        edge=EDGES,
        earlier_drawn=EARLIER_DRAWN,
    )


# ---------------------------------------------------------------------------------------------------------
# Summary and facts


def facts(report: Report) -> list[dict[str, Any]]:
    """What the page says of each run, as plain JSON; None where it was not measured."""
    return [_facts(run, one) for run, one in zip(report.runs, report.examples, strict=True)]


def _facts(run: RunData, examples: Examples) -> dict[str, Any]:
    history, made = run.history, examples.reconstructions
    return {
        "directory": str(run.directory),
        "name": run.name,
        "state": run.state,
        "state_said": run.state_said,
        "epochs_done": run.epochs_done,
        "epochs_set": run.config.epochs(),
        "best_epoch": history.best_epoch if history else None,
        "best_val_loss": history.best("val_loss") if history else None,
        "best_val_msm_by_channel": _best_by_channel(history, "val_msm_by_channel"),
        "constant_guess_msm_by_channel": _best_by_channel(history, "val_monitor", "constant_guess_msm"),
        "seconds": _sum(history, "seconds"),
        "windows_per_second": _middle(history, "windows_per_second"),
        "data_wait": _mean(run.steps.get("data_wait", ())),
        "peak_memory_bytes": run.config.outcome.peak_memory_bytes if run.config.outcome else None,
        "data": {split: [part.model_dump() for part in parts] for split, parts in run.parts.items()},
        "stores": [
            {
                "directory": str(store.directory),
                "split": store.split,
                "same": store.same,
                "candidates": store.candidates,
                "windows": store.windows,
                "dropped": store.dropped,
            }
            for store in run.stores
        ],
        "settings": {name: setting.model_dump() for name, setting in run.config.settings.items()},
        "earlier_runs": [earlier.name for earlier in run.earlier],
        "reconstructions_absent": examples.reconstructions_absent or None,
        "dropped_absent": examples.dropped_absent or None,
        "reconstructions": None
        if made is None
        else {
            "windows_scored": made.scored,
            "msm_quantiles": made.quantiles,
            "examples": {one.rank: {"case": one.case_id, "msm": one.msm} for one in made.ranked},
        },
        "dropped_examples": [
            {"reason": one.reason, "channel": one.channel, "case": one.case_id, "start_s": one.start_s}
            for one in examples.dropped
        ],
    }


def _best_by_channel(history: History | None, *prefix: str) -> dict[str, float | None] | None:
    if history is None or not history.under(*prefix):
        return None
    return {name: history.best(*prefix, name) for name in history.under(*prefix)}


def _known(history: History | None, name: str) -> list[float]:
    column = history.columns.get((name,), ()) if history else ()
    return [value for value in column if value is not None]


def _sum(history: History | None, name: str) -> float | None:
    values = _known(history, name)
    return sum(values) if values else None


def _middle(history: History | None, name: str) -> float | None:
    values = _known(history, name)
    return median(values) if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _summary(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """Rows of the first table: what, and a cell for each run."""
    rows = [("state", [f"{run.state}: {run.state_said}" for run in runs])]
    noted = dict.fromkeys(name for run in runs for name in run.config.resolved)
    names = [*(name for name in NOTED if name in noted), *(name for name in noted if name not in NOTED)]
    rows += [(name, [run.config.resolved.get(name, "-") for run in runs]) for name in names]
    rows.append(("epochs", [_epochs(run) for run in runs]))
    rows.append(("best epoch", [_best(run.history) for run in runs]))
    channels = dict.fromkeys(
        name for run in runs if run.history for name in run.history.under("val_msm_by_channel")
    )
    rows += [(f"MSM of {name}, best epoch", [_msm(run.history, name) for run in runs]) for name in channels]
    rows.append(("time", [_time(run) for run in runs]))
    rows.append(("speed", [_speed(run) for run in runs]))
    rows.append(("peak memory", [_memory(run) for run in runs]))
    return rows


def _epochs(run: RunData) -> str:
    wanted = run.config.epochs()
    step = run.steps["step"][-1] if run.steps.get("step") else None
    text = f"{run.epochs_done} done" if wanted is None else f"{run.epochs_done} of {wanted} done"
    return text if step is None else f"{text}, last step noted {number(step)}"


def _best(history: History | None) -> str:
    if history is None or history.best_epoch is None:
        return "none yet"
    return f"{history.best_epoch}, validation loss {number(history.best('val_loss'))}"


def _msm(history: History | None, channel: str) -> str:
    if history is None or history.best_epoch is None:
        return "not measured"
    value, guess = (
        history.best(*key, channel)
        for key in (("val_msm_by_channel",), ("val_monitor", "constant_guess_msm"))
    )
    copied = history.best("val_monitor", "copy_patch_msm", channel)
    return f"{number(value)} (constant guess {number(guess)}, copy of the nearest patch {number(copied)})"


def _time(run: RunData) -> str:
    seconds = _sum(run.history, "seconds")
    return "not measured" if seconds is None else f"{duration_text(seconds)} in {run.epochs_done} epochs"


def _speed(run: RunData) -> str:
    rate, waiting = _middle(run.history, "windows_per_second"), _mean(run.steps.get("data_wait", ()))
    if rate is None:
        rate = _mean(run.steps.get("windows_per_second", ()))
    if rate is None:
        return "not measured"
    wait = "" if waiting is None else f", {waiting:.1%} of the time waiting for windows"
    return f"{rate:.0f} windows a second{wait}"


def _memory(run: RunData) -> str:
    outcome = run.config.outcome
    if outcome is None:
        return "not measured yet" if run.state == "running" else "not measured"
    names = {"process": "resident, mapped window files included", "gpu": "on the GPU"}
    sizes = outcome.peak_memory_bytes.items()
    return "; ".join(f"{size_text(size)} {names.get(name, name)}" for name, size in sizes if size is not None)


def size_text(size: float) -> str:
    """Bytes in decimal units."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.3g} {unit}"
    return f"{size:.0f} bytes"


def score_text(value: float | None) -> str:
    """A score in three digits; a dash for none."""
    return "-" if value is None else f"{value:.3g}"


def duration_text(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, one in (("h", 3600), ("min", 60)):
        if seconds >= 2 * one:
            return f"{seconds / one:.1f} {unit}"
    return f"{seconds:.0f} s"


# ---------------------------------------------------------------------------------------------------------
# Charts


def _charts(runs: Sequence[RunData]) -> dict[str, list[Chart]]:
    """The charts of each section; with a single run the earlier ones of the same place are in them too."""
    found: dict[str, dict[str, list[Series]]] = {}
    alone = len(runs) == 1
    for run, color in zip(runs, ("a", "b"), strict=False):
        if run.history is not None:
            _collect(found, run.history, name="" if alone else run.name, color=color)
    if alone:
        for earlier in runs[0].earlier[:EARLIER_DRAWN]:
            if earlier.history is not None:
                _collect(found, earlier.history, name=earlier.name, color="earlier", only_first=True)
    best = runs[0].history.best_epoch if alone and runs[0].history else None
    charts = {
        section: [
            chart
            for title, series in sorted(by_title.items(), key=lambda item: _order(item[0]))
            # a chart of nothing but earlier runs says nothing of this one
            if any(not one.kind.startswith("earlier") for one in series)
            if (chart := line_chart(title, series, x_label="epoch", mark=best)) is not None
        ]
        for section, by_title in found.items()
    }
    charts["steps"] = _step_charts(runs)
    return charts


def _order(title: str) -> tuple[int, str]:
    first = ("Loss", "MSM", "STFT", "Hidden R", "Variance", "Effective", "Windows", "Seconds")
    place = next((place for place, word in enumerate(first) if title.startswith(word)), len(first))
    return (len(first) + 1 if title == TITLES["lr"] else place), title


def _collect(
    found: dict[str, dict[str, list[Series]]],
    history: History,
    *,
    name: str,
    color: str,
    only_first: bool = False,
) -> None:
    """Put a history's measures into `found`: section to title to series."""
    x = [float(epoch) for epoch in history.epochs if epoch is not None]
    measured = [
        (measure, column)
        for key, column in history.columns.items()
        if (measure := measure_of(key)) is not None
    ]
    for measure, column in sorted(measured, key=lambda pair: pair[0].style):
        if only_first and (measure.style or measure.section != "losses"):
            continue
        target = history.words.get("val_probe.target")
        title = f"{measure.title} of {target}" if measure.section == "probe" and target else measure.title
        label = ", ".join(word for word in (name, measure.label) if word)
        kind = "earlier thin" if only_first else f"{color} {DASHES[measure.style % len(DASHES)]}"
        series = Series(label=label, kind=kind, x=x, y=column)
        found.setdefault(measure.section, {}).setdefault(title, []).append(series)


def measure_of(key: Key) -> Measure | None:
    """Where a measure is drawn, by its keys in the history; one that nobody foresaw under its own name.

    None for one that is far from the others and the same in every epoch: the summary has it.
    """
    match key:
        case ("val_monitor", "constant_guess_msm", channel):
            return Measure(section="losses", title=f"MSM: {channel}", label="constant guess", style=2)
        case ("val_monitor", "copy_patch_msm", _):
            return None
        case ("val_monitor", "r_peak_recall" | "r_peak_precision" as which):
            found = which == "r_peak_recall"
            label = "share of the true ones found" if found else "share of the predicted ones that are right"
            return Measure(
                section="reconstruction",
                title="Hidden R peaks within 50 ms",
                label=label,
                style=0 if found else 2,
            )
        case ("val_monitor", *rest):
            return Measure(section="reconstruction", title=_title(rest), label="validation", style=0)
        case ("val_probe", "error"):
            return Measure(section="probe", title="Error of the probe", label="encoder", style=0)
        case ("val_probe", "constant_error"):
            return Measure(section="probe", title="Error of the probe", label="constant guess", style=2)
        case (name, *rest) if name.startswith(("train_", "val_")):
            split, _, what = name.partition("_")
            label, style = ("train", 1) if split == "train" else ("validation", 0)
            return Measure(section="losses", title=_title([what, *rest]), label=label, style=style)
    return Measure(section=SECTIONS.get(key[0], "other"), title=_title(key), label="", style=0)


def _title(keys: Sequence[str]) -> str:
    first, *rest = keys
    if first == "further" and rest:
        term = " ".join(rest)
        return f"{TITLES.get(term, term.capitalize())} term"
    name = first.removesuffix("_by_channel")
    title = TITLES.get(name, name.replace("_", " "))
    return f"{title}: {' '.join(rest)}" if rest else title


def _step_charts(runs: Sequence[RunData]) -> list[Chart]:
    charts = []
    shown: tuple[tuple[str, str, Literal["mean", "largest"]], ...] = (
        ("loss", "Loss of the batches", "mean"),
        ("gradient_norm", "Gradient norm before clipping", "largest"),
        ("data_wait", "Share of the time waiting for windows", "mean"),
    )
    for name, title, take in shown:
        series, widths = [], set()
        for run, color in zip(runs, ("a", "b"), strict=False):
            if name in run.steps:
                places, values, width = by_bins(run.steps[name], take)
                widths.add(width)
                x = [float(run.steps["step"][place] or 0) for place in places]
                label = run.name if len(runs) > 1 else ""
                series.append(Series(label=label, kind=f"{color} strong", x=x, y=values))
        many = max(widths, default=1)
        note = f"each point is the {take} of {many} noted steps" if many > 1 else ""
        if (chart := line_chart(title, series, x_label="step", note=note)) is not None:
            charts.append(chart)
    return charts


def _epoch_table(history: History | None) -> tuple[list[str], list[list[str]]] | None:
    """Every measure by epoch: the names of the columns, and a row an epoch."""
    if history is None:
        return None
    names = ["epoch", *(" ".join(key) for key in history.columns)]
    columns = [history.epochs, *history.columns.values()]
    return names, [[number(value) for value in row] for row in zip(*columns, strict=True)]


# ---------------------------------------------------------------------------------------------------------
# Settings, windows


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """A setting: a (value, origin) for each run, None where a run does not have it."""

    name: str
    unit: str
    cells: tuple[tuple[str, str] | None, ...]


def _settings(runs: Sequence[RunData], units: Mapping[str, str]) -> dict[str, list[SettingRow]]:
    """The settings in which the runs differ, those that were set, and those at their defaults."""
    groups: dict[str, list[SettingRow]] = {"differ": [], "set": [], "default": []}
    differing = differing_settings(runs[0].config, runs[-1].config)
    for name in dict.fromkeys(name for run in runs for name in run.config.settings):
        given = [run.config.settings.get(name) for run in runs]
        row = SettingRow(
            name=name,
            unit=units.get(name, ""),
            cells=tuple(None if one is None else (text_of(one.value), one.origin) for one in given),
        )
        is_set = any(one is not None and one.origin != "default" for one in given)
        groups["differ" if name in differing or None in given else "set" if is_set else "default"].append(row)
    return groups


@dataclass(frozen=True, kw_only=True)
class DroppedRow:
    """Windows dropped for a reason in a channel, and their share of all windows before the tests."""

    reason: str
    channel: str
    windows: int
    share: float


def _dropped(run: RunData) -> list[tuple[Any, list[DroppedRow]]]:
    """Each store of a run with its dropped windows, the most frequent reason first."""
    found = []
    for store in run.stores:
        rows = [
            DroppedRow(
                reason=reason, channel=channel, windows=count, share=count / max(store.candidates or 0, 1)
            )
            for reason, row in (store.dropped or {}).items()
            for channel, count in row.items()
        ]
        found.append((store, sorted(rows, key=lambda row: -row.windows)))
    return found


@dataclass(frozen=True, kw_only=True)
class DrawnWindow:
    """A window: its captions, and a plot a channel."""

    heading: str
    caption: str
    plots: tuple[SignalPlot, ...]


def _drawn(examples: Examples) -> dict[str, Any]:
    made = examples.reconstructions
    return {
        "reconstructions": made,
        "reconstructions_absent": examples.reconstructions_absent,
        "ranked": [] if made is None else [_ranked(made, one) for one in made.ranked],
        "dropped": [_dropped_window(one) for one in examples.dropped],
        "dropped_absent": examples.dropped_absent,
    }


def _ranked(made: "Reconstructions", one: Any) -> DrawnWindow:
    window, seconds = one.window, one.window.signal.shape[1] / made.sfreq
    plots = []
    for row, (channel, msm) in enumerate(one.msm_by_channel.items()):
        shown = window.reconstruction[row].copy()
        shown[~window.hidden] = float("nan")
        lines = [("signal", window.signal[row]), ("made", shown)]
        title = f"{channel}, MSM {number(msm)}"
        unit = made.units.get(channel, "")
        plots.append(signal_plot(title, lines, unit=unit, seconds=seconds, hidden=window.hidden))
    return DrawnWindow(
        heading=f"{one.rank.capitalize()} window: MSM {number(one.msm)}",
        caption=_place(one.case_id, one.start_s),
        plots=tuple(plots),
    )


def _dropped_window(one: DroppedWindow) -> DrawnWindow:
    lines = {"as recorded": one.recorded, "as filtered": one.filtered}
    plots = [
        signal_plot(f"{one.channel} {how}", [("signal", samples)], unit=one.unit, seconds=one.seconds)
        for how, samples in lines.items()
    ]
    return DrawnWindow(
        heading=f"{one.reason.replace('_', ' ').capitalize()}: {one.channel}",
        caption=_place(one.case_id, one.start_s),
        plots=tuple(plots),
    )


def _place(case_id: str, start_s: float) -> str:
    known = start_s == start_s  # NaN: the windows do not say
    return f"case {case_id}, at {start_s:g} s" if known else f"case {case_id}"


def _picture(run: RunData, examples: Examples) -> str | None:
    """The picture that `pretrain` drew, as a data URI, where the windows cannot be drawn anew."""
    path: Path = run.directory / RECONSTRUCTIONS
    if examples.reconstructions is not None or not path.is_file():
        return None
    content = path.read_bytes()
    if len(content) > MAX_PICTURE_BYTES:
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
