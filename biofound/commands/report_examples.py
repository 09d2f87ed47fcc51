"""Reconstructions of a run's validation windows by its best model, for `biofound report`; imports torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biofound.commands.pretrain_data import open_training_windows
from biofound.commands.verify import settings_of
from biofound.core.checkpoint import load_checkpoint
from biofound.core.masking import Stream
from biofound.core.run_files import BEST
from biofound.core.trainer import TrainConfig
from biofound.core.window_errors import ReconstructedWindow, reconstruct, window_errors
from biofound.errors import DataError, checkpoint_error_context

MAX_WINDOWS = 1000
"""Validation windows that are scored, spread over all: a few seconds on a CPU."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class RankedWindow:
    """The best, median or worst window: MSM over all channels and by channel (None: nothing was hidden)."""

    rank: str
    case_id: str
    start_s: float
    msm: float
    msm_by_channel: dict[str, float | None]
    window: ReconstructedWindow


@dataclass(frozen=True, kw_only=True)
class Reconstructions:
    """`scored` of `windows` validation windows, by the model of `epoch`.

    `quantiles` are those of the windows' MSM at `QUANTILES`, over all channels and by channel.
    """

    epoch: int
    scored: int
    windows: int
    quantiles: dict[str, list[float]]
    ranked: list[RankedWindow]
    units: dict[str, str]
    sfreq: float


def reconstruct_validation(run: Path, directories: list[str]) -> Reconstructions:
    """Score validation windows under the run's own masks, and reconstruct the best, median and worst.

    Args:
        run: the output directory of a pretraining run.
        directories: the window directories and streams it was trained on.

    Raises:
        BiofoundError: when the checkpoint or the windows are not there, or are not those of the run.
    """
    path = run / BEST
    checkpoint = load_checkpoint(path)
    with checkpoint_error_context(path):
        settings, model = settings_of(checkpoint), checkpoint.build()
    train, val = open_training_windows(settings, directories)
    if train.fingerprint != checkpoint.data.fingerprint:
        raise DataError(f"the windows in {', '.join(directories)} are not those that {path} was trained on")
    config = settings.fill(TrainConfig, precision="fp32")

    def masks(index: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.bool_]:
        patches = model.config.patches
        return config.masks(patches=patches, stream=Stream.VALIDATION_MASK, epoch=0, index=index)

    count = min(MAX_WINDOWS, len(val))
    index = np.unique(np.linspace(0, len(val) - 1, count).round().astype(np.int64))
    errors = window_errors(model, val, masks, index)
    ranked, channels = errors.ranked(), model.config.channels
    chosen = errors.index[list(ranked.values())]
    info = val.info(chosen)
    by_name = {"all": errors.overall} | dict(zip(channels, errors.by_channel.T, strict=True))
    return Reconstructions(
        epoch=checkpoint.epoch,
        scored=len(index),
        windows=len(val),
        quantiles={
            name: np.nanquantile(values, QUANTILES).tolist()
            for name, values in by_name.items()
            if not np.isnan(values).all()
        },
        ranked=[
            RankedWindow(
                rank=rank,
                case_id=str(info.case_id[number]),
                start_s=float(info.start_s[number]),
                msm=float(errors.overall[place]),
                msm_by_channel={
                    name: None if np.isnan(value) else float(value)
                    for name, value in zip(channels, errors.by_channel[place], strict=True)
                },
                window=window,
            )
            for number, ((rank, place), window) in enumerate(
                zip(ranked.items(), reconstruct(model, val, masks, chosen), strict=True)
            )
        ],
        units=dict(checkpoint.data.units),
        sfreq=checkpoint.data.sfreq,
    )
