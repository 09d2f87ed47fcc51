"""Pictures of a probe: error by subject for every row, and Bland-Altman plots, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from biofound.core.probe_scores import Outcome, ProbeTask
from biofound.figures import save_figure

_COLUMNS = 3
_UNITS = {"HR": "bpm", "PULSE": "bpm", "RESP": "breaths/min", "SpO2": "%"}


def draw_probe(path: Path, outcomes: Sequence[Outcome], task: ProbeTask) -> None:
    """Error by subject for every row; below, for numbers, a Bland-Altman plot of every row.

    Bland & Altman 1986, https://doi.org/10.1016/S0140-6736(86)90837-8. Subjects stand in the order of their
    mean error over the rows; a cross marks whom a row's encoder was pretrained on.

    Args:
        path: the file to write.
        outcomes: the rows, scored on the same windows.
        task: what was to be predicted.
    """
    compared = outcomes if task.numeric else []
    rows = -(-len(compared) // _COLUMNS)
    figure = plt.figure(figsize=(12, 4.2 + 3.1 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=[4.2] + [3.1] * rows)
    draw_subject_errors(figure.add_subplot(grid[0, :]), outcomes, task)
    axes = [figure.add_subplot(grid[1 + i // _COLUMNS, i % _COLUMNS]) for i in range(len(compared))]
    limits = [draw_bland_altman(axis, one, task) for axis, one in zip(axes, compared, strict=True)]
    for axis in axes:
        axis.set_ylim(-max(limits), max(limits))  # the same scale, so that rows can be compared by eye
    figure.suptitle(f"probe of {task.target}", fontsize=10)
    save_figure(figure, path)


def draw_subject_errors(axis: Any, outcomes: Sequence[Outcome], task: ProbeTask) -> None:
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


def draw_bland_altman(axis: Any, outcome: Outcome, task: ProbeTask) -> float:
    """Predicted minus true over their mean in the first repeat, with bias and limits of agreement.

    Bias and limits (bias ± 1.96 standard deviations) are of all windows, each subject with equal weight.

    Returns:
        How far from 0 the axis is to reach.
    """
    truth, predicted, people = _scored(outcome, task)
    difference = predicted - truth
    _, owner, counts = np.unique(people, return_inverse=True, return_counts=True)
    weights = 1 / counts[owner]
    bias = np.average(difference, weights=weights)
    spread = np.sqrt(np.average((difference - bias) ** 2, weights=weights))
    axis.scatter(
        (predicted + truth) / 2, difference, s=3, c=[f"C{i % 10}" for i in owner], alpha=0.4, linewidths=0
    )
    for level, style in ((bias, "-"), (bias - 1.96 * spread, "--"), (bias + 1.96 * spread, "--")):
        axis.axhline(level, color="#222222", linewidth=0.8, linestyle=style)
        axis.annotate(
            f"{level:+.1f}",
            (0.995, level),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            ha="right",
            va="bottom",
        )
    axis.set_title(outcome.row.name, fontsize=8, loc="left")
    axis.set_xlabel(f"mean of predicted and true{_unit(task)}", fontsize=7)
    axis.set_ylabel("predicted - true", fontsize=7)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    return 1.05 * float(max(abs(bias) + 1.96 * spread, np.abs(difference).max()))


def _scored(
    outcome: Outcome, task: ProbeTask
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.str_]]:
    """True and predicted numbers (n,) of the first repeat's test windows, and whose they are."""
    predicted = outcome.predictions.values[0]
    tested = np.isfinite(predicted)
    return task.values[tested].astype(np.float64), predicted[tested], task.subjects[tested]


def _unit(task: ProbeTask) -> str:
    return f" ({_UNITS[task.target]})" if task.target in _UNITS else ""
