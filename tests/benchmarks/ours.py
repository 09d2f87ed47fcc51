"""Our contender: the real trainer with the default settings, on a real store."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from biofound.core.devices import resolve_precision
from biofound.core.distributed import ALONE, Group
from biofound.core.losses import MultiResolutionSTFT
from biofound.core.memory import keep_freed_memory
from biofound.core.models import ModelConfig, build_model
from biofound.core.trainer import TrainConfig, Trainer
from biofound.data.store import StoreWindows
from biofound.data.windows import Windows
from biofound.settings import PretrainSettings
from tests.benchmarks.bench_feeding import make_store
from tests.core.conftest import DATA

DEFAULTS = PretrainSettings()
MODEL = DEFAULTS.fill(ModelConfig)
BATCH = DEFAULTS.batch_size
SAMPLES, PATCH, WIDTH = MODEL.context_length, MODEL.patch_size, MODEL.d_model


def default_config(*, precision: str, log_interval: int) -> TrainConfig:
    """The built-in defaults of `biofound pretrain`, without checkpoints within an epoch."""
    config = DEFAULTS.fill(TrainConfig, precision=cast(Any, precision))
    return replace(config, log_interval=log_interval, checkpoint_minutes=0.0)


def machine_precision() -> str:
    """What `--precision auto` takes on this machine's CPU."""
    return resolve_precision("auto", torch.device("cpu"))


def long_store(directory: Path) -> StoreWindows:
    """25,600 windows: 200 steps an epoch, so that no epoch ends within a measurement."""
    directory.mkdir(parents=True, exist_ok=True)
    return make_store(directory, cases=80, windows=320)


# ---------------------------------------------------------------------------------------------------------
# Ours


class NoSTFT(nn.Module):
    """In the place of the STFT term: nothing, at no cost."""

    def forward(self, reconstruction: Tensor, target: Tensor, loss_mask: Tensor) -> Tensor:
        return torch.zeros(2, 3, reconstruction.shape[1], device=reconstruction.device)


def our_trainer(
    store: Windows,
    output: Path,
    *,
    precision: str,
    steps: int,
    device: str = "cpu",
    group: Group = ALONE,
    **changes: Any,
) -> Trainer:
    """The real trainer with the default settings, and the process's memory as `biofound pretrain` has it."""
    if device == "cpu":
        keep_freed_memory()
    return Trainer(
        model=build_model(MODEL, seed=42),
        train=store,
        val=store,
        data=DATA,
        config=replace(default_config(precision=precision, log_interval=steps), **changes),
        settings={},
        output_dir=output,
        device=torch.device(device),
        group=group,
    )


def our_loop(
    store: StoreWindows, output: Path, *, precision: str, steps: int, stft: bool = True
) -> Iterator[Any]:
    """`biofound pretrain`'s loop; with `stft` False the term is neither computed nor differentiated."""
    output.mkdir(parents=True, exist_ok=True)
    trainer = our_trainer(store, output, precision=precision, steps=steps)
    if not stft:
        trainer.loss_terms.stft = cast(MultiResolutionSTFT, NoSTFT())
    return trainer.fit()
