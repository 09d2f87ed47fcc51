"""Scores of a probe: every subject counts equally, with intervals from a bootstrap over subjects.

A window weighs one over the number of its subject's windows, so that nobody counts more for a longer
recording. Repeats of the folds are scored each by itself and averaged; no prediction is averaged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

REGRESSION_SCORES = ("mae", "rmse", "r2", "pearson")
CLASSIFICATION_SCORES = ("auroc", "auprc", "balanced_accuracy")
CONFIDENCE = 0.95

_BLOCK = 4_000_000  # weights of resampled windows held at once


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """What is to be predicted of N windows: `values` (N,), numbers or words, and whose windows they are."""

    target: str
    values: NDArray[Any]
    """(N,): numbers for regression, words for classification."""
    subjects: NDArray[np.str_]
    """(N,)."""

    @property
    def numeric(self) -> bool:
        """True for regression, False for classification."""
        return bool(np.issubdtype(self.values.dtype, np.number))

    @property
    def classes(self) -> NDArray[np.str_]:
        """(K,) the words of a classification, sorted; empty for regression."""
        return np.zeros(0, dtype=np.str_) if self.numeric else np.unique(self.values.astype(np.str_))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its 95 % interval, None where fewer than two subjects or one class make it undefined."""

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One row of a probe's table; `as_json` gives `name, target, mae, mae_interval, subjects, ...`."""

    name: str
    target: str
    subjects: int
    windows: int
    scores: Mapping[str, Estimate]
    subject_errors: Mapping[str, float]
    """Subject to mean absolute error, or share of windows put into the wrong class."""
    features: int | None = None
    """F; None where nothing was fitted."""
    regularisation: tuple[float, ...] = ()
    """What the inner folds chose: ridge's alpha or logistic regression's C, by fold and repeat."""
    unpredicted: int = 0
    """Windows for which the method gave nothing: the constant of the training folds stands in for it."""
    readout: str | None = None
    """The read-out of an encoder; None where none was used."""
    subjects_in_pretraining: tuple[str, ...] | None = ()
    """Scored subjects that the encoder was pretrained on; None where that cannot be told."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON: each score under its name, its interval under `<name>_interval`."""
        scores: dict[str, Any] = {}
        for name, estimate in self.scores.items():
            scores[name] = estimate.value
            scores[f"{name}_interval"] = None if estimate.interval is None else list(estimate.interval)
        seen = self.subjects_in_pretraining
        return {
            "name": self.name,
            "target": self.target,
            **scores,
            "subjects": self.subjects,
            "windows": self.windows,
            "readout": self.readout,
            "features": self.features,
            "regularisation": list(self.regularisation),
            "unpredicted": self.unpredicted,
            "subjects_in_pretraining": None if seen is None else list(seen),
            "subject_errors": dict(self.subject_errors),
        }


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a method predicts for N windows in R repeats: NaN where a window is in no test fold.

    `values` is (R, N) for regression, (R, N, K) probabilities for classification; the rest is as in
    `ProbeRow`.
    """

    values: NDArray[np.float64]
    features: int | None = None
    regularisation: tuple[float, ...] = ()
    unpredicted: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row with what it was computed from: for figures and for differences between rows."""

    row: ProbeRow
    predictions: Predictions
    resampled: Mapping[str, NDArray[np.float64]] = field(repr=False)
    """Score to its values (S,) in the S resamples of subjects, which are the same for every row of a task."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score of one row minus that of another on the same resamples of subjects: negative mae is better."""

    name: str
    against: str
    score: str
    estimate: Estimate

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        interval = self.estimate.interval
        return {
            "name": self.name,
            "against": self.against,
            "score": self.score,
            "difference": self.estimate.value,
            "interval": None if interval is None else list(interval),
        }


def score(
    name: str,
    predictions: Predictions,
    task: ProbeTask,
    *,
    seed: int,
    resamples: int = 1000,
    readout: str | None = None,
    subjects_in_pretraining: Sequence[str] | None = (),
) -> Outcome:
    """Score the predictions of one method on the windows of the test folds.

    Regression: `mae` and `rmse` are means over subjects; `r2` and `pearson` are those of all windows, each
    subject with equal weight. Classification: `auroc`, `auprc` and `balanced_accuracy` likewise; the
    positive one of two classes is the rarer, more classes are averaged, each against the rest.

    Args:
        name: the row's name.
        predictions: what a method predicts.
        task: what is true.
        seed: of the resamples; rows to be compared need the same.
        resamples: how often the subjects are drawn anew.
        readout: the read-out of an encoder, for the row.
        subjects_in_pretraining: whom the encoder was pretrained on; None where that cannot be told.
    """
    values = predictions.values
    scored = np.isfinite(values.reshape(len(values), len(task.values), -1)).all(axis=(0, 2))
    if not scored.any():
        raise ValueError(f"{name}: expected predictions for some windows, got none")
    people, owner = np.unique(task.subjects[scored], return_inverse=True)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(people), np.full(len(people), 1 / len(people)), size=resamples)
    weights = np.vstack([np.ones(len(people)), draws])  # (1 + S, U): the first row is everybody once
    kept, truth = values[:, scored], task.values[scored]
    if task.numeric:
        found = _regression(kept, truth, owner, weights)
        errors = _by_subject(np.abs(kept - truth), owner).mean(axis=0)
    else:
        codes = np.searchsorted(task.classes, truth.astype(np.str_))
        found = _classification(kept, codes, owner, weights)
        errors = _by_subject((kept.argmax(-1) != codes).astype(np.float64), owner).mean(axis=0)
    seen = subjects_in_pretraining
    row = ProbeRow(
        name=name,
        target=task.target,
        subjects=len(people),
        windows=int(scored.sum()),
        scores={key: _estimate(numbers, len(people)) for key, numbers in found.items()},
        subject_errors={str(who): float(error) for who, error in zip(people, errors, strict=True)},
        features=predictions.features,
        regularisation=predictions.regularisation,
        unpredicted=predictions.unpredicted,
        readout=readout,
        subjects_in_pretraining=None if seen is None else tuple(sorted(set(seen) & set(people.tolist()))),
    )
    return Outcome(row=row, predictions=predictions, resampled={key: x[1:] for key, x in found.items()})


def paired_difference(first: Outcome, second: Outcome, *, score: str) -> Difference:
    """How much better or worse `first` is than `second`, with the interval over the same subjects.

    Raises:
        ValueError: when the two were not scored on the same subjects and resamples.
    """
    ours, theirs = first.row, second.row
    a, b = first.resampled[score], second.resampled[score]
    if ours.subject_errors.keys() != theirs.subject_errors.keys() or a.shape != b.shape:
        raise ValueError(f"{ours.name} and {theirs.name} were not scored on the same subjects and resamples")
    values = (ours.scores[score].value, theirs.scores[score].value)
    point = math.nan if values[0] is None or values[1] is None else values[0] - values[1]
    estimate = _estimate(np.concatenate([[point], a - b]), ours.subjects)
    return Difference(name=ours.name, against=theirs.name, score=score, estimate=estimate)


def _estimate(values: NDArray[np.float64], subjects: int) -> Estimate:
    """From (1 + S,): the value of everybody once, then those of the resamples."""
    point = float(values[0]) if np.isfinite(values[0]) else None
    resampled = values[1:][np.isfinite(values[1:])]
    if point is None or subjects < 2 or not len(resampled):
        return Estimate(value=point, interval=None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value=point, interval=(float(low), float(high)))


def _by_subject(x: NDArray[np.float64], owner: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R, U) means over the windows of each subject, from (R, N)."""
    counts = np.bincount(owner)
    return np.stack([np.bincount(owner, weights=one) / counts for one in np.atleast_2d(x)])


def _regression(
    predicted: NDArray[np.float64],
    truth: NDArray[np.float64],
    owner: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Each score (1 + S,), by the weights (1 + S, U) of subjects: all follow from means by subject."""
    centre = truth.mean()  # without which squares of numbers far from 0 lose digits
    p, y = predicted - centre, np.broadcast_to(truth - centre, predicted.shape)
    share = weights / weights.sum(axis=1, keepdims=True)

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(share @ _by_subject(x, owner).T)  # (1 + S, R)

    squares = mean((p - y) ** 2)
    spread_y, spread_p = mean(y**2) - mean(y) ** 2, mean(p**2) - mean(p) ** 2
    together = mean(p * y) - mean(p) * mean(y)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A constant has no correlation: what rounding leaves of its spread is none.
        flat = spread_p <= 1e-12 * np.maximum(mean(p**2), 1e-300)
        found = {
            "mae": mean(np.abs(p - y)),
            "rmse": share @ np.sqrt(_by_subject((p - y) ** 2, owner)).T,
            "r2": np.where(spread_y > 0, 1 - squares / spread_y, np.nan),
            "pearson": np.where(flat, np.nan, together / np.sqrt(spread_y * spread_p)),
        }
    return {key: found[key].mean(axis=1) for key in REGRESSION_SCORES}


def _classification(
    probability: NDArray[np.float64],
    codes: NDArray[np.int64],
    owner: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Each score (1 + S,) from probabilities (R, N, K) and true classes (N,)."""
    repeats, windows, classes = probability.shape
    each = 1 / np.bincount(owner)[owner]  # (N,)
    # Of two classes the rarer is the positive one; of more, each is in its turn.
    positives = [int(np.bincount(codes, minlength=2).argmin())] if classes == 2 else list(range(classes))
    total = {key: np.zeros(len(weights)) for key in CLASSIFICATION_SCORES}
    block = max(1, _BLOCK // windows)
    for start in range(0, len(weights), block):
        rows = slice(start, start + block)
        by_window = weights[rows][:, owner] * each  # (block, N)
        for probabilities in probability:
            found = [_ranking(probabilities[:, k], codes == k, by_window) for k in positives]
            total["auroc"][rows] += np.mean([one[0] for one in found], axis=0) / repeats
            total["auprc"][rows] += np.mean([one[1] for one in found], axis=0) / repeats
            hit = probabilities.argmax(-1) == codes
            with np.errstate(invalid="ignore"):
                recalls = [
                    by_window[:, hit & (codes == k)].sum(1) / by_window[:, codes == k].sum(1)
                    for k in np.unique(codes)
                ]
            total["balanced_accuracy"][rows] += np.mean(recalls, axis=0) / repeats
    return total


def _ranking(
    value: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC and average precision (S,) of values (N,) by weights (S, N); NaN where a class has no weight."""
    order = np.argsort(-value, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(value[order])), len(value) - 1)  # equal values count together
    sorted_weights, hits = weights[:, order], positive[order]
    true = np.cumsum(sorted_weights * hits, axis=1)[:, ends]
    false = np.cumsum(sorted_weights * ~hits, axis=1)[:, ends]
    gained = np.diff(true, axis=1, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (np.diff(false, axis=1, prepend=0.0) * (true - gained / 2)).sum(1)
        auroc = area / (true[:, -1] * false[:, -1])
        precision = np.where(true + false > 0, true / np.maximum(true + false, 1e-300), 0.0)
        return auroc, (gained * precision).sum(1) / true[:, -1]
