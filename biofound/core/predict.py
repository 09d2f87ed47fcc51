"""Predict with a task model: one row a window, with its start, quality and the probability of each class."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from biofound.core.readout import batch_features
from biofound.core.readout_names import DEFAULT_BATCH_SIZE
from biofound.core.task import TaskCheckpoint, load_task_checkpoint
from biofound.data.model_input import ModelInput
from biofound.data.window_table import WindowPredictions, join_rows
from biofound.data.windows import WindowInfo, Windows


class WindowPredictor:
    """A task model, from windows to predictions.

    Args:
        checkpoint: the task model, and how windows were made for it.
        gate: whether `input` leaves out windows of bad quality.
        batch_size: windows that go through the model at once; the predictions do not depend on it.
        device: where the model computes.

    Raises:
        CheckpointError: when the file's tensors do not fit its model.
    """

    def __init__(
        self,
        checkpoint: TaskCheckpoint,
        *,
        gate: bool = True,
        batch_size: int = DEFAULT_BATCH_SIZE,
        device: torch.device | None = None,
    ) -> None:
        self._device, self._batch_size = device or torch.device("cpu"), batch_size
        self._model = checkpoint.build().to(self._device)
        self._task = checkpoint.task
        model = checkpoint.model
        self.input = ModelInput(
            model.channels, model.context_length, checkpoint.data, gate=gate, absent=checkpoint.absent
        )

    def rows(self, windows: Windows) -> Iterator[WindowPredictions]:
        """The predictions of windows of the model's kind, some at a time.

        Raises:
            DataError: when the windows lack a channel.
            ValueError: when they are of another length, or an output is not finite.
        """
        for info, x in self.input.batches(windows):
            outputs = batch_features(x, self._outputs, batch_size=self._batch_size, what="task model")
            yield self._rows(info, outputs)

    def rows_in_memory(self, windows: Windows) -> WindowPredictions:
        """The predictions of all windows; (0,) where there is no window."""
        if len(windows):
            return join_rows(list(self.rows(windows)))
        return self._rows(windows.info(np.arange(0)), np.zeros((0, self._task.outputs), np.float32))

    def _outputs(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Probabilities (B, K), or numbers (B, 1), of windows (B, C, T)."""
        return self._model.predict(torch.from_numpy(x).to(self._device)).cpu().numpy()

    def _rows(self, info: WindowInfo, outputs: NDArray[np.float32]) -> WindowPredictions:
        if self._task.task == "regression":
            return WindowPredictions(**vars(info), prediction=outputs[:, 0], probability=outputs[:, :0])
        prediction = np.array(self._task.classes)[outputs.argmax(1)]
        return WindowPredictions(**vars(info), prediction=prediction, probability=outputs)


def predict_array(
    model: TaskCheckpoint | str | Path,
    x: ArrayLike,
    *,
    sfreq: float,
    channels: Sequence[str],
    gate: bool = True,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> WindowPredictions:
    """Predict for a recording in an array: filters, resampling, windows and gate are those of the task model.

    Args:
        model: a task model's checkpoint or its file.
        x: (C, T) samples in the units of the model (`model.data.units`), unfiltered; NaN in gaps.
        sfreq: their rate in Hz.
        channels: the C names of the rows, in any order; those that the model does not take are left out.
        gate: whether windows are left out whose quality is below the model's thresholds; those with gaps
            always are.
        batch_size: windows that go through the model at once.

    Returns:
        Of N windows `prediction` (N,), numbers or classes, `probability` (N, K) of the K classes, `start_s`
        (N,) in seconds since the first sample, `quality` (N, C). N is 0 where no window is whole and good.

    Raises:
        ValueError: when `x`, `sfreq` or `channels` cannot be.
        DataError: when a channel is missing, or the rate is too low for its filter.
        CheckpointError: when the file cannot be read.
    """
    loaded = model if isinstance(model, TaskCheckpoint) else load_task_checkpoint(Path(model))
    predictor = WindowPredictor(loaded, gate=gate, batch_size=batch_size)
    return predictor.rows_in_memory(predictor.input.extract_from_array(x, sfreq=sfreq, channels=channels))
