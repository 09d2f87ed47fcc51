"""What `biofound verify` checks: a model's parts and properties, and a store's integrity."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from biofound.checks import Check
from biofound.commands.common import checkpoint_error_context, lookup_channels, model_config, train_config
from biofound.errors import CheckpointError, DataError
from biofound.settings import PretrainSettings, VerifySettings, WindowsSettings

if TYPE_CHECKING:
    from biofound.core.checkpoint import Checkpoint, DataDescription
    from biofound.core.models import ModelConfig

WINDOWS = 16
"""How many windows the checks run on."""


def run_checks(settings: VerifySettings) -> Iterator[Check]:
    """The checks of the parts (on a checkpoint's model where one is given), then those of a store.

    Raises:
        CheckpointError: when the checkpoint cannot be read.
        DataError: when there are no windows in `data_dir`.
    """
    from biofound.core.checkpoint import load_checkpoint
    from biofound.core.models import build_model
    from biofound.core.verify import VerificationTarget, verify

    checkpoint = None if settings.checkpoint is None else load_checkpoint(settings.checkpoint)
    trained_with = _settings_of(checkpoint, settings.checkpoint)
    if checkpoint is None:
        model, data = build_model(model_config(trained_with), seed=settings.seed), _default_data(trained_with)
    else:
        with checkpoint_error_context(settings.checkpoint):
            model, data = checkpoint.build(), checkpoint.data
    windows, origin = _windows(settings, model.config, data.sfreq, checkpoint)
    yield Check(name="windows to check on", passed=True, measured=origin)
    yield from verify(
        VerificationTarget(
            model=model,
            data=data,
            config=train_config(trained_with, precision="fp32"),
            windows=windows,
            checkpoint=checkpoint,
        )
    )
    if settings.data_dir is not None:
        from biofound.data.integrity import check_store

        yield from check_store(settings.data_dir, sfreq_if_unsaid=data.sfreq)


def _settings_of(checkpoint: "Checkpoint | None", path: Path | None) -> PretrainSettings:
    """The settings that a checkpoint was trained with; without one the defaults."""
    if checkpoint is None:
        return PretrainSettings()
    try:
        return PretrainSettings.model_validate(checkpoint.settings)
    except ValidationError as error:
        unfit = [f"{'.'.join(map(str, detail['loc']))} ({detail['msg']})" for detail in error.errors()]
        raise CheckpointError(
            f"{path}: this version of biofound does not know some settings in it: {', '.join(unfit)}; "
            f"use the version that wrote it: {checkpoint.versions.get('biofound', 'it does not say which')}"
        ) from error


def _default_data(settings: PretrainSettings) -> "DataDescription":
    from biofound.core.checkpoint import DataDescription

    channels = lookup_channels(settings.channels, None, "pretrain")
    return DataDescription(
        sfreq=WindowsSettings().sfreq,
        filters={channel.name: channel.band.as_json() for channel in channels},
        units={channel.name: channel.unit for channel in channels},
        fingerprint="",
        synthetic=True,
    )


def _windows(
    settings: VerifySettings, model: "ModelConfig", sfreq: float, checkpoint: "Checkpoint | None"
) -> tuple[NDArray[np.float32], str]:
    """The windows (B, C, T) to check the model on, and where they are from, in words.

    Those of the store where they suit the model; else made ones. A checkpoint's own store has to suit it,
    though an inflated one has channels that the store of its pretraining lacks.
    """
    from biofound.core.verify import probe_windows

    probe = probe_windows(
        windows=WINDOWS,
        channels=len(model.channels),
        samples=model.context_length,
        sfreq=sfreq,
        seed=settings.seed,
    )
    if settings.data_dir is None:
        return probe, f"{WINDOWS} probe windows, made with seed {settings.seed}"
    from biofound.data.integrity import splits_in
    from biofound.data.windows import open_windows, select_channels

    split = splits_in(settings.data_dir)[0]
    try:
        stored = open_windows(settings.data_dir, split, sfreq_if_unsaid=sfreq)
    except DataError:
        # The store's own checks say what is wrong with it.
        return probe, f"{WINDOWS} probe windows, as {settings.data_dir} cannot be opened"
    absent = [name for name in model.channels if name not in stored.channels]
    lengths = (stored.window_samples, stored.sfreq), (model.context_length, sfreq)
    if lengths[0] == lengths[1] and not absent:
        index = np.unique(np.linspace(0, len(stored) - 1, WINDOWS).round().astype(np.int64))
        windows = select_channels(stored, model.channels).read(index)
        return windows, f"{len(index)} windows of {split} in {settings.data_dir}"
    has, takes = (f"{samples} samples at {rate:g} Hz" for samples, rate in lengths)
    misfit = (
        f"its windows hold {', '.join(stored.channels)}, {has}, and the model takes "
        f"{', '.join(model.channels)}, {takes}"
    )
    inflated = checkpoint is not None and checkpoint.inflated_from is not None
    if checkpoint is None or (inflated and lengths[0] == lengths[1]):
        return probe, f"{WINDOWS} probe windows, not those of {settings.data_dir}: {misfit}"
    raise DataError(f"{settings.data_dir}: {misfit}; give the store that the checkpoint was trained on")
