"""Scores of predictions: every subject counts equally, with intervals from a bootstrap over subjects.

A window weighs one over the number of its subject's windows, so that nobody counts more for a longer
recording. Windows of one subject are not independent: intervals come from resampled subjects, never from
resampled windows. Repeats of folds are scored each by itself and averaged; no prediction is averaged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

REGRESSION_SCORES = ("mae", "rmse", "r2", "pearson", "bias", "loa_lower", "loa_upper")
CLASSIFICATION_SCORES = ("auroc", "auprc", "balanced_accuracy", "f1", "calibration_error")
CONFIDENCE = 0.95
"""Coverage of the intervals."""
AGREEMENT = 1.96
"""Limits of agreement are so many standard deviations from the bias (Bland & Altman 1986)."""
CALIBRATION_BINS = 15
"""Bins of equal width between 0 and 1, as in Guo et al. 2017; bin m holds confidences in ((m-1)/15, m/15]."""

_BLOCK = 4_000_000  # weights of resampled windows held at once


@dataclass(frozen=True, kw_only=True)
class ScoredTask:
    """The truth about N windows: `values` (N,), numbers or words, and whose windows they are."""

    target: str
    values: NDArray[Any]
    """(N,): numbers for regression, words for classification."""
    subjects: NDArray[np.str_]
    """(N,)."""
    known_classes: tuple[str, ...] = ()
    """Classes of the predictions, in their order, where `values` may lack some; else those of `values`."""

    @property
    def numeric(self) -> bool:
        """True for regression, False for classification."""
        return bool(np.issubdtype(self.values.dtype, np.number))

    @property
    def classes(self) -> NDArray[np.str_]:
        """(K,) the classes, sorted unless `known_classes` has another order; empty for regression."""
        if self.numeric:
            return np.zeros(0, dtype=np.str_)
        return np.array(self.known_classes) if self.known_classes else np.unique(self.values.astype(np.str_))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its 95 % interval, None where too few subjects or classes leave it undefined."""

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """The scores of one method; `as_json` gives `name, target, mae, mae_interval, subjects, ...`."""

    name: str
    target: str
    subjects: int
    windows: int
    scores: Mapping[str, Estimate]
    subject_errors: Mapping[str, float]
    """Subject to mean absolute error, or share of windows put into the wrong class."""
    classes: tuple[str, ...] = ()
    """Of a classification, in the order of `confusion`."""
    positive: str | None = None
    """Of two classes the one that `auroc`, `auprc` and `f1` are about; None for more, which are averaged."""
    confusion: tuple[tuple[float, ...], ...] | None = None
    """Windows by true class (row) and predicted class (column), the mean over repeats; None for numbers."""
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
            "classes": list(self.classes),
            "positive": self.positive,
            "confusion": None if self.confusion is None else [list(row) for row in self.confusion],
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
    `ScoredRow`.
    """

    values: NDArray[np.float64]
    features: int | None = None
    regularisation: tuple[float, ...] = ()
    unpredicted: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row with what it was computed from: for figures and for differences between rows."""

    row: ScoredRow
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
    task: ScoredTask,
    *,
    seed: int,
    resamples: int = 1000,
    readout: str | None = None,
    subjects_in_pretraining: Sequence[str] | None = (),
) -> Outcome:
    """Score the predictions of one method on the windows of the test folds.

    Regression: `mae` and `rmse` are means over subjects; `r2` and `pearson` are those of all windows, each
    subject with equal weight. So are Bland & Altman's `bias` (predicted minus true) and limits of agreement
    `loa_lower` and `loa_upper` (https://doi.org/10.1016/S0140-6736(86)90837-8): bias ± 1.96 standard
    deviations of the difference in a window of any subject, which differences between and within subjects
    make up; U subjects have U - 1 degrees of freedom, so one subject has no limits.

    Classification, each subject with equal weight: `auroc`, `auprc`, `balanced_accuracy`, `f1`, and
    `calibration_error`, the expected one of Guo et al. 2017 (https://arxiv.org/abs/1706.04599): the mean
    distance, in `CALIBRATION_BINS` bins of the predicted class's probability, from the share of hits.
    `auroc`, `auprc` and `f1` are about the rarer of two classes; of more they are the mean over the classes,
    each against the rest. A window is put into its most probable class.

    Args:
        name: the row's name.
        predictions: what a method predicts.
        task: what is true.
        seed: of the resamples; rows to be compared need the same.
        resamples: how often the subjects are drawn anew.
        readout: the read-out of an encoder, for the row.
        subjects_in_pretraining: whom the encoder was pretrained on; None where that cannot be told.

    Raises:
        ValueError: when no window has a prediction, or a label is none of the predictions' classes.
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
        about: dict[str, Any] = {}
    else:
        codes = class_codes(truth, task.classes)
        found = _classification(kept, codes, owner, weights)
        errors = _by_subject((kept.argmax(-1) != codes).astype(np.float64), owner).mean(axis=0)
        positives = positive_classes(codes, len(task.classes))
        about = {
            "classes": tuple(task.classes.tolist()),
            "positive": str(task.classes[positives[0]]) if len(task.classes) == 2 else None,
            "confusion": tuple(map(tuple, _confusion(kept, codes).tolist())),
        }
    seen = subjects_in_pretraining
    row = ScoredRow(
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
        **about,
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
    bias, people = mean(p - y), weights.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.maximum(squares - bias**2, 0) * (people / (people - 1) if people > 1 else np.nan)
        half = AGREEMENT * np.sqrt(variance)
        # A constant has no correlation: what rounding leaves of its spread is none.
        flat = spread_p <= 1e-12 * np.maximum(mean(p**2), 1e-300)
        found = {
            "mae": mean(np.abs(p - y)),
            "rmse": share @ np.sqrt(_by_subject((p - y) ** 2, owner)).T,
            "r2": np.where(spread_y > 0, 1 - squares / spread_y, np.nan),
            "pearson": np.where(flat, np.nan, together / np.sqrt(spread_y * spread_p)),
            "bias": bias,
            "loa_lower": bias - half,
            "loa_upper": bias + half,
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
    positives = positive_classes(codes, classes)
    found = {key: np.zeros(len(weights)) for key in CLASSIFICATION_SCORES}
    for one in probability:
        cells = codes * classes + one.argmax(-1)
        confusion = weights @ _sums_by_subject(each, owner, cells, classes**2)
        confusion = confusion.reshape(-1, classes, classes)  # (1 + S, true, predicted), by weight
        hits = np.diagonal(confusion, axis1=1, axis2=2)
        true, predicted = confusion.sum(2), confusion.sum(1)
        with np.errstate(invalid="ignore"):
            recall, f1 = hits / true, 2 * hits / (true + predicted)  # (1 + S, K); NaN where a class is not
        gap = weights @ calibration_sums(one, codes, owner, each)[..., 1]
        found["balanced_accuracy"] += recall[:, np.unique(codes)].mean(1)
        found["f1"] += f1[:, positives[0]] if classes == 2 else _mean_of_known(f1)
        found["calibration_error"] += np.abs(gap).sum(1) / weights.sum(1)
    block = max(1, _BLOCK // windows)
    for start in range(0, len(weights), block):
        rows = slice(start, start + block)
        by_window = weights[rows][:, owner] * each  # (block, N)
        for one in probability:
            rankings = [_ranking(one[:, k], codes == k, by_window) for k in positives]
            found["auroc"][rows] += np.mean([auroc for auroc, _ in rankings], axis=0)
            found["auprc"][rows] += np.mean([auprc for _, auprc in rankings], axis=0)
    return {key: values / repeats for key, values in found.items()}


def class_codes(words: NDArray[Any], classes: NDArray[np.str_]) -> NDArray[np.int64]:
    """The numbers (N,) of words (N,) among the classes.

    Raises:
        ValueError: when a word is none of them.
    """
    code = {word: number for number, word in enumerate(classes.tolist())}
    if unknown := sorted(set(words.astype(np.str_).tolist()) - code.keys()):
        raise ValueError(f"expected labels among {', '.join(code)}; got {', '.join(unknown[:5])}")
    return np.array([code[word] for word in words.astype(np.str_).tolist()], np.int64)


def positive_classes(codes: NDArray[np.int64], classes: int) -> list[int]:
    """The classes that AUROC and AUPRC are about: the rarer of two, of more each that there is."""
    if classes == 2:
        return [int(np.bincount(codes, minlength=2).argmin())]
    return [int(code) for code in np.unique(codes)]


def calibration_sums(
    probability: NDArray[np.float64],
    codes: NDArray[np.int64],
    owner: NDArray[np.int64],
    each: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Of each subject (U,) and bin of confidence: weight, weight of hits less confidence, and of hits.

    Args:
        probability: (N, K) of the classes; the confidence is that of the most probable one.
        codes: (N,) true classes.
        owner: (N,) whose windows they are, from 0 to U - 1.
        each: (N,) weight of a window.

    Returns:
        (U, `CALIBRATION_BINS`, 3).
    """
    confidence, hit = probability.max(-1), probability.argmax(-1) == codes
    cell = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    sums = (each, each * (hit - confidence), each * hit)
    return np.stack([_sums_by_subject(x, owner, cell, CALIBRATION_BINS) for x in sums], axis=-1)


def _sums_by_subject(
    values: NDArray[np.float64], owner: NDArray[np.int64], cell: NDArray[np.int64], cells: int
) -> NDArray[np.float64]:
    """(U, cells) sums of values (N,) by subject and cell (N,)."""
    people = int(owner.max()) + 1
    sums = np.bincount(owner * cells + cell, weights=values, minlength=people * cells)
    return sums.astype(np.float64).reshape(people, cells)


def _mean_of_known(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1 + S,) means of those (1 + S, K) that are not NaN: a resample may lack a class."""
    return np.asarray(np.nan_to_num(x).sum(1) / np.isfinite(x).sum(1))


def _confusion(probability: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, K) windows by true and predicted class, the mean over repeats of probabilities (R, N, K)."""
    repeats, _, classes = probability.shape
    cells = codes * classes + probability.argmax(-1)
    return np.asarray(np.bincount(cells.ravel(), minlength=classes**2).reshape(classes, classes) / repeats)


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
