"""Time to quality: CPU minutes of pretraining until a probe reads the heart rate well, by recipe.

`python -m tests.benchmarks --only q` pretrains the recipes of configs/ with the real trainer: the plain one
and the default one on Challenge 2015, small_data on the same with synthetic hearts beside it. Every few steps
it probes the heart rate of the BIDMC patients: ridge on the default read-out (q) and on the fused latents
(q2), in folds that no patient crosses. A recipe ends when both errors are small enough, or after `--minutes`
of CPU time; probing does not count. With `--picture FILE` every recipe goes on for its minutes, and the file
shows error over CPU minutes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biofound.commands.pretrain_data import open_training_windows
from biofound.core.history import StepMetrics
from biofound.core.memory import keep_freed_memory
from biofound.core.models import Encoder
from biofound.core.probe import predict_constant
from biofound.core.readout_names import DEFAULT_READOUT
from biofound.core.scores import Outcome, score
from biofound.core.trainer import Trainer
from biofound.settings import PretrainSettings, resolve
from tests.benchmarks.recipes import HeartRateProbe, labelled_with_heart_rate, trainer_of
from tests.benchmarks.timing import Row, in_new_process
from tests.chain import done

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
RECORDS = {"train": DATA / "challenge2015", "probe": DATA / "bidmc"}
FRACTIONS = {"train": "1,0,0", "probe": "0,1,0"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A file of configs/, the steps of its schedule, and what it trains on beside the recordings."""

    config: str
    steps: int
    streams: tuple[str, ...] = ()


RECIPES = {
    "plain": Recipe(config="seed_card.yaml", steps=2000),
    "default": Recipe(config="ssl_pretrain.yaml", steps=1500),
    "small_data": Recipe(config="small_data.yaml", steps=3000, streams=("synthetic:icu",)),
}

ERROR = 3.0
"""Mean over patients of the absolute error of heart rate, in beats a minute, that ends a run."""
TARGET = 4.0
"""How many times less CPU time the default recipe shall take."""
PROBES = 25
"""Probes in a run's steps."""
READOUTS = {"q": DEFAULT_READOUT, "q2": "mean_std"}
"""What is read of an encoder, by the key of its rows: the channels before the fusion, and the latents."""
SEED = 42


@dataclass(frozen=True, kw_only=True)
class Run:
    """The probe's errors of one recipe and read-out, the first before any step."""

    minutes: tuple[float, ...]
    errors: tuple[float, ...]
    steps: int

    @property
    def first_good(self) -> int | None:
        """The first probe whose error was small enough."""
        return next((i for i, error in enumerate(self.errors) if error <= ERROR), None)

    @property
    def time(self) -> float:
        """CPU minutes until the error was small enough, or all of them."""
        return self.minutes[-1 if self.first_good is None else self.first_good]

    def shown(self) -> str:
        """Its error at first, at best and at the end."""
        best = min(range(len(self.errors)), key=lambda i: self.errors[i])
        places = {0: "untrained", best: "best", len(self.errors) - 1: "last"}
        return ", ".join(
            f"{name} {self.errors[i]:.2f} at {self.minutes[i]:.1f} min" for i, name in sorted(places.items())
        )


def quality_rows(
    *, directory: Path, precision: str, threads: int, minutes: float, picture: Path | None = None
) -> list[Row]:
    """For each read-out a row with the ratio, and one a recipe; or a row that says what is missing."""
    what = f"CPU time of pretraining on Challenge 2015 to {ERROR:g} bpm on BIDMC patients, plain / default"
    missing = [str(path) for path in RECORDS.values() if not (path / "RECORDS").is_file()]
    if missing:
        return [Row(key="q", what=what, value=f"no recordings in {', '.join(missing)}: not measured")]
    for name in RECORDS:
        build_windows(name, directory / name)
    runs = {
        name: in_new_process(
            pretrain_and_probe, recipe, directory, precision, threads, minutes, picture is None
        )
        for name, recipe in RECIPES.items()
    }
    if picture is not None:
        shown = {name: by_key["q"] for name, by_key in runs.items()}
        draw_errors(picture, shown, levels=in_new_process(error_levels, directory))
    rows: list[Row] = []
    for key, readout in READOUTS.items():
        by_recipe = {name: by_key[key] for name, by_key in runs.items()}
        about = f"{what}, read-out {readout}"
        rows.append(compare(key, about, plain=by_recipe["plain"], default=by_recipe["default"]))
        rows += [_row_of(key, name, run) for name, run in by_recipe.items()]
    return rows


def compare(key: str, what: str, *, plain: Run, default: Run) -> Row:
    """The row with the ratio; where the plain recipe did not get there, its time is a lower bound."""
    times = [f"{'> ' if run.first_good is None else ''}{run.time:.2f}" for run in (plain, default)]
    measured, target = f"{' / '.join(times)} CPU minutes", f"≥ {TARGET:g} ×"
    if default.first_good is None:
        value = "the default recipe did not get there"
        return Row(key=key, what=what, value=value, measured=measured, target=target, met=False)
    ratio = plain.time / default.time
    there = plain.first_good is not None
    return Row(
        key=key,
        what=what,
        value=f"{'' if there else '> '}{ratio:.1f} ×",
        measured=measured,
        target=target,
        met=ratio >= TARGET if there or ratio >= TARGET else None,
    )


def _row_of(key: str, name: str, run: Run) -> Row:
    return Row(
        key=key,
        what=f"the {name} recipe: error of heart rate, bpm, by CPU minutes",
        value=f"{run.errors[-1]:.2f} bpm after {run.steps:,} steps",
        measured=run.shown(),
    )


def build_windows(name: str, directory: Path) -> None:
    """`biofound prepare` and `biofound windows`: all records of one set in one split."""
    source = ("--source", "wfdb", "--root", RECORDS[name], "--fractions", FRACTIONS[name])
    done("prepare", *source, "--output", directory)
    done("windows", "--split-file", directory / "splits_full.json", "--outdir", directory)


def pretrain_and_probe(
    recipe: Recipe, directory: Path, precision: str, threads: int, minutes: float, end_when_good: bool
) -> dict[str, Run]:
    """Pretrain until the probe's errors are small enough, or the CPU minutes or the steps are used up."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    probe_every = recipe.steps // PROBES
    trainer = make_trainer(recipe, directory, precision=precision, log_interval=probe_every)
    probe = open_probe(directory)
    spent, steps, minutes_spent = 0.0, 0, [0.0]
    curve = [errors_of(probe, trainer.model.encoder)]
    before = time.process_time()
    for event in trainer.fit():
        if not isinstance(event, StepMetrics) or event.step % probe_every:
            continue
        spent, steps = spent + time.process_time() - before, event.step
        minutes_spent.append(spent / 60)
        curve.append(errors_of(probe, trainer.model.encoder))
        good = all(min(errors[key] for errors in curve) <= ERROR for key in READOUTS)
        if spent >= 60 * minutes or (end_when_good and good):
            break
        before = time.process_time()
    return {
        key: Run(minutes=tuple(minutes_spent), errors=tuple(errors[key] for errors in curve), steps=steps)
        for key in READOUTS
    }


def make_trainer(recipe: Recipe, directory: Path, *, precision: str, log_interval: int) -> Trainer:
    """The trainer that `biofound pretrain` makes of the recipe, validating on BIDMC.

    Nothing is chosen by that validation: it only takes its time.
    """
    config = ROOT / "configs" / recipe.config
    data_dirs = (*(str(directory / name) for name in RECORDS), *recipe.streams)
    options: dict[str, Any] = {"config": config, "steps": recipe.steps, "seed": SEED, "data_dir": data_dirs}
    settings = resolve(PretrainSettings, options=options, environ={}).settings
    train, val = open_training_windows(settings, data_dirs)
    output = directory / config.stem
    output.mkdir()
    return trainer_of(settings, train, val, precision=precision, output_dir=output, log_interval=log_interval)


def open_probe(directory: Path) -> HeartRateProbe:
    """The probe of the BIDMC patients."""
    return HeartRateProbe(labelled_with_heart_rate(directory / "probe"), repeats=1, resamples=1, seed=SEED)


def errors_of(probe: HeartRateProbe, encoder: Encoder) -> dict[str, float]:
    """The error of an encoder by key of the read-out: mean over patients, in beats a minute."""
    found = probe.of_encoder(encoder, list(READOUTS.values()))
    return {key: _error(found[readout]) for key, readout in READOUTS.items()}


def error_levels(directory: Path) -> dict[str, float]:
    """The error of classical features and of the training median, in the folds of the encoders' probe."""
    probe = open_probe(directory)
    median = score("", predict_constant(probe.task, probe.folds), probe.task, seed=SEED, resamples=1)
    return {"classical features": _error(probe.classical), "training median": _error(median)}


def _error(outcome: Outcome) -> float:
    error = outcome.row.scores["mae"].value
    assert error is not None
    return error


def draw_errors(path: Path, runs: Mapping[str, Run], *, levels: Mapping[str, float]) -> None:
    """Draw probe error over CPU minutes, a line a recipe, with the levels of what needs no pretraining."""
    import matplotlib.pyplot as plt

    from biofound.figures import save_figure

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, run in runs.items():
        axis.plot(run.minutes, run.errors, label=name, marker=".", linewidth=1)
    for (name, error), style in zip(levels.items(), ("--", ":"), strict=False):
        if error < 2 * max(max(run.errors) for run in runs.values()):
            axis.axhline(error, color="#222222", linestyle=style, linewidth=1, label=f"{name} ({error:.2f})")
    axis.set(
        xlabel="CPU minutes of pretraining",
        ylabel="error of heart rate, bpm (mean over patients)",
        title="34 BIDMC patients never seen in pretraining",
        ylim=(0, None),
        xlim=(0, None),
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    save_figure(figure, path)
