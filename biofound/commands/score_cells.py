"""Scores as cells of a table: their names, values with intervals, and differences between rows."""

from collections.abc import Sequence

from biofound import console
from biofound.core.scores import Difference, Estimate

SCORE_NAMES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "pearson": "Pearson r",
    "bias": "bias",
    "loa_lower": "lower limit of agreement",
    "loa_upper": "upper limit of agreement",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "calibration_error": "calibration error",
}
"""The names that tables have for the scores of `biofound.core.scores`, in the order of their columns."""


def estimate_cell(estimate: Estimate, *, sign: str = "") -> str:
    """A score with its interval, `sign` as in a format specification."""
    if estimate.interval is None:
        return value_cell(estimate, sign=sign)
    low, high = estimate.interval
    return f"{value_cell(estimate, sign=sign)} [{low:{sign}.2f}, {high:{sign}.2f}]"


def value_cell(estimate: Estimate, *, sign: str = "") -> str:
    """A score without its interval; '-' where it is not defined."""
    return "-" if estimate.value is None else f"{estimate.value:{sign}.2f}"


def show_differences(differences: Sequence[Difference]) -> None:
    """The table of one or more differences of a score."""
    console.table(
        f"differences of {SCORE_NAMES[differences[0].score]}, on the same subjects",
        ("row", "minus", "difference"),
        [(one.name, one.against, estimate_cell(one.estimate, sign="+")) for one in differences],
        numbers=("difference",),
    )
