"""`biofound finetune`: train a pretrained encoder with a head on labels, beside baselines."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from biofound import console
from biofound.commands.finetune_data import FinetuneData, Fold, describe_rows, summary_rows
from biofound.commands.pretrain import move_earlier_run, stop_on_signals
from biofound.commands.probe import BATCH, CLASSICAL, IN_TABLE, MAJORITY, MEDIAN
from biofound.commands.probe_data import (
    JoinedWindows,
    absent_channels,
    check_fit,
    seen_in_pretraining,
)
from biofound.commands.score_cells import SCORE_NAMES, estimate_cell, show_differences, value_cell
from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.devices import resolve_device, resolve_precision
from biofound.core.finetune import (
    FinetuneConfig,
    FineTuner,
    LabelledRows,
    Stage,
    balanced_weights,
    fit_head,
    predict_rows,
    trained_parameters,
)
from biofound.core.history import FinetuneEpoch, FinetuneStep, WriteFailure
from biofound.core.inflate import encoder_for, task_model_for
from biofound.core.memory import keep_freed_memory
from biofound.core.models import parameter_count
from biofound.core.probe import Fold as ProbeFold
from biofound.core.probe import Folds, predict_constant, predict_from_features
from biofound.core.probe_features import classical_features
from biofound.core.readout import batch_features, embed_windows
from biofound.core.run_files import BEST, CONFIG, HISTORY, LAST, METRICS
from biofound.core.scores import Difference, Outcome, Predictions, paired_difference, score
from biofound.core.task import TaskConfig, TaskModel, build_task_model, load_task_checkpoint
from biofound.errors import DataError, SettingsError, checkpoint_error_context, write_error_context
from biofound.figures import draw_task_curves
from biofound.files import hold_directory, sha256_of, sweep_temporary_files, write_json
from biofound.options import Invocation
from biofound.score_figures import draw_scores
from biofound.settings import FinetuneSettings, ResolvedChannels
from biofound.settings.resolve import plain_values

RESULTS = "results.json"
CURVES, SCORES = "training_curves.png", "scores.png"
RANDOM_DIR = "random_initialisation"
RUN_FILES = (
    *("*.pt", HISTORY, METRICS, CONFIG, RESULTS, "*.png"),
    *(RANDOM_DIR, "fold_*", "channels_*"),
)
"""The files and directories of a run in its output directory."""
FINETUNED, PROBE, RANDOM = "fine-tuned", "linear probe", "random initialisation"
FREE_ON_RESUME = frozenset(
    {
        *("checkpoint", "data_dir", "channels_yaml", "labels", "labels_root", "output_dir", "resume"),
        *("device", "precision", "threads", "channels"),
        *("log_interval", "save_interval", "checkpoint_minutes", "on_write_error"),
    }
)
"""Settings that may differ: where and how to compute. Checkpoint and data are compared by digest."""


def execute(invocation: Invocation[FinetuneSettings], data: FinetuneData, table: ResolvedChannels) -> None:
    """Train, score beside the baselines, and leave models, history and results in the output directory.

    Args:
        invocation: the command's settings.
        data: the labelled windows, and the folds to train and test in.
        table: the channel table, for channels that neither windows nor checkpoint describe.

    Raises:
        SettingsError: when a setting does not fit the checkpoint, the windows or the run to resume.
        DataError: when windows do not fit, or the output directory cannot be written.
        CheckpointError: when the checkpoint, or the run to resume, cannot be read.
        TrainingError: when a training had to stop.
        KeyboardInterrupt: after Ctrl-C, when the run is saved.
    """
    settings = invocation.settings
    bench = _bench_of(settings, data, table)
    trainings = list(_trainings(bench))
    with _output_held(settings), stop_on_signals() as received:
        _refuse_other_runs(bench, trainings)
        first = bench.build(trainings[0])
        trained = trained_parameters(first, "all", layers=1)
        summary = {
            **summary_rows(data, settings),
            "task": f"{settings.task} of {settings.target}",
            "model": f"{parameter_count(first):,} parameters in {len(trained)} tensors",
            "device": f"{bench.device} in {bench.precision}, {torch.get_num_threads()} threads",
            "output": str(settings.output_dir),
        }
        resolved = {"settings": invocation.resolved.as_json(), "resolved": summary}
        summary |= _new_channels(bench)
        if (aside := _prepare_output(settings, resolved)) is not None:
            summary["earlier run"] = f"moved to {aside}"
        console.table("fine-tuning", ("what", "value"), list(summary.items()))
        predictions: dict[tuple[tuple[str, ...], str], NDArray[np.float64]] = {}
        for training in trainings:
            tuner = bench.tuner(training, received)
            _train(tuner, training.title(several=len(trainings) > 2))
            if tuner.interrupted:
                _say_stopped(tuner, training, received)
                return
            if training.kind == FINETUNED:
                _draw_curves(tuner, bench, training)
            key = (training.channels, training.kind)
            out = predictions.setdefault(key, bench.no_predictions())
            rows = training.fold.test
            found = predict_rows(tuner.model, bench.windows(training.channels), rows, batch_size=BATCH)
            out[training.fold.repeat, rows] = found[:, 0] if data.task.numeric else found
        result = bench.results(predictions)
        with write_error_context(settings.output_dir, option="--output-dir"):
            write_json(settings.output_dir / RESULTS, result.as_json())
            draw_scores(settings.output_dir / SCORES, result.outcomes, data.task, title=bench.picture_title())
    if invocation.json:
        console.print_json(result.as_json())
    else:
        _show(result, bench)


# ---------------------------------------------------------------------------------------------------------
# Trainings


@dataclass(frozen=True, kw_only=True)
class _Training:
    """One training of one network: its channels, fold and start, and the directory of its files.

    `absent` are the checkpoint's channels not among `channels`; the network has them too, unobserved.
    """

    channels: tuple[str, ...]
    absent: tuple[str, ...]
    fold: Fold
    kind: Literal["fine-tuned", "random initialisation"]
    directory: Path

    def title(self, *, several: bool) -> str:
        if not several:
            return self.kind
        return " ".join(filter(None, (self.kind, ",".join(self.channels), self.fold.name)))


def _trainings(bench: "_Bench") -> Iterator[_Training]:
    """Each subset of channels in each fold: fine-tuned, and from random initialisation."""
    for subset in bench.data.subsets:
        base = bench.settings.output_dir
        if len(bench.data.subsets) > 1:
            base = base / f"channels_{'-'.join(subset)}"
        for fold in bench.data.folds:
            directory = base / fold.name
            for kind, place in ((FINETUNED, directory), (RANDOM, directory / RANDOM_DIR)):
                yield _Training(
                    channels=subset,
                    absent=bench.absent[subset],
                    fold=fold,
                    kind=kind,  # type: ignore[arg-type]
                    directory=place,
                )


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What all trainings and rows share."""

    settings: FinetuneSettings
    data: FinetuneData
    table: ResolvedChannels
    checkpoint: Checkpoint
    absent: Mapping[tuple[str, ...], tuple[str, ...]]
    """The checkpoint's channels that each subset lacks."""
    parent: dict[str, Any]
    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"]

    @property
    def error(self) -> str:
        """The name of the error in the curves."""
        return "MAE" if self.data.task.numeric else "1 - balanced accuracy"

    def network_channels(self, subset: tuple[str, ...]) -> tuple[str, ...]:
        """The channels of the networks of a subset: these, then what it lacks of the checkpoint's."""
        return (*subset, *self.absent[subset])

    def windows(self, subset: tuple[str, ...]) -> JoinedWindows:
        """All labelled windows as the networks of a subset take them."""
        return self.data.windows.of_channels(self.network_channels(subset), absent=self.absent[subset])

    def no_predictions(self) -> NDArray[np.float64]:
        """NaN for every repeat and window: (R, N), or (R, N, K)."""
        task, repeats = self.data.task, 1 + max(fold.repeat for fold in self.data.folds)
        shape = (repeats, len(task.values))
        return np.full(shape if task.numeric else (*shape, len(task.classes)), np.nan)

    def labels(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The labels of windows as a task model takes them."""
        task = self.data.task
        if task.numeric:
            return task.values[rows].astype(np.float32)
        return np.searchsorted(task.classes, task.values[rows]).astype(np.int64)

    def task_config(self, fold: Fold) -> TaskConfig:
        """The task; numbers are scaled by the training windows."""
        settings, task = self.settings, self.data.task
        numbers = task.values[fold.train].astype(np.float64) if task.numeric else np.array([0.0, 2.0])
        return TaskConfig(
            task=settings.task,
            target=settings.target,
            classes=tuple(task.classes.tolist()),
            target_mean=float(numbers.mean()) if task.numeric else 0.0,
            target_std=float(numbers.std()),
            head=settings.head,
            hidden=settings.head_hidden,
            dropout=settings.head_dropout,
        )

    def build(self, training: _Training) -> TaskModel:
        """The network before its first step."""
        task, seed = self.task_config(training.fold), self.settings.seed
        channels = self.network_channels(training.channels)
        if training.kind == RANDOM:
            return build_task_model(replace(self.checkpoint.model, channels=channels), task, seed=seed)
        with checkpoint_error_context(self.settings.checkpoint):
            return task_model_for(self.checkpoint, channels=channels, task=task, seed=seed)[0]

    def config(self, training: _Training) -> FinetuneConfig:
        """How to train; from random initialisation all at once, by as many epochs and the highest rate."""
        settings, fold = self.settings, training.fold
        stages = tuple(Stage(name=n, epochs=e, lr=lr) for n, e, lr in settings.schedule)  # type: ignore[arg-type]
        epochs = sum(stage.epochs for stage in stages)
        if training.kind == RANDOM:
            stages = (Stage(name="all", epochs=epochs, lr=max(stage.lr for stage in stages)),)
        weights = None
        if settings.class_weights and not self.data.task.numeric:
            weights = balanced_weights(self.labels(fold.train), classes=len(self.data.task.classes))
        return settings.fill(
            FinetuneConfig,
            epochs=epochs,
            stages=stages,
            class_weights=weights,
            shuffle="full",
            precision=self.precision,
            compile=False,
        )

    def tuner(self, training: _Training, received: Sequence[signal.Signals]) -> FineTuner:
        """The training, resumed where there is one to resume."""
        fold, windows = training.fold, self.windows(training.channels)

        def part(rows: NDArray[np.int64]) -> LabelledRows:
            return LabelledRows(
                windows=windows,
                rows=rows,
                labels=self.labels(rows),
                subjects=self.data.task.subjects[rows],
                cases=self.data.cases[rows],
            )

        path, model, train = training.directory / LAST, self.build(training), part(fold.train)
        resumed = self.settings.resume and path.is_file()
        if training.kind == FINETUNED and self.settings.head == "linear" and not resumed:
            balanced = self.settings.class_weights
            model.to(self.device)
            fit_head(model, train, seed=self.settings.seed, balanced=balanced, batch_size=BATCH)

        tuner = FineTuner(
            model=model,
            train=train,
            val=part(fold.val),
            data=describe_rows(
                self.data,
                fold.train,
                training.channels,
                absent=training.absent,
                parent=self.checkpoint.data,
                table=self.table,
            ),
            parent=self.parent if training.kind == FINETUNED else None,
            config=self.config(training),
            settings=plain_values(self.settings),
            output_dir=training.directory,
            device=self.device,
            absent=training.absent,
            stop=lambda: bool(received),
        )
        if resumed:
            with checkpoint_error_context(path):
                tuner.restore(load_task_checkpoint(path))
        training.directory.mkdir(parents=True, exist_ok=True)
        return tuner

    def picture_title(self, training: _Training | None = None) -> str:
        """The title of a picture."""
        kind = "synthetic" if self.data.synthetic else "recorded"
        what = "" if training is None else f", {training.title(several=True)}"
        return f"{self.settings.task} of {self.settings.target} on {kind} data{what}"

    def results(self, predictions: Mapping[tuple[tuple[str, ...], str], NDArray[np.float64]]) -> "_Results":
        """The rows of the table: the baselines and the networks, by subset of channels."""
        task, seed = self.data.task, self.settings.seed
        folds = self._probe_folds()
        constant = MEDIAN if task.numeric else MAJORITY
        outcomes = [score(constant, predict_constant(task, folds), task, seed=seed)]
        channels: list[tuple[str, ...]] = [()]
        seen = seen_in_pretraining(self.checkpoint, self.data.windows.parts)
        several = len(self.data.subsets) > 1
        for subset in self.data.subsets:
            suffix = f" ({', '.join(subset)})" if several else ""
            present = self.data.windows.of_channels(subset)
            compute = partial(classical_features, sfreq=present.sfreq)
            classical = batch_features(present, compute, batch_size=BATCH, what=CLASSICAL)
            encoder, _ = encoder_for(self.checkpoint, channels=self.network_channels(subset), seed=seed)
            embedded = embed_windows(encoder.to(self.device), self.windows(subset), batch_size=BATCH)
            random, tuned = (Predictions(values=predictions[subset, kind]) for kind in (RANDOM, FINETUNED))
            fitted = {
                CLASSICAL: (predict_from_features(classical, task, folds, seed=seed), ()),
                PROBE: (predict_from_features(embedded, task, folds, seed=seed), seen),
                RANDOM: (random, ()),
                FINETUNED: (tuned, seen),
            }
            for name, (found, known) in fitted.items():
                outcomes.append(
                    score(f"{name}{suffix}", found, task, seed=seed, subjects_in_pretraining=known)
                )
                channels.append(subset)
        return _Results(
            settings=self.settings,
            data=self.data,
            outcomes=outcomes,
            channels=channels,
            differences=list(_differences(outcomes, channels, numeric=task.numeric)),
        )

    def _probe_folds(self) -> Folds:
        """The folds of rows that need no windows for early stopping: they train on these too."""
        by_repeat: dict[int, list[ProbeFold]] = {}
        for fold in self.data.folds:
            train = np.sort(np.concatenate([fold.train, fold.val]))
            by_repeat.setdefault(fold.repeat, []).append(ProbeFold(train=train, test=fold.test))
        return [by_repeat[repeat] for repeat in sorted(by_repeat)]


def _bench_of(settings: FinetuneSettings, data: FinetuneData, table: ResolvedChannels) -> _Bench:
    """Everything that the trainings share, once checkpoint, windows and machine fit."""
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if device.type == "cpu":
        keep_freed_memory()
    checkpoint = load_checkpoint(settings.checkpoint)
    check_fit(str(settings.checkpoint), checkpoint, data.windows.parts)
    layers = checkpoint.model.num_layers
    if settings.layers_epochs and settings.unfreeze_layers > layers:
        raise SettingsError(
            f"--unfreeze-layers {settings.unfreeze_layers}: its encoder has {layers} mixer layers; "
            f"use at most {layers}"
        )
    if len(np.unique(data.task.subjects[np.concatenate([data.folds[0].train, data.folds[0].val])])) < 2:
        raise SettingsError("train and val hold one subject in all: fine-tuning needs at least 2 with labels")
    absent = {}
    for subset in data.subsets:  # refused before the first training where it does not fit
        try:
            absent[subset] = absent_channels(str(settings.checkpoint), checkpoint, subset)
        except DataError as problem:
            if settings.channels:
                raise SettingsError(f"--channels {','.join(subset)}: {problem}") from problem
            raise
        with checkpoint_error_context(settings.checkpoint):
            encoder_for(checkpoint, channels=(*subset, *absent[subset]))
    described, seen = checkpoint.data, seen_in_pretraining(checkpoint, data.windows.parts)
    return _Bench(
        settings=settings,
        data=data,
        table=table,
        checkpoint=checkpoint,
        absent=absent,
        parent={
            "sha256": sha256_of(settings.checkpoint),
            "channels": list(checkpoint.model.channels),
            "synthetic": described.synthetic and all(one.synthetic for one in checkpoint.ancestors()),
            "fingerprint": described.fingerprint,
            "subjects": list(seen or ()),  # empty where they are not known
        },
        device=device,
        precision=precision,
    )


def _new_channels(bench: _Bench) -> dict[str, str]:
    """The row of the summary about channels that the checkpoint lacks; a warning where they stay unused."""
    named = {name for subset in bench.data.subsets for name in subset}
    new = ", ".join(sorted(named - set(bench.checkpoint.model.channels)))
    if not new:
        return {}
    stages = [name for name, *_ in bench.settings.schedule if name != "head"]
    if not stages:
        console.warning(
            f"{new}: new channels are without influence on a head alone; give --layers-epochs or --all-epochs"
        )
    return {"new channels": f"{new}: without influence until the stage {stages[0] if stages else 'layers'}"}


# ---------------------------------------------------------------------------------------------------------
# The output directory


@contextmanager
def _output_held(settings: FinetuneSettings) -> Iterator[None]:
    with ExitStack() as held:
        with write_error_context(settings.output_dir, option="--output-dir"):
            held.enter_context(hold_directory(settings.output_dir, option="--output-dir"))
        yield


def _prepare_output(settings: FinetuneSettings, config: Mapping[str, Any]) -> Path | None:
    """Make the output directory ready, and move an earlier run in it away; the directory it is in then."""
    directory = settings.output_dir
    with write_error_context(directory, option="--output-dir"):
        sweep_temporary_files(directory)
        aside = None if settings.resume else move_earlier_run(directory, RUN_FILES)
        write_json(directory / CONFIG, config)
    return aside


def _refuse_other_runs(bench: _Bench, trainings: Sequence[_Training]) -> None:
    """Refuse to resume a run with settings, a checkpoint, windows or labels that change its result.

    Raises:
        SettingsError: which lists the differences.
    """
    if not bench.settings.resume:
        return
    for training in trainings:
        path = training.directory / LAST
        if not path.is_file():
            continue
        saved, now = load_task_checkpoint(path), plain_values(bench.settings)
        found = [
            f"{name} was {saved.settings.get(name)} and is {value}"
            for name, value in now.items()
            if name not in FREE_ON_RESUME and saved.settings.get(name) != value
        ]
        if saved.data.fingerprint != bench.data.fingerprint(training.fold.train):
            found.append("the training windows or their labels differ")
        if (
            saved.model.channels != bench.network_channels(training.channels)
            or saved.absent != training.absent
        ):
            found.append("the channels differ")
        if saved.parent is not None and saved.parent["sha256"] != bench.parent["sha256"]:
            found.append("the checkpoint that it started from is another one")
        if found:
            listed = "\n".join(f"  {line}" for line in found)
            raise SettingsError(
                f"{path}: this run cannot be resumed with what changes its result:\n{listed}\n"
                "Use the settings and data it was started with, or choose another --output-dir"
            )


def _say_stopped(tuner: FineTuner, training: _Training, received: Sequence[signal.Signals]) -> None:
    """Say that a stopped run is saved; after Ctrl-C by raising KeyboardInterrupt, which ends the command."""
    message = (
        f"stopped by {received[0].name} in {training.title(several=True)} after step {tuner.step}; saved: "
        f"{tuner.output_dir / LAST}; continue with --resume"
    )
    if received[0] == signal.SIGINT:
        raise KeyboardInterrupt(message)
    console.note(message)


def _train(tuner: FineTuner, title: str) -> None:
    """Train to the end or until a signal, with progress over the steps and a line an epoch."""
    done = tuner.step
    with console.progress(title, total=tuner.total_steps, unit="steps") as progress:
        progress.advance(done)
        for event in tuner.fit():
            if isinstance(event, FinetuneStep):
                progress.advance(event.step - done, text=f"{event.stage}  loss {event.loss:.4f}")
                done = event.step
            elif isinstance(event, WriteFailure):
                progress.line(f"WARNING: {event.path}: {event.error}; the run continues")
            elif isinstance(event, FinetuneEpoch):
                progress.line(epoch_line(event))


def _draw_curves(tuner: FineTuner, bench: _Bench, training: _Training) -> None:
    path = training.directory / CURVES
    with write_error_context(path, option="--output-dir"):
        draw_task_curves(path, tuner.history(), title=bench.picture_title(training), error=bench.error)


def epoch_line(epoch: FinetuneEpoch) -> str:
    """An epoch's losses and errors in one line."""
    return (
        f"epoch {epoch.epoch:>3}  {epoch.stage:6}  train {epoch.train.loss:.3f}  val {epoch.val.loss:.3f}  "
        f"error {epoch.val.error:.3f}  {epoch.seconds:.0f} s{' *' if epoch.best else ''}"
    )


# ---------------------------------------------------------------------------------------------------------
# Results


@dataclass(frozen=True, kw_only=True)
class _Results:
    """The rows of the table with their channels, and the differences between rows."""

    settings: FinetuneSettings
    data: FinetuneData
    outcomes: Sequence[Outcome]
    channels: Sequence[tuple[str, ...]]
    differences: Sequence[Difference]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON: what `results.json` holds."""
        data = self.data
        return {
            "output_dir": str(self.settings.output_dir),
            "synthetic": data.synthetic,
            "task": self.settings.task,
            "target": data.task.target,
            "classes": data.task.classes.tolist(),
            "folds": self.settings.folds,
            "repeats": self.settings.repeats,
            "windows_without_label": data.unlabelled,
            "cases_without_label": list(data.unlabelled_cases),
            "rows": [
                {**outcome.row.as_json(), "channels": list(channels)}
                for outcome, channels in zip(self.outcomes, self.channels, strict=True)
            ],
            "differences": [difference.as_json() for difference in self.differences],
        }


def _differences(
    outcomes: Sequence[Outcome], channels: Sequence[tuple[str, ...]], *, numeric: bool
) -> Iterator[Difference]:
    """Each fine-tuned network against the baselines of its channels, and against those of other channels."""
    metric = "mae" if numeric else "auroc"
    tuned = [k for k, one in enumerate(outcomes) if one.row.name.startswith(FINETUNED)]
    for place, k in enumerate(tuned):
        baselines = [i for i, subset in enumerate(channels) if subset in ((), channels[k]) and i != k]
        for other in [*baselines, *tuned[:place]]:
            yield paired_difference(outcomes[k], outcomes[other], score=metric)


def _show(result: _Results, bench: _Bench) -> None:
    """The table of the rows, that of the differences, and what to know about them."""
    rows, settings = [outcome.row for outcome in result.outcomes], bench.settings
    scores = [key for key in rows[0].scores if key in IN_TABLE]
    how = "tested on test" if settings.folds is None else f"{settings.repeats} x {settings.folds} folds"
    columns = ("row", *(SCORE_NAMES[key] for key in scores))
    counts = f"{rows[0].subjects} subjects, {rows[0].windows} windows"
    console.table(
        f"{settings.task} of {settings.target}: {counts}, {how}",
        columns,
        [
            (
                row.name,
                estimate_cell(row.scores[scores[0]]),
                *(value_cell(row.scores[key]) for key in scores[1:]),
            )
            for row in rows
        ],
        numbers=columns[1:],
    )
    show_differences(result.differences)
    console.note(
        f"every subject counts equally; [95 % intervals] from resampled subjects; all scores: "
        f"{settings.output_dir / RESULTS}"
    )
    if result.data.synthetic:
        console.note("the data is synthetic: such scores say nothing about people")
    for row in rows:
        if row.subjects_in_pretraining:
            seen = len(row.subjects_in_pretraining)
            console.warning(f"{row.name}: {seen} of the {row.subjects} subjects were in its pretraining")
        elif row.subjects_in_pretraining is None:
            console.warning(f"{row.name}: whom its encoder was pretrained on is not known")
    if settings.folds is None and len(bench.data.subsets) == 1:
        console.note(f"the fine-tuned model: {settings.output_dir / BEST}")
