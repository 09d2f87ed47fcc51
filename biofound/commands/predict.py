"""`biofound predict`: a fine-tuned model's prediction for every window of a store or of recordings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biofound import __version__, console
from biofound.commands.inputs import TableInputs
from biofound.commands.probe_data import LabelRequest, check_fit, read_labels
from biofound.commands.score_cells import SCORE_NAMES, estimate_cell
from biofound.commands.table_writing import write_window_table
from biofound.core.devices import resolve_device
from biofound.core.predict import WindowPredictor
from biofound.core.scores import Outcome, Predictions, ScoredTask, score
from biofound.core.task import TaskCheckpoint, load_task_checkpoint
from biofound.data.window_table import PredictionsHeader, TableOrigin, WindowPredictions, join_rows
from biofound.data.windows import Windows
from biofound.errors import DataError, checkpoint_error_context, write_error_context
from biofound.options import Invocation
from biofound.settings import PredictSettings, ProbeSettings

SEED: int = ProbeSettings.model_fields["seed"].default
"""Of the intervals."""
ALL, UNSEEN = "all subjects", "subjects not in its training"


def execute(invocation: Invocation[PredictSettings], inputs: TableInputs, origin: TableOrigin) -> None:
    """Write the predictions, say of how many windows they are, and score them where there are labels.

    Args:
        invocation: the command's settings.
        inputs: the windows or recordings.
        origin: what the file says of itself.

    Raises:
        CheckpointError: when the model cannot be read.
        SettingsError: when the channel table contradicts the model, or there are no such labels.
        DataError: when windows, recordings or labels do not fit or cannot be read, none is left, or a file
            cannot be written.
    """
    settings = invocation.settings
    checkpoint = load_task_checkpoint(settings.model)
    with checkpoint_error_context(settings.model):
        predictor = WindowPredictor(
            checkpoint,
            gate=settings.gate,
            batch_size=settings.batch_size,
            device=resolve_device(settings.device),
        )
    labelled = None
    if inputs.windows is not None:
        check_fit(str(settings.model), checkpoint, inputs.windows)
        labelled = _read_labels(settings, checkpoint, inputs.windows)
    header = PredictionsHeader(
        biofound_version=__version__,
        origin=origin,
        channels=checkpoint.model.channels,
        sfreq=checkpoint.data.sfreq,
        window_samples=checkpoint.model.context_length,
        target=checkpoint.task.target,
        classes=checkpoint.task.classes,
    )
    kept: list[WindowPredictions] = []
    keep = kept.append if labelled is not None else lambda _: None
    counts = write_window_table(
        settings, inputs, predictor.input, predictor.rows, header, verb="predicted", on_rows=keep
    )
    result = {**counts.as_json(), "target": header.target, "classes": list(header.classes)}
    result["output"] = str(settings.output)
    scores = None if labelled is None else _score(checkpoint, labelled, join_rows(kept))
    if scores is not None and settings.picture is not None:
        _draw(settings, scores)
    if invocation.json:
        console.print_json(result | ({} if scores is None else scores.as_json()))
        return
    kind = "synthetic" if checkpoint.data.synthetic else "recorded"
    counts.show(f"{header.target} by {settings.model}, fine-tuned on {kind} data", settings)
    if scores is not None:
        _show(scores)


# ---------------------------------------------------------------------------------------------------------
# Labels and scores


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """The n windows with a label: their `rows` (n,) among all, and what is true of them."""

    rows: NDArray[np.int64]
    task: ScoredTask
    unlabelled: int


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """The scores of all labelled windows and, if some subjects were trained on, those of the others."""

    outcomes: Sequence[Outcome]
    tasks: Sequence[ScoredTask]
    seen: tuple[str, ...] | None
    """Scored subjects that the model was trained on or stopped early by; None where that cannot be told."""
    unlabelled: int

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "scores": [outcome.row.as_json() for outcome in self.outcomes],
            "subjects_in_training": None if self.seen is None else list(self.seen),
            "windows_without_label": self.unlabelled,
        }


def _read_labels(
    settings: PredictSettings, checkpoint: TaskCheckpoint, windows: Sequence[Windows]
) -> _Labelled | None:
    """The labels of the windows; None where no labels are asked for.

    Raises:
        SettingsError: when the labels asked for are not to be had from these windows.
        DataError: when labels cannot be used, or are of another kind than the model's.
    """
    if settings.labels is None:
        return None
    classes = checkpoint.task.classes
    wanted = LabelRequest(
        labels=settings.labels,
        target=settings.target or checkpoint.task.target,
        classes=bool(classes),
        root=settings.labels_root,
    )
    labels, subjects = read_labels(wanted, windows, where=str(settings.data_dir))
    rows = np.flatnonzero(labels.known)
    values = labels.values[rows]
    where = f"--labels {settings.labels}: {wanted.target}"
    if labels.numeric == bool(classes):
        found, expected = ("numbers", "classes") if classes else ("words", "numbers")
        raise DataError(
            f"{where}: {settings.model} predicts {expected}, and the labels are {found}; name another label "
            "with --target"
        )
    unknown = sorted(set(values.astype(np.str_).tolist()) - set(classes)) if classes else []
    if unknown:
        raise DataError(
            f"{where}: expected {', '.join(classes)}, the classes of {settings.model}, got "
            f"{', '.join(unknown[:5])} too; rename these labels, or leave them empty"
        )
    task = ScoredTask(
        target=wanted.target, values=values, subjects=subjects[rows], known_classes=tuple(classes)
    )
    return _Labelled(rows=rows, task=task, unlabelled=labels.missing)


def _score(checkpoint: TaskCheckpoint, labelled: _Labelled, rows: WindowPredictions) -> _Scores:
    task = labelled.task
    predicted = rows.prediction if task.numeric else rows.probability
    values = predicted[labelled.rows].astype(np.float64)[None]
    tasks, outcomes = [task], [_scored(ALL, values, task, checkpoint)]
    trained_on = (*checkpoint.data.subjects, *checkpoint.validation_subjects)
    seen = np.isin(task.subjects, trained_on)
    if seen.any() and not seen.all():
        others = replace(task, values=task.values[~seen], subjects=task.subjects[~seen])
        tasks.append(others)
        outcomes.append(_scored(UNSEEN, values[:, ~seen], others, checkpoint))
    names = tuple(np.unique(task.subjects[seen]).tolist())
    known = bool(trained_on) or checkpoint.data.synthetic
    return _Scores(
        outcomes=outcomes, tasks=tasks, seen=names if known else None, unlabelled=labelled.unlabelled
    )


def _scored(name: str, values: NDArray[np.float64], task: ScoredTask, checkpoint: TaskCheckpoint) -> Outcome:
    parent = checkpoint.parent or {"subjects": (), "synthetic": True}
    pretrained_on = tuple(parent["subjects"]) if parent["subjects"] or parent["synthetic"] else None
    return score(name, Predictions(values=values), task, seed=SEED, subjects_in_pretraining=pretrained_on)


# ---------------------------------------------------------------------------------------------------------
# Showing


def _draw(settings: PredictSettings, scores: _Scores) -> None:
    """Draw the last row: that of subjects not trained on, where there are any."""
    from biofound.score_figures import draw_scores  # matplotlib takes a second to import

    assert settings.picture is not None
    with write_error_context(settings.picture, option="--picture"):
        title = f"{scores.tasks[-1].target} by {settings.model}"
        draw_scores(settings.picture, scores.outcomes[-1:], scores.tasks[-1], title=title)
    console.note(f"written: {settings.picture}")


def _show(scores: _Scores) -> None:
    """One line a score, one column for all subjects, and one for those not trained on."""
    rows = [outcome.row for outcome in scores.outcomes]
    names = [row.name for row in rows]
    lines = [
        (SCORE_NAMES[key], *(estimate_cell(row.scores[key]) for row in rows))
        for key in SCORE_NAMES
        if key in rows[0].scores
    ]
    counts = [
        ("subjects", *(row.subjects for row in rows)),
        ("windows", *(row.windows for row in rows)),
    ]
    console.table(f"scores of {rows[0].target}", ("", *names), [*lines, *counts], numbers=names)
    about = f"; AUROC, AUPRC and F1 are about {rows[0].positive}" if rows[0].positive is not None else ""
    console.note(f"every subject counts equally; [95 % intervals] from resampled subjects{about}")
    if scores.unlabelled:
        console.note(f"{scores.unlabelled} windows have no label {rows[0].target}, and were not scored")
    if scores.seen is None:
        console.warning("whom the model was fine-tuned on is not known")
    elif scores.seen:
        console.warning(f"{len(scores.seen)} of the {rows[0].subjects} subjects were in its training")
    if rows[-1].subjects_in_pretraining is None:
        console.warning("whom its encoder was pretrained on is not known")
    elif rows[-1].subjects_in_pretraining:
        seen = len(rows[-1].subjects_in_pretraining)
        console.warning(f"{rows[-1].name}: {seen} of {rows[-1].subjects} were in its encoder's pretraining")
