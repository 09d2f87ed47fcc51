"""`biofound probe`: compare frozen encoders by how well a label follows from what they compute."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound import console
from biofound.commands.probe_data import (
    JoinedWindows,
    LabelledWindows,
    absent_channels,
    check_fit,
    seen_in_pretraining,
)
from biofound.commands.score_cells import SCORE_NAMES, estimate_cell, show_differences, value_cell
from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.models import Encoder, ModelConfig, build_model
from biofound.core.probe import (
    Folds,
    predict_constant,
    predict_directly,
    predict_from_features,
    separate_test,
    subject_folds,
)
from biofound.core.probe_features import (
    EncoderFunction,
    classical_features,
    count_beats,
    load_encoder_function,
)
from biofound.core.readout import batch_features, embed_windows
from biofound.core.scores import (
    Difference,
    Outcome,
    Predictions,
    ScoredRow,
    ScoredTask,
    paired_difference,
    score,
)
from biofound.errors import DataError, checkpoint_error_context, write_error_context
from biofound.options import Invocation
from biofound.settings import ProbeSettings
from biofound.weights import name_of

MEDIAN, MAJORITY = "training median", "training majority"
RANDOM, CLASSICAL, BEATS = "random encoder", "classical features", "beat counter"
HEART_RATES = ("hr", "pulse", "heart_rate")
"""Targets, in small letters, that a beat counter can predict."""
IN_TABLE = ("mae", "rmse", "r2", "pearson", "auroc", "auprc", "balanced_accuracy")
"""Scores that the table has space for; `--json` has all."""
BATCH = 256
"""Windows that are held at once."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The rows of the table, and the differences between them."""

    task: ScoredTask
    outcomes: Sequence[Outcome]
    differences: Sequence[Difference]
    unlabelled: int
    """Windows that have no label, and were left out."""
    encoders: Mapping[str, str]
    """The row of each checkpoint to the digest of its encoder's weights."""
    channels: Sequence[str]
    """The channels of the windows."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "target": self.task.target,
            "classes": self.task.classes.tolist(),
            "windows_without_label": self.unlabelled,
            "encoders": dict(self.encoders),
            "channels": list(self.channels),
            "rows": [outcome.row.as_json() for outcome in self.outcomes],
            "differences": [difference.as_json() for difference in self.differences],
        }


def execute(invocation: Invocation[ProbeSettings], sets: Sequence[LabelledWindows]) -> None:
    """Probe, and show the rows and their differences.

    Args:
        invocation: the command's settings.
        sets: the labelled windows of `data_dir`, and of `test_data_dir` where one is given.

    Raises:
        SettingsError: when an encoder function is not there.
        CheckpointError: when a checkpoint cannot be read.
        DataError: when windows and labels cannot be used, or the picture cannot be written.
    """
    settings = invocation.settings
    result = run_probe(settings, sets)
    if settings.picture is not None:
        from biofound.score_figures import draw_scores  # matplotlib takes a second to import

        with write_error_context(settings.picture, option="--picture"):
            title = f"probe of {settings.target}"
            draw_scores(settings.picture, result.outcomes, result.task, title=title)
        console.note(f"written: {settings.picture}")
    if invocation.json:
        console.print_json(result.as_json())
    else:
        _show(result, settings)


def run_probe(settings: ProbeSettings, sets: Sequence[LabelledWindows]) -> ProbeResult:
    """All rows, with progress on standard error; what cannot be read is refused before the first."""
    checkpoints = {name_of(path): load_checkpoint(path) for path in settings.checkpoint}
    functions = _load_functions(settings.encoder)
    bench = _bench_of(settings, sets)
    for name, checkpoint in checkpoints.items():
        check_fit(name, checkpoint, bench.windows.parts)
        absent_channels(name, checkpoint, bench.windows.channels)  # of what all parts have
    rows = list(_rows(bench, checkpoints, functions))
    outcomes = []
    with console.progress(f"probe of {settings.target}", total=len(rows), unit="rows") as progress:
        for name, outcome_of in rows:
            outcomes.append(outcome_of(name))
            progress.advance(text=name)
    return ProbeResult(
        task=bench.task,
        outcomes=outcomes,
        differences=list(_differences(outcomes, checkpoints, functions, numeric=bench.task.numeric)),
        unlabelled=bench.unlabelled,
        encoders={name: checkpoint.encoder_sha256 for name, checkpoint in checkpoints.items()},
        channels=bench.windows.channels,
    )


def _load_functions(specs: Sequence[str]) -> dict[str, EncoderFunction]:
    here = str(Path.cwd())
    if specs and here not in sys.path:
        sys.path.insert(0, here)  # the console script does not look for modules where the user is
    return {spec: load_encoder_function(spec) for spec in specs}


# ---------------------------------------------------------------------------------------------------------
# Rows


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What all rows share: windows, labels and folds."""

    windows: JoinedWindows
    task: ScoredTask
    folds: Folds
    unlabelled: int
    seed: int
    readout: str

    def fit(self, name: str, features: NDArray[np.float32], **about: Any) -> Outcome:
        """The row of a ridge or logistic regression on features (N, F)."""
        return self.score(
            name, predict_from_features(features, self.task, self.folds, seed=self.seed), **about
        )

    def score(self, name: str, predictions: Predictions, **about: Any) -> Outcome:
        """The row of these predictions."""
        return score(name, predictions, self.task, seed=self.seed, **about)

    def embed(self, encoder: Encoder) -> NDArray[np.float32]:
        """Features (N, F) of a checkpoint's encoder."""
        windows = self.windows.of_channels(encoder.config.channels)
        return embed_windows(encoder, windows, readout=self.readout, batch_size=BATCH)


def _bench_of(settings: ProbeSettings, sets: Sequence[LabelledWindows]) -> _Bench:
    """The labelled windows and the folds, once there is something to tell apart."""
    windows = sets[0].windows
    if len(sets) == 2:
        windows = windows.followed_by(sets[1].windows)
    task = ScoredTask(
        target=settings.target,
        values=np.concatenate([labelled.values for labelled in sets]),
        subjects=np.concatenate([labelled.subjects for labelled in sets]),
    )
    if not task.numeric and len(task.classes) < 2:
        raise DataError(
            f"every labelled window has {task.target} {task.classes[0]!r}: a probe needs at least two classes"
        )
    folds: Folds = (
        separate_test(*(labelled.subjects for labelled in sets))
        if len(sets) == 2
        else subject_folds(task.subjects, folds=settings.folds, repeats=settings.repeats, seed=settings.seed)
    )
    return _Bench(
        windows=windows,
        task=task,
        folds=folds,
        unlabelled=sum(labelled.unlabelled for labelled in sets),
        seed=settings.seed,
        readout=settings.readout,
    )


def _rows(
    bench: _Bench, checkpoints: Mapping[str, Checkpoint], functions: Mapping[str, EncoderFunction]
) -> Iterator[tuple[str, Callable[[str], Outcome]]]:
    """The name of every row of the table, and what computes it, given the name."""
    channels = _common_channels(bench.windows, checkpoints)
    windows = bench.windows.of_channels(channels)
    yield MEDIAN if bench.task.numeric else MAJORITY, partial(_constant, bench)
    for name, model in _random_encoders(checkpoints).items():
        yield name, partial(_random, bench, model)
    yield CLASSICAL, partial(_classical, bench, windows)
    counts_beats = any(name.startswith(("ECG", "PPG")) for name in channels)
    if bench.task.numeric and bench.task.target.lower() in HEART_RATES and counts_beats:
        yield BEATS, partial(_beats, bench, windows)
    for name, checkpoint in checkpoints.items():
        yield name, partial(_pretrained, bench, checkpoint)
    for spec, function in functions.items():
        yield spec, partial(_foreign, bench, windows, function)


def _constant(bench: _Bench, name: str) -> Outcome:
    return bench.score(name, predict_constant(bench.task, bench.folds))


def _random(bench: _Bench, model: ModelConfig, name: str) -> Outcome:
    encoder = build_model(model, seed=bench.seed).encoder
    return bench.fit(name, bench.embed(encoder), readout=bench.readout)


def _classical(bench: _Bench, windows: JoinedWindows, name: str) -> Outcome:
    features = batch_features(
        windows, lambda x: classical_features(x, windows.sfreq), batch_size=BATCH, what=name
    )
    return bench.fit(name, features)


def _beats(bench: _Bench, windows: JoinedWindows, name: str) -> Outcome:
    # Not `batch_features`, which refuses the NaN of a window without beats.
    batches = np.array_split(np.arange(len(windows)), -(-len(windows) // BATCH))
    counted = [
        count_beats(windows.read(index), windows.sfreq, channels=windows.channels) for index in batches
    ]
    return bench.score(name, predict_directly(np.concatenate(counted), bench.task, bench.folds))


def _pretrained(bench: _Bench, checkpoint: Checkpoint, name: str) -> Outcome:
    with checkpoint_error_context(Path(name)):
        encoder = checkpoint.build().encoder
    seen = seen_in_pretraining(checkpoint, bench.windows.parts)
    return bench.fit(name, bench.embed(encoder), readout=bench.readout, subjects_in_pretraining=seen)


def _foreign(bench: _Bench, windows: JoinedWindows, function: EncoderFunction, name: str) -> Outcome:
    try:
        features = batch_features(
            windows, lambda x: np.asarray(function(x, windows.sfreq)), batch_size=BATCH, what=name
        )
    except Exception as problem:  # it is somebody else's code
        raise DataError(
            f"encoder {name} failed on windows (B, {len(windows.channels)}, T) of "
            f"{', '.join(windows.channels)}: {type(problem).__name__}: {problem} "
            "(--debug shows the traceback)"
        ) from problem
    return bench.fit(name, features, subjects_in_pretraining=None)  # nobody knows on whom it was trained


def _common_channels(windows: JoinedWindows, checkpoints: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """The channels of the rows without a checkpoint: those that the checkpoints take, else all."""
    taken = {name for checkpoint in checkpoints.values() for name in checkpoint.model.channels}
    return tuple(name for name in windows.channels if not taken or name in taken)


def _random_encoders(checkpoints: Mapping[str, Checkpoint]) -> dict[str, ModelConfig]:
    """One row an architecture of the checkpoints, named after the first that has it if there are several."""
    kinds: dict[str, ModelConfig] = {}
    for name, checkpoint in checkpoints.items():
        if checkpoint.model not in kinds.values():
            kinds[f"{RANDOM}, as {name}"] = checkpoint.model
    return {RANDOM: next(iter(kinds.values()))} if len(kinds) == 1 else kinds


def _differences(
    outcomes: Sequence[Outcome],
    checkpoints: Mapping[str, Checkpoint],
    functions: Mapping[str, EncoderFunction],
    *,
    numeric: bool,
) -> Iterator[Difference]:
    """Every encoder against the classical features, against its random self, and against the next ones."""
    metric, by_name = "mae" if numeric else "auroc", {one.row.name: one for one in outcomes}
    models = _random_encoders(checkpoints)
    names = [*checkpoints, *functions]
    for place, name in enumerate(names):
        own = [
            key for key, model in models.items() if name in checkpoints and checkpoints[name].model == model
        ]
        for other in [CLASSICAL, *own, *names[place + 1 :]]:
            yield paired_difference(by_name[name], by_name[other], score=metric)


# ---------------------------------------------------------------------------------------------------------
# Showing


def _show(result: ProbeResult, settings: ProbeSettings) -> None:
    """The table of the rows, that of the differences, and what to know about them."""
    rows = [outcome.row for outcome in result.outcomes]
    first, scores = rows[0], [key for key in IN_TABLE if key in rows[0].scores]
    how = (
        "fit on data_dir, tested on test_data_dir"
        if settings.test_data_dir is not None
        else f"{settings.repeats} x {settings.folds} folds"
    )
    title = (
        f"probe of {first.target}: {first.subjects} subjects, {first.windows} windows, {how}, "
        f"read-out {settings.readout}"
    )
    columns = ("row", *(SCORE_NAMES[key] for key in scores), "seen")
    cells = [
        (
            row.name,
            estimate_cell(row.scores[scores[0]]),
            *(value_cell(row.scores[key]) for key in scores[1:]),
            _seen(row),
        )
        for row in rows
    ]
    console.table(title, columns, cells, numbers=columns[1:])
    if result.differences:
        show_differences(result.differences)
    console.note(
        "every subject counts equally; [95 % intervals] from resampled subjects, all of them in --json"
    )
    if result.unlabelled:
        console.note(f"{result.unlabelled} windows have no label {first.target}, and were left out")
    for row in rows:
        if row.unpredicted:
            console.note(f"{row.name}: found nothing in {row.unpredicted} windows; the median stands in")
        if row.subjects_in_pretraining:
            seen = len(row.subjects_in_pretraining)
            console.warning(f"{row.name}: {seen} of the {row.subjects} subjects were in its pretraining")
        elif row.subjects_in_pretraining is None:
            console.warning(f"{row.name}: whom it was pretrained on is not known")


def _seen(row: ScoredRow) -> str:
    seen = row.subjects_in_pretraining
    return "?" if seen is None else str(len(seen))
