"""Time to quality: CPU minutes of pretraining until a probe reads the heart rate well, by recipe.

`python -m tests.benchmarks --only q` pretrains the plain recipe (configs/seed_card.yaml) and the default one
on Challenge 2015 with the real trainer. Every few steps it probes the heart rate of the BIDMC patients: ridge
on the default read-out, in folds that no patient crosses. A recipe ends when the error is small enough, or
after `--minutes` of CPU time; probing does not count.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from biofound.commands.pretrain import train_config
from biofound.commands.pretrain_data import describe_data
from biofound.commands.probe_data import LabelledWindows, open_labelled
from biofound.core.history import StepMetrics
from biofound.core.memory import keep_freed_memory
from biofound.core.models import Encoder, ModelConfig, build_model
from biofound.core.probe import predict_from_features, subject_folds
from biofound.core.probe_scores import ProbeTask, score
from biofound.core.readout import embed_windows
from biofound.core.trainer import Trainer
from biofound.data.windows import open_windows
from biofound.settings import PretrainSettings, ProbeSettings, resolve
from tests.benchmarks.timing import Row, in_new_process
from tests.chain import done

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
RECORDS = {"train": DATA / "challenge2015", "probe": DATA / "bidmc"}
RECIPES = {"plain": ROOT / "configs" / "seed_card.yaml", "default": ROOT / "configs" / "ssl_pretrain.yaml"}

ERROR = 3.0
"""Mean over patients of the absolute error of heart rate, in beats a minute, that ends a run."""
TARGET = 4.0
"""How many times less CPU time the default recipe shall take."""
STEPS, PROBE_EVERY = 1500, 25
"""Steps of a run, over which the learning rate falls, and steps between two probes."""
SEED = 42


@dataclass(frozen=True, kw_only=True)
class Run:
    """The probe's errors of one recipe, the first before any step."""

    minutes: tuple[float, ...]
    errors: tuple[float, ...]
    steps: int

    @property
    def reached(self) -> bool:
        """Whether training made the error small enough."""
        return self.errors[-1] <= ERROR

    def shown(self) -> str:
        """Its error at first, at best and at the end."""
        best = min(range(len(self.errors)), key=lambda i: self.errors[i])
        places = {0: "untrained", best: "best", len(self.errors) - 1: "last"}
        return ", ".join(
            f"{name} {self.errors[i]:.2f} at {self.minutes[i]:.1f} min" for i, name in sorted(places.items())
        )


def quality_rows(*, directory: Path, precision: str, threads: int, minutes: float) -> list[Row]:
    """The row q with the ratio, and one for each recipe; or one that says what is missing."""
    what = f"CPU time of pretraining on Challenge 2015 to {ERROR:g} bpm on BIDMC patients, plain / default"
    missing = [str(path) for path in RECORDS.values() if not (path / "RECORDS").is_file()]
    if missing:
        return [Row(key="q", what=what, value=f"no recordings in {', '.join(missing)}: not measured")]
    for name, root in RECORDS.items():
        build_windows(root, directory / name)
    runs = {
        name: in_new_process(pretrain_and_probe, recipe, directory, precision, threads, minutes)
        for name, recipe in RECIPES.items()
    }
    return [compare(what, **runs), *(_row_of(name, run) for name, run in runs.items())]


def compare(what: str, *, plain: Run, default: Run) -> Row:
    """The row with the ratio; where the plain recipe did not get there, its time is a lower bound."""
    times = [f"{'' if run.reached else '> '}{run.minutes[-1]:.2f}" for run in (plain, default)]
    measured, target = f"{' / '.join(times)} CPU minutes", f"≥ {TARGET:g} ×"
    if not default.reached:
        value = "the default recipe did not get there"
        return Row(key="q", what=what, value=value, measured=measured, target=target, met=False)
    ratio = plain.minutes[-1] / default.minutes[-1]
    return Row(
        key="q",
        what=what,
        value=f"{'' if plain.reached else '> '}{ratio:.1f} ×",
        measured=measured,
        target=target,
        met=ratio >= TARGET if plain.reached or ratio >= TARGET else None,
    )


def _row_of(name: str, run: Run) -> Row:
    return Row(
        key="q",
        what=f"the {name} recipe: error of heart rate, bpm, by CPU minutes",
        value=f"{run.errors[-1]:.2f} bpm after {run.steps:,} steps",
        measured=run.shown(),
    )


def build_windows(root: Path, directory: Path) -> None:
    """`biofound prepare` and `biofound windows`: all records in one split, as nothing is split here."""
    done("prepare", "--source", "wfdb", "--root", root, "--fractions", "1,0,0", "--output", directory)
    done("windows", "--split-file", directory / "splits_full.json", "--outdir", directory)


def pretrain_and_probe(recipe: Path, directory: Path, precision: str, threads: int, minutes: float) -> Run:
    """Pretrain until the probe's error is small enough, or the CPU minutes or the steps are used up."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    probed = open_labelled(
        ProbeSettings(data_dir=directory / "probe", labels="numerics", target="HR"), directory / "probe"
    )
    trainer = make_trainer(recipe, directory, precision=precision)
    probe = prober(probed)
    spent, steps = 0.0, 0
    curve = [(0.0, probe(trainer.model.encoder))]
    before = time.process_time()
    for event in trainer.fit():
        if not isinstance(event, StepMetrics) or event.step % PROBE_EVERY:
            continue
        spent, steps = spent + time.process_time() - before, event.step
        curve.append((spent / 60, probe(trainer.model.encoder)))
        if curve[-1][1] <= ERROR or spent >= 60 * minutes:
            break
        before = time.process_time()
    times, errors = zip(*curve, strict=True)
    return Run(minutes=times, errors=errors, steps=steps)


def make_trainer(recipe: Path, directory: Path, *, precision: str) -> Trainer:
    """The trainer that `biofound pretrain --config RECIPE --steps STEPS` makes, validating on BIDMC.

    Nothing is chosen by that validation: it only takes its time.
    """
    options: dict[str, Any] = {"config": recipe, "steps": STEPS, "seed": SEED}
    settings = resolve(PretrainSettings, options=options, environ={}).settings
    train, val = (open_windows(directory / name, "train") for name in RECORDS)
    config = train_config(settings, precision=cast(Any, precision), windows=len(train))
    output = directory / recipe.stem
    output.mkdir()
    return Trainer(
        model=build_model(settings.fill(ModelConfig), seed=SEED),
        train=train,
        val=val,
        data=describe_data(train, val, settings),
        config=replace(config, log_interval=PROBE_EVERY, checkpoint_minutes=0.0),
        settings={},
        output_dir=output,
        device=torch.device("cpu"),
    )


def prober(probed: LabelledWindows) -> Callable[[Encoder], float]:
    """What gives the error of an encoder: mean over patients, in beats a minute."""
    task = ProbeTask(target="HR", values=probed.values, subjects=probed.subjects)
    folds = subject_folds(task.subjects, folds=5, repeats=1, seed=SEED)

    def probe(encoder: Encoder) -> float:
        features = embed_windows(encoder, probed.windows.of_channels(encoder.config.channels))
        predictions = predict_from_features(features, task, folds, seed=SEED)
        error = score("encoder", predictions, task, seed=SEED, resamples=1).row.scores["mae"].value
        assert error is not None
        return error

    return probe
