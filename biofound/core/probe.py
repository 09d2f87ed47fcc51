"""Linear probe of frozen features: ridge or logistic regression in folds that no subject crosses.

Features are standardised by the training folds alone, and the regularisation is chosen by inner folds over
the training subjects (Alain & Bengio 2016, https://arxiv.org/abs/1610.01644, is where probes come from). The
folds are those of scikit-learn's `GroupKFold(shuffle=True)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from biofound.core.scores import Predictions, ScoredTask
from biofound.errors import DataError

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-1, 5, 13))
"""Ridge penalties tried, for features of unit variance and N of some hundred to some thousand windows."""
INVERSE_PENALTIES = tuple(float(c) for c in np.logspace(-5, 1, 7))
"""The values of logistic regression's C that are tried."""
INNER_FOLDS = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """The windows to train on and to test on, as indices."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


Folds = Sequence[Sequence[Fold]]
"""Repeats, and the folds of each; within a repeat no window is tested twice."""


def subject_folds(subjects: NDArray[np.str_], *, folds: int, repeats: int, seed: int) -> Folds:
    """Subject-disjoint folds of (N,): in repeat r, `GroupKFold(folds, shuffle=True, random_state=seed + r)`.

    Raises:
        DataError: when there are fewer subjects than folds, or too few for inner folds.
    """
    people = len(np.unique(subjects))
    if folds < 2 or people < max(folds, 3):
        raise DataError(
            f"probe: expected 2 or more folds and at least as many subjects (and 3) with labels, got {folds} "
            f"folds and {people} subjects; use fewer folds, more subjects, or a separate test set"
        )
    return [
        [Fold(train=train, test=test) for train, test in _group_folds(subjects, folds, seed + repeat)]
        for repeat in range(repeats)
    ]


def separate_test(train_subjects: NDArray[np.str_], test_subjects: NDArray[np.str_]) -> Folds:
    """One fold: train on the first windows, test on those that follow them.

    Raises:
        DataError: when a subject is in both, or fewer than 2 subjects are there to train on.
    """
    both = sorted(set(train_subjects.tolist()) & set(test_subjects.tolist()))
    if both:
        raise DataError(
            f"probe: {len(both)} subjects are in the training and in the test set ({', '.join(both[:5])}); "
            "the test set must hold other people"
        )
    if len(np.unique(train_subjects)) < 2 or not len(test_subjects):
        raise DataError(
            "probe: expected at least 2 subjects with labels to train on and 1 to test on, got "
            f"{len(np.unique(train_subjects))} and {len(np.unique(test_subjects))}"
        )
    train = np.arange(len(train_subjects))
    return [[Fold(train=train, test=len(train) + np.arange(len(test_subjects)))]]


def predict_constant(task: ScoredTask, folds: Folds) -> Predictions:
    """The training windows' median, or their most frequent class."""
    out = _empty(task, folds)
    for repeat, fold in _numbered(folds):
        out[repeat, fold.test] = _constant(task, fold.train)
    return Predictions(values=out)


def predict_directly(values: NDArray[np.float64], task: ScoredTask, folds: Folds) -> Predictions:
    """A method's own numbers (N,), such as a beat counter's, in the test folds; nothing is trained.

    Where it gave NaN the median of the training windows stands in, and is counted in `unpredicted`.
    """
    if not task.numeric or values.shape != task.values.shape:
        raise ValueError(f"expected {len(task.values)} numbers for {task.target}, got shape {values.shape}")
    out = _empty(task, folds)
    for repeat, fold in _numbered(folds):
        given = values[fold.test]
        out[repeat, fold.test] = np.where(np.isfinite(given), given, _constant(task, fold.train))
    tested = np.isfinite(out).all(axis=0)
    return Predictions(values=out, unpredicted=int((~np.isfinite(values[tested])).sum()))


def predict_from_features(
    features: NDArray[Any], task: ScoredTask, folds: Folds, *, seed: int
) -> Predictions:
    """Ridge (numbers) or logistic regression (words) on features (N, F).

    Args:
        features: of every window, as frozen.
        task: what to predict.
        folds: where to train and test.
        seed: of the inner folds.

    Raises:
        ValueError: when the features are not (N, F).
        DataError: when the training windows of a fold are all of one class.
    """
    if features.ndim != 2 or len(features) != len(task.values):
        raise ValueError(f"expected features ({len(task.values)}, F), got shape {features.shape}")
    fit = _Ridge(task) if task.numeric else _Logistic(task)
    x = features.astype(np.float64)
    out, chosen = _empty(task, folds), []
    for repeat, fold in _numbered(folds):
        penalty = _choose(fit, x, fold.train, task.subjects[fold.train], seed=seed + repeat)
        out[repeat, fold.test] = fit.predict(x, fold.train, fold.test, (penalty,))[0]
        chosen.append(penalty)
    return Predictions(values=out, features=features.shape[1], regularisation=tuple(chosen))


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """Outputs (N, K) = features (N, F) @ weight (K, F).T + bias (K,): numbers, or logits of the classes."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


def fit_linear_map(
    features: NDArray[Any], task: ScoredTask, *, seed: int, balanced: bool = True
) -> LinearMap:
    """The regression of `predict_from_features`, fitted to all windows, as a map of the features as they are.

    Args:
        features: (N, F).
        task: what to predict; 2 classes or more.
        seed: of the inner folds, which choose the regularisation. Folds that lack a class to train on are
            left out; where none is left, as with one subject, the middle penalty is taken.
        balanced: whether classes have equal weight; else windows have.
    """
    fit = _Ridge(task) if task.numeric else _Logistic(task, balanced=balanced)
    x, rows = features.astype(np.float64), np.arange(len(features))
    people = len(np.unique(task.subjects))
    folds = _group_folds(task.subjects, min(INNER_FOLDS, people), seed) if people > 1 else []
    kinds = len(task.classes)
    whole = [fold for fold in folds if task.numeric or len(np.unique(task.values[fold[0]])) == kinds]
    penalty = _best(fit, x, rows, task.subjects, whole) if whole else fit.penalties[len(fit.penalties) // 2]
    scaler, weight, bias = fit.linear_map(x, penalty)
    weight = weight / scaler.scale_
    return LinearMap(weight=weight, bias=bias - weight @ scaler.mean_)


def pretraining_subjects(
    *,
    fingerprint: str,
    subjects: Sequence[str],
    synthetic: bool,
    stores: Mapping[str, Sequence[str]],
) -> tuple[str, ...] | None:
    """Whom a checkpoint was pretrained on: by its own list, else by the fingerprint of its training windows.

    Args:
        fingerprint: of the checkpoint's training windows.
        subjects: as the checkpoint lists them; empty where it does not.
        synthetic: True when the checkpoint saw no real person.
        stores: fingerprint to subjects of every set of windows that is probed.

    Returns:
        The subjects, or None where neither tells.
    """
    if subjects:
        return tuple(subjects)
    if synthetic:
        return ()
    return tuple(stores[fingerprint]) if fingerprint in stores else None


# ---------------------------------------------------------------- fitting


class _Ridge:
    penalties = ALPHAS

    def __init__(self, task: ScoredTask) -> None:
        self.truth = task.values.astype(np.float64)

    def predict(
        self,
        x: Floats,
        train: NDArray[np.int64],
        test: NDArray[np.int64],
        penalties: Sequence[float],
    ) -> Floats:
        """(A, n) for A penalties: as many copies of the target share one product of the features."""
        scaler = StandardScaler().fit(x[train])
        copies = np.repeat(self.truth[train, None], len(penalties), axis=1)
        model = Ridge(alpha=np.array(penalties), solver="cholesky").fit(scaler.transform(x[train]), copies)
        return np.asarray(model.predict(scaler.transform(x[test]))).reshape(len(test), -1).T

    def linear_map(self, x: Floats, penalty: float) -> tuple[StandardScaler, Floats, Floats]:
        """The scaler of x (N, F), and weight (1, F) and bias (1,) of what it scales, fitted to all of it."""
        scaler = StandardScaler().fit(x)
        model = Ridge(alpha=penalty, solver="cholesky").fit(scaler.transform(x), self.truth[:, None])
        return scaler, model.coef_.reshape(1, -1), np.atleast_1d(model.intercept_)

    def losses(self, predicted: Floats, rows: NDArray[np.int64]) -> Floats:
        """(A, n) absolute errors."""
        return np.abs(predicted - self.truth[rows])


class _Logistic:
    penalties = INVERSE_PENALTIES

    def __init__(self, task: ScoredTask, *, balanced: bool = True) -> None:
        self.weights = "balanced" if balanced else None
        self.classes = task.classes
        self.codes = np.searchsorted(self.classes, task.values.astype(np.str_))
        self.target = task.target

    def predict(
        self,
        x: Floats,
        train: NDArray[np.int64],
        test: NDArray[np.int64],
        penalties: Sequence[float],
    ) -> Floats:
        """(A, n, K) probabilities for A penalties; a class that the training lacks has 0."""
        present = np.unique(self.codes[train])
        if len(present) < 2:
            raise DataError(
                f"probe: in one fold all windows to train on have {self.target} "
                f"{str(self.classes[present[0]])!r}; use fewer folds or more subjects with the other classes"
            )
        scaler = StandardScaler().fit(x[train])
        out = np.zeros((len(penalties), len(test), len(self.classes)))
        model = LogisticRegression(class_weight=self.weights, max_iter=5000, warm_start=True)
        for i, penalty in enumerate(penalties):
            model.set_params(C=penalty).fit(scaler.transform(x[train]), self.codes[train])
            out[i][:, present] = model.predict_proba(scaler.transform(x[test]))
        return out

    def linear_map(self, x: Floats, penalty: float) -> tuple[StandardScaler, Floats, Floats]:
        """The scaler of x (N, F), and weight (K, F) and bias (K,) of the logits, fitted to all of it."""
        scaler = StandardScaler().fit(x)
        model = LogisticRegression(C=penalty, class_weight=self.weights, max_iter=5000)
        model.fit(scaler.transform(x), self.codes)
        weight, bias = model.coef_, model.intercept_
        if len(self.classes) == 2:  # scikit-learn gives the one difference of the two logits
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return scaler, weight, bias

    def losses(self, predicted: Floats, rows: NDArray[np.int64]) -> Floats:
        """(A, n) log losses, each class with equal weight."""
        truth = self.codes[rows]
        right = predicted[:, np.arange(len(rows)), truth]
        rarity = 1.0 / np.bincount(self.codes)[truth]
        return -np.log(np.maximum(right, 1e-7)) * rarity * len(self.codes)


def _choose(
    fit: _Ridge | _Logistic, x: Floats, train: NDArray[np.int64], groups: NDArray[np.str_], *, seed: int
) -> float:
    """The penalty with the smallest mean over subjects of the loss in inner folds."""
    folds = _group_folds(groups, min(INNER_FOLDS, len(np.unique(groups))), seed)
    return _best(fit, x, train, groups, folds)


def _best(
    fit: _Ridge | _Logistic,
    x: Floats,
    train: NDArray[np.int64],
    groups: NDArray[np.str_],
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> float:
    """The penalty with the smallest mean over subjects of the loss in these folds of `train`."""
    held = np.sort(np.concatenate([fold[1] for fold in folds]))
    _, owner = np.unique(groups[held], return_inverse=True)
    losses = np.zeros((len(fit.penalties), len(train)))
    for inner, tested in folds:
        predicted = fit.predict(x, train[inner], train[tested], fit.penalties)
        losses[:, tested] = fit.losses(predicted, train[tested])
    means = [(np.bincount(owner, weights=one) / np.bincount(owner)).mean() for one in losses[:, held]]
    return fit.penalties[int(np.argmin(means))]


def _group_folds(
    groups: NDArray[np.str_], folds: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(groups)), groups=groups))


def _numbered(folds: Folds) -> list[tuple[int, Fold]]:
    return [(repeat, fold) for repeat, these in enumerate(folds) for fold in these]


def _empty(task: ScoredTask, folds: Folds) -> Floats:
    shape = (len(folds), len(task.values))
    return np.full(shape if task.numeric else (*shape, len(task.classes)), np.nan)


def _constant(task: ScoredTask, rows: NDArray[np.int64]) -> Any:
    if task.numeric:
        return np.median(task.values[rows])
    # Not the frequencies: they differ between folds, against the test folds', and would rank windows.
    counts = (task.values[rows].astype(np.str_)[:, None] == task.classes).sum(axis=0)
    return np.eye(len(task.classes))[counts.argmax()]
