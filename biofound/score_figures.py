"""Pictures of scores: error by subject; Bland-Altman, or ROC, calibration and confusion of every row; PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from biofound.core.scores import (
    AGREEMENT,
    Estimate,
    Outcome,
    ScoredTask,
    calibration_sums,
    class_codes,
    positive_classes,
)
from biofound.figures import save_figure

_COLUMNS = 3
_UNITS = {"HR": "bpm", "PULSE": "bpm", "RESP": "breaths/min", "SpO2": "%"}
_GRAY = "#888888"
_CLASS_LETTERS, _NAME_LETTERS = 14, 44
"""Letters that there is space for."""
_MOST_WRITTEN = 6
"""Classes up to which a confusion matrix has its numbers written in."""


def draw_scores(path: Path, outcomes: Sequence[Outcome], task: ScoredTask, *, title: str) -> None:
    """Error by subject of all rows, and below it Bland-Altman plots, or ROC, calibration and confusion.

    Numbers have a Bland-Altman plot for every row; words the curves of all rows and a confusion matrix for
    every row. Subjects stand in the order of their mean error over the rows; a cross marks whom a row's
    encoder was pretrained on. Curves and dots are of the first repeat, scores and confusion of all.

    Args:
        path: the file to write.
        outcomes: the rows, scored on the same windows.
        task: what was to be predicted.
        title: of the picture.
    """
    curves = 0 if task.numeric else 2
    panels = len(outcomes) + curves
    columns = min(panels, _COLUMNS)
    rows, height = -(-panels // columns), 3.1 if task.numeric else 3.6
    figure = plt.figure(figsize=(12, 4.2 + height * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[4.2] + [height] * rows)
    draw_subject_errors(figure.add_subplot(grid[0, :]), outcomes, task)
    axes = [figure.add_subplot(grid[1 + i // columns, i % columns]) for i in range(panels)]
    if task.numeric:
        limits = [draw_bland_altman(axis, one, task) for axis, one in zip(axes, outcomes, strict=True)]
        for axis in axes:
            axis.set_ylim(-max(limits), max(limits))  # the same scale, so that rows can be compared by eye
    else:
        draw_roc(axes[0], outcomes, task)
        draw_calibration(axes[1], outcomes, task)
        for axis, one in zip(axes[curves:], outcomes, strict=True):
            draw_confusion(axis, one)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def draw_subject_errors(axis: Any, outcomes: Sequence[Outcome], task: ScoredTask) -> None:
    """One dot a subject and row: the mean absolute error, or the share of windows in the wrong class."""
    people = list(outcomes[0].row.subject_errors)
    order = np.argsort(np.mean([list(one.row.subject_errors.values()) for one in outcomes], axis=0))
    for number, one in enumerate(outcomes):
        errors = np.array(list(one.row.subject_errors.values()))[order]
        seen = np.isin(np.array(people)[order], one.row.subjects_in_pretraining or ())
        color = f"C{number % 10}"
        label = f"{one.row.name} ({errors.mean():.2f})"
        place = np.arange(len(people))
        axis.plot(place, errors, color=color, linewidth=0.6, marker="o", markersize=3.5, label=label)
        axis.scatter(place[seen], errors[seen], s=60, color=color, marker="x", zorder=3)
    what = f"mean absolute error{_unit(task)}" if task.numeric else "share of windows in the wrong class"
    axis.set_xticks(np.arange(len(people)), np.array(people)[order], rotation=90, fontsize=6)
    axis.set_ylabel(what, fontsize=8)
    axis.set_title(
        "error by subject (mean in brackets; x: in the encoder's pretraining)", fontsize=8, loc="left"
    )
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=7, ncols=2, loc="upper left")


def draw_bland_altman(axis: Any, outcome: Outcome, task: ScoredTask) -> float:
    """Predicted minus true over their mean, with the row's bias and limits of agreement.

    Bland & Altman 1986, https://doi.org/10.1016/S0140-6736(86)90837-8; see `biofound.core.scores.score` for
    how windows of one subject are taken together. A subject's dots have one colour.

    Returns:
        How far from 0 the axis is to reach.
    """
    predicted, truth, owner, _ = _first_repeat(outcome, task)
    difference = predicted - truth.astype(np.float64)
    axis.scatter(
        predicted - difference / 2,
        difference,
        s=np.clip(3000 / len(owner), 3, 20),  # fewer dots are larger
        c=[f"C{i % 10}" for i in owner],
        alpha=0.5,
        linewidths=0,
    )
    scores = outcome.row.scores
    levels = [scores[name].value for name in ("bias", "loa_lower", "loa_upper")]
    known = [level for level in levels if level is not None]  # one subject has a bias alone
    for level, style in zip(known, ("-", "--", "--"), strict=False):
        axis.axhline(level, color="#222222", linewidth=0.8, linestyle=style)
        axis.annotate(
            f"{level:+.1f}",
            (0.995, level),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            ha="right",
            va="bottom",
        )
    limits = f"bias ± {AGREEMENT} SD" if len(known) > 1 else "bias"
    axis.set_title(f"{_end_of(outcome.row.name)}: {limits}", fontsize=8, loc="left")
    _label(axis, f"mean of predicted and true{_unit(task)}", "predicted - true")
    return 1.15 * float(max(*np.abs(known), np.abs(difference).max()))


def draw_roc(axis: Any, outcomes: Sequence[Outcome], task: ScoredTask) -> None:
    """ROC curve of every row, each subject with equal weight: of the positive class, or the mean of more.

    The mean is over the classes, each against the rest, of the rates of hits at the same rate of false
    alarms, so its area is the mean of their areas.
    """
    axis.plot([0, 1], [0, 1], color=_GRAY, linewidth=0.8, linestyle=":")
    for number, one in enumerate(outcomes):
        probability, truth, _, each = _first_repeat(one, task)
        codes = class_codes(truth, task.classes)
        curves = [
            roc_curve(codes == k, probability[:, k], sample_weight=each, drop_intermediate=False)[:2]
            for k in positive_classes(codes, len(task.classes))
            if 0 < (codes == k).sum() < len(codes)
        ]
        if not curves:
            continue
        false, true = curves[0]
        if len(curves) > 1:
            false = np.linspace(0, 1, 1001)
            true = np.mean([np.interp(false, *curve) for curve in curves], axis=0)
        axis.plot(
            false,
            true,
            color=f"C{number % 10}",
            linewidth=1.1,
            label=_shown(one.row.scores["auroc"]),
        )
    positive = outcomes[0].row.positive
    what = f"of {_shortened(positive)}" if positive is not None else "(mean over classes)"
    axis.set_title(f"ROC {what}; AUROC (colours as above)", fontsize=8, loc="left")
    _label(axis, "false positive rate", "true positive rate")
    axis.legend(frameon=False, fontsize=7, loc="lower right")


def draw_calibration(axis: Any, outcomes: Sequence[Outcome], task: ScoredTask) -> None:
    """Reliability diagram of every row: share of hits over mean confidence, by bin of confidence.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599. Each subject has equal weight; the larger a dot the
    more weight is in its bin.
    """
    axis.plot([0, 1], [0, 1], color=_GRAY, linewidth=0.8, linestyle=":")
    for number, one in enumerate(outcomes):
        probability, truth, owner, each = _first_repeat(one, task)
        sums = calibration_sums(probability, class_codes(truth, task.classes), owner, each).sum(axis=0)
        weight, gap, hits = sums[sums[:, 0] > 0].T
        color = f"C{number % 10}"
        label = _shown(one.row.scores["calibration_error"])
        axis.plot((hits - gap) / weight, hits / weight, color=color, linewidth=0.8, label=label)
        axis.scatter((hits - gap) / weight, hits / weight, s=4 + 80 * weight / weight.sum(), color=color)
    axis.set_title("calibration; expected error", fontsize=8, loc="left")
    _label(axis, "probability of the predicted class", "share of hits")
    axis.set(xlim=(min(1 / len(task.classes), 0.5) - 0.03, 1.03), ylim=(-0.03, 1.03))
    axis.legend(fontsize=7, loc="lower right")


def draw_confusion(axis: Any, outcome: Outcome) -> None:
    """Windows by true and predicted class; colours are the shares of a true class."""
    row = outcome.row
    assert row.confusion is not None  # of words
    counts = np.array(row.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    classes = [_shortened(name) for name in row.classes]
    if len(classes) <= _MOST_WRITTEN:
        for (true, predicted), count in np.ndenumerate(counts):
            color = "white" if shares[true, predicted] > 0.5 else "black"
            text = f"{count:,.0f}\n{shares[true, predicted]:.0%}"
            axis.text(predicted, true, text, ha="center", va="center", fontsize=7, color=color)
    places = np.arange(len(classes))
    axis.set_xticks(places, classes, rotation=90 if max(map(len, classes)) > 6 else 0)
    axis.set_yticks(places, classes)
    axis.set_title(_end_of(row.name), fontsize=8, loc="left")
    _label(axis, "predicted (windows, share of the true class)", "true")
    axis.grid(False)


def _first_repeat(
    outcome: Outcome, task: ScoredTask
) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.int64], NDArray[np.float64]]:
    """Predictions (n,) or (n, K) of the windows that the first repeat tests; truth, owner and weight (n,)."""
    predicted = outcome.predictions.values[0]
    tested = np.isfinite(predicted.reshape(len(predicted), -1)).all(axis=1)
    _, owner, counts = np.unique(task.subjects[tested], return_inverse=True, return_counts=True)
    return predicted[tested], task.values[tested], owner, 1 / counts[owner]


def _label(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=7)
    axis.set_ylabel(y, fontsize=7)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)


def _shown(estimate: Estimate) -> str:
    return "-" if estimate.value is None else f"{estimate.value:.2f}"


def _shortened(word: str) -> str:
    return word if len(word) <= _CLASS_LETTERS else f"{word[: _CLASS_LETTERS - 1]}…"


def _end_of(name: str) -> str:
    return name if len(name) <= _NAME_LETTERS else f"…{name[1 - _NAME_LETTERS :]}"


def _unit(task: ScoredTask) -> str:
    return f" ({_UNITS[task.target]})" if task.target in _UNITS else ""
