"""`biofound verify`: check the code, a checkpoint and a window store for what usually breaks."""

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from biofound import console
from biofound.checks import Check
from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.models import ModelConfig, build_model
from biofound.core.trainer import TrainConfig
from biofound.core.verify import VerificationTarget, probe_windows, verify
from biofound.data.description import DataDescription
from biofound.data.integrity import check_store, splits_in
from biofound.data.windows import open_windows, select_channels
from biofound.errors import CheckpointError, DataError, VerificationError, checkpoint_error_context
from biofound.options import Invocation
from biofound.settings import PretrainSettings, VerifySettings, WindowsSettings, resolve_channels

WINDOWS = 16
"""Number of windows that the checks run on."""


def execute(invocation: Invocation[VerifySettings]) -> None:
    """Run the checks and show them.

    Raises:
        VerificationError: when a check failed.
    """
    path = invocation.settings.checkpoint
    checkpoint = None if path is None else load_checkpoint(path)
    checks = run_checks(invocation.settings, checkpoint)
    failed = [check.name for check in checks if not check.passed]
    if invocation.json:
        encoder = None if checkpoint is None else checkpoint.encoder_sha256
        result = {"passed": not failed, "encoder_sha256": encoder, "checks": [asdict(one) for one in checks]}
        console.print_json(result)
    else:
        rows = [(check.name, "passed" if check.passed else "FAILED", check.measured) for check in checks]
        console.table("biofound verify", ("check", "result", "measured"), rows)
        if not failed:
            console.note(f"{len(checks)} checks, all passed")
    if failed:
        raise VerificationError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")


def run_checks(settings: VerifySettings, checkpoint: Checkpoint | None) -> list[Check]:
    """The checks of the code (on a checkpoint's model where one is given), then those of a store.

    Raises:
        CheckpointError: when the checkpoint's tensors do not fit its model.
        DataError: when there are no windows in `data_dir`, or they are not the checkpoint's.
    """
    if checkpoint is None or settings.checkpoint is None:
        trained_with = PretrainSettings()
        model = build_model(trained_with.fill(ModelConfig), seed=settings.seed)
        data = _default_data(trained_with)
    else:
        with checkpoint_error_context(settings.checkpoint):
            trained_with = settings_of(checkpoint)
            model, data = checkpoint.build(), checkpoint.data
    windows, origin = _windows_to_check_on(settings, model.config, data.sfreq, checkpoint)
    target = VerificationTarget(
        model=model,
        data=data,
        config=trained_with.fill(TrainConfig, precision="fp32"),
        windows=windows,
        checkpoint=checkpoint,
    )
    checks = [Check(name="windows to check on", passed=True, measured=origin), *verify(target)]
    if settings.data_dir is not None:
        checks += check_store(settings.data_dir, sfreq_if_unsaid=data.sfreq)
    return checks


def _default_data(settings: PretrainSettings) -> DataDescription:
    channels = resolve_channels(None, "pretrain").named(settings.channels)
    return DataDescription(
        sfreq=WindowsSettings().sfreq,
        filters={channel.name: channel.band.as_json() for channel in channels},
        units={channel.name: channel.unit for channel in channels},
        quality_thresholds={channel.name: channel.quality_threshold for channel in channels},
        max_gap_seconds=WindowsSettings().max_gap_seconds,
        fingerprint="",
        synthetic=True,
    )


def settings_of(checkpoint: Checkpoint) -> PretrainSettings:
    """The settings that a checkpoint was trained with."""
    try:
        return PretrainSettings.model_validate(checkpoint.settings)
    except ValidationError as error:
        unfit = [f"{'.'.join(map(str, detail['loc']))} ({detail['msg']})" for detail in error.errors()]
        raise CheckpointError(
            f"this version of biofound does not know some settings in it: {', '.join(unfit)}; "
            f"use the version that wrote it: {checkpoint.versions.get('biofound', 'it does not say which')}"
        ) from error


def _windows_to_check_on(
    settings: VerifySettings, model: ModelConfig, sfreq: float, checkpoint: Checkpoint | None
) -> tuple[NDArray[np.float32], str]:
    """The windows (B, C, T) to check the model on, and where they are from, in words.

    Those of the store where they fit the model, else generated ones. A checkpoint's own store must fit it,
    though an inflated one has channels that the store of its pretraining lacks.
    """
    probe = probe_windows(
        windows=WINDOWS,
        channels=len(model.channels),
        samples=model.context_length,
        sfreq=sfreq,
        seed=settings.seed,
    )
    if settings.data_dir is None:
        return probe, f"{WINDOWS} probe windows, made with seed {settings.seed}"
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
