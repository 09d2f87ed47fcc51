"""Recipes measured: the trainer of `biofound pretrain` from its settings, and the probe of an encoder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from biofound.commands.pretrain import train_config
from biofound.commands.pretrain_data import describe_data
from biofound.commands.probe_data import LabelledWindows, open_labelled
from biofound.core.models import Encoder, ModelConfig, PretrainingModel
from biofound.core.probe import predict_from_features, subject_folds
from biofound.core.probe_features import classical_features
from biofound.core.readout import READOUTS, Activations, batch_features, embed_windows
from biofound.core.readout_names import DEFAULT_READOUT
from biofound.core.scores import Outcome, ScoredTask, score
from biofound.core.trainer import TrainConfig, Trainer
from biofound.data.windows import Windows
from biofound.settings import PretrainSettings, ProbeSettings

T = TypeVar("T", bound=Trainer)
BATCH = 256
"""Windows that a probe holds at once."""


def trainer_of(
    settings: PretrainSettings,
    train: Windows,
    val: Windows,
    *,
    precision: str,
    output_dir: Path,
    model: Callable[[ModelConfig], PretrainingModel] = PretrainingModel,
    config: Callable[..., TrainConfig] = TrainConfig,
    trainer: Callable[..., T] = Trainer,  # type: ignore[assignment]
    **changes: Any,
) -> T:
    """The trainer that `biofound pretrain` makes of these settings, without checkpoints within an epoch.

    Args:
        settings: as resolved.
        train: the training windows.
        val: the validation windows.
        precision: of matrix products.
        output_dir: where its files go.
        model: what is built, under the settings' seed.
        config: what `TrainConfig` is filled into.
        trainer: what is made.
        changes: of the `TrainConfig`.
    """
    filled = train_config(settings, precision=cast(Any, precision), windows=len(train))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        built = model(settings.fill(ModelConfig))
    return trainer(
        model=built,
        train=train,
        val=val,
        data=describe_data(train, val, settings),
        config=config(**vars(replace(filled, checkpoint_minutes=0.0, **changes))),
        settings={},
        output_dir=output_dir,
        device=torch.device("cpu"),
    )


def labelled_with_heart_rate(store: Path) -> LabelledWindows:
    """The windows of a store of WFDB records, with the heart rate in their numerics."""
    return open_labelled(ProbeSettings(data_dir=store, labels="numerics", target="HR"), store)


class HeartRateProbe:
    """Probe of the heart rate: ridge on frozen features, in folds that no patient crosses."""

    def __init__(
        self, labelled: LabelledWindows, *, repeats: int, resamples: int, folds: int = 5, seed: int = 42
    ) -> None:
        """Deal the patients into folds.

        Args:
            labelled: windows and their heart rates in beats a minute.
            repeats: how often the patients are dealt anew.
            resamples: of patients, for the intervals.
            folds: of a repeat.
            seed: of folds and intervals.
        """
        self.windows, self.resamples, self.seed = labelled.windows, resamples, seed
        self.task = ScoredTask(target="HR", values=labelled.values, subjects=labelled.subjects)
        self.folds = subject_folds(self.task.subjects, folds=folds, repeats=repeats, seed=seed)

    def outcome(self, name: str, features: NDArray[np.float32]) -> Outcome:
        """The error of features (N, F), in beats a minute: mean over patients."""
        predictions = predict_from_features(features, self.task, self.folds, seed=self.seed)
        return score(name, predictions, self.task, seed=self.seed, resamples=self.resamples)

    def of_encoder(
        self, encoder: Encoder, readouts: Sequence[str] = (DEFAULT_READOUT,)
    ) -> dict[str, Outcome]:
        """The error by read-out, from one pass over the windows."""
        widths: list[int] = []

        def read(activations: Activations) -> torch.Tensor:
            features = [READOUTS[name](activations) for name in readouts]
            widths[:] = [part.shape[1] for part in features]
            return torch.cat(features, dim=1)

        windows = self.windows.of_channels(encoder.config.channels)
        together = embed_windows(encoder, windows, readout=read, batch_size=BATCH)
        by_readout = np.split(together, np.cumsum(widths)[:-1], axis=1)
        return {
            name: self.outcome(name, features) for name, features in zip(readouts, by_readout, strict=True)
        }

    @cached_property
    def classical(self) -> Outcome:
        """The error of the classical features, computed once."""
        features = batch_features(
            self.windows,
            lambda x: classical_features(x, self.windows.sfreq),
            batch_size=BATCH,
            what="classical features",
        )
        return self.outcome("classical features", features)
