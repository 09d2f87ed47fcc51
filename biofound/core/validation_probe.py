"""Validation probe: how well a label follows from the frozen encoder, measured while it is pretrained."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from biofound.core.history import ProbeErrors
from biofound.core.probe import predict_constant, predict_from_features, subject_folds
from biofound.core.scores import Predictions, ScoredTask, score
from biofound.errors import DataError

if TYPE_CHECKING:
    from biofound.core.models import Encoder
    from biofound.core.readout import WindowReader

MIN_SUBJECTS = 3
"""One to test on, and two to choose the regularisation with."""
BATCH = 256
"""Windows that are embedded at once."""


class ValidationProbe:
    """Ridge or logistic regression on frozen features of labelled windows, in folds no subject crosses.

    Folds, labels and windows stay the same, so that errors of different epochs can be compared; see
    `biofound.core.probe` for how it is fitted.

    Args:
        windows: the N windows that have a label.
        task: their labels and subjects.
        folds: folds, at most; no more than there are subjects.
        interval: epochs between two probes.
        seed: of the folds.
        chooses_best: whether the best checkpoint is that of the smallest probe error, not validation loss.

    Raises:
        DataError: when the windows are of fewer than 3 subjects, or a fold would have one class only.
    """

    def __init__(
        self,
        *,
        windows: "WindowReader",
        task: ScoredTask,
        folds: int,
        interval: int,
        seed: int,
        chooses_best: bool = False,
    ) -> None:
        self.windows, self.task, self.interval, self.chooses_best = windows, task, interval, chooses_best
        self.subjects = len(np.unique(task.subjects))
        if self.subjects < MIN_SUBJECTS:
            raise DataError(
                f"expected windows of at least {MIN_SUBJECTS} subjects with a label {task.target}, got "
                f"{len(task.values)} windows of {self.subjects}"
            )
        self._seed = seed
        self._folds = subject_folds(task.subjects, folds=min(folds, self.subjects), repeats=1, seed=seed)
        self._constant_error = self._error(predict_constant(task, self._folds))
        # A fold of one class is refused now, not after an epoch: on any features, so on none.
        predict_from_features(np.zeros((len(task.values), 1)), task, self._folds, seed=seed)

    @property
    def fingerprint(self) -> str:
        """A digest of what shapes the errors of given weights: labels, subjects and folds."""
        parts = [
            [self.task.target, self._seed, len(self._folds[0])],
            self.task.values.tolist(),
            self.task.subjects.tolist(),
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def due(self, epoch: int, *, epochs: int) -> bool:
        """Whether epoch `epoch`, counted from 1, of `epochs` ends with a probe: every few, and the last."""
        return epoch % self.interval == 0 or epoch == epochs

    def measure(self, encoder: "Encoder") -> float:
        """The error in the folds, on features of the frozen encoder; see `ProbeErrors`."""
        from biofound.core.readout import embed_windows  # by way of torch, which probes are opened without

        features = embed_windows(encoder, self.windows, batch_size=BATCH)
        return self._error(predict_from_features(features, self.task, self._folds, seed=self._seed))

    def beside_constant(self, error: float) -> ProbeErrors:
        """A probe's error with that of the constant guess."""
        return ProbeErrors(target=self.task.target, error=error, constant_error=self._constant_error)

    def _error(self, predictions: Predictions) -> float:
        name = "mae" if self.task.numeric else "balanced_accuracy"
        found = score("probe", predictions, self.task, seed=0, resamples=0).row.scores[name].value
        assert found is not None  # every window is tested once
        return found if self.task.numeric else 1 - found
