"""Contenders of the benchmark: our loop, and what a user would write with `transformers.Trainer`.

Every contender trains in a process of its own and pauses after some optimizer steps, so that contenders
take turns while each keeps its model, optimizer, data and memory.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from biofound.core.losses import masked_squared_error, msm_loss, stft_loss
from biofound.core.memory import keep_freed_memory
from biofound.core.models import PretrainingModel, build_model, parameter_count
from biofound.data.store import StoreWindows
from tests.benchmarks.ours import BATCH, MODEL, PATCH, SAMPLES, WIDTH, default_config, our_loop
from tests.benchmarks.timing import Pause
from tests.core.conftest import DATA

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside granite and transformers
    from tsfm_public.models.tinytimemixer import TinyTimeMixerConfig, TinyTimeMixerModel
    from tsfm_public.models.tspulse import TSPulseConfig, TSPulseForReconstruction


# ---------------------------------------------------------------------------------------------------------
# Theirs: models


def hidden_samples(count: int) -> Tensor:
    """(B, P) bool, 4 of 10 patches hidden."""
    return torch.rand(count, SAMPLES // PATCH).argsort(dim=1) < round(0.4 * SAMPLES / PATCH)


class GraniteMasked(nn.Module):
    """Granite's TinyTimeMixer with its defaults (gated, dropout 0.2), and a head for the hidden patches."""

    def __init__(self, *, num_layers: int, expansion_factor: int) -> None:
        super().__init__()
        self.backbone = TinyTimeMixerModel(
            TinyTimeMixerConfig(
                context_length=SAMPLES,
                patch_length=PATCH,
                patch_stride=PATCH,
                num_input_channels=2,
                d_model=WIDTH,
                num_layers=num_layers,
                expansion_factor=expansion_factor,
            )
        )
        self.head = nn.Linear(WIDTH, PATCH)

    def forward(self, past_values: Tensor) -> dict[str, Tensor]:
        """The loss of windows (B, T, C)."""
        mask = hidden_samples(len(past_values)).repeat_interleave(PATCH, dim=1)[..., None]  # (B, T, 1)
        seen = past_values.masked_fill(mask, 0.0)
        out = self.backbone(seen, past_observed_mask=(~mask).expand_as(seen).float())
        values = self.head(out.last_hidden_state).flatten(2).transpose(1, 2)  # (B, T, C)
        values = values * out.scale + out.loc
        where = mask.expand_as(values)
        return {"loss": F.mse_loss(values[where], past_values[where])}


class OursInTrainer(nn.Module):
    """Our model and our losses, as `transformers.Trainer` wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_model(MODEL, seed=42)
        config = default_config(precision="fp32", log_interval=1)
        self.stft = config.stft(DATA, MODEL.channels)

    def forward(self, past_values: Tensor) -> dict[str, Tensor]:
        """The loss of windows (B, T, C)."""
        x = past_values.transpose(1, 2)
        out = self.model(x, hidden_samples(len(x)))
        msm = msm_loss(masked_squared_error(out.values, out.target, out.loss_mask))
        return {"loss": msm + 0.3 * stft_loss(self.stft(out.values, out.target, out.loss_mask))}


def granite_default() -> nn.Module:
    """Granite's own expansion factor (2), with the layers that make the parameters about as many as ours."""
    wanted = parameter_count(PretrainingModel(MODEL))
    candidates = [GraniteMasked(num_layers=n, expansion_factor=2) for n in (12, 13, 14)]
    return min(candidates, key=lambda model: abs(parameter_count(model) - wanted))


def granite_in_our_shape() -> nn.Module:
    """Granite's gates and dropout, in the depth and expansion of ours."""
    return GraniteMasked(num_layers=MODEL.num_layers, expansion_factor=MODEL.expansion_factor)


def tspulse(*, patch: int = 10, width: int = 24, frequency: bool = True) -> nn.Module:
    """TSPulse in its published shape (width 24, 8 + 2 layers, time and frequency); patches of 10 divide T."""
    return TSPulseForReconstruction(
        TSPulseConfig(
            context_length=SAMPLES,
            patch_length=patch,
            patch_stride=patch,
            mask_block_length=patch,
            num_input_channels=2,
            d_model=width,
            decoder_d_model=width,
            num_layers=8,
            decoder_num_layers=2,
            mask_ratio=0.4,
            mask_type="block",
            fuse_fft=frequency,
        )
    )


def tspulse_in_our_patches() -> nn.Module:
    """TSPulse over our patches and width, without its frequency half: its size is then nearest to ours."""
    return tspulse(patch=PATCH, width=WIDTH, frequency=False)


# ---------------------------------------------------------------------------------------------------------
# Theirs: the loop


class InMemory(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Windows (T, C) in memory, which is kinder than reading files."""

    def __init__(self, store: StoreWindows, windows: int = 6400) -> None:
        x = torch.from_numpy(store.read(np.arange(windows)))
        self.x = x.transpose(1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {"past_values": self.x[item]}


class _Pause(transformers.TrainerCallback):  # type: ignore[misc]
    """Pauses before the first step, and after every `steps` steps."""

    def __init__(self, pause: Pause, steps: int) -> None:
        self.pause, self.steps = pause, steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pause()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.steps == 0:
            self.pause()


def transformers_loop(
    model: nn.Module, data: InMemory, output: Path, *, bf16: bool, steps: int, pause: Pause
) -> None:
    """`transformers.Trainer` with its defaults around `model`; it pauses after every `steps` steps."""
    arguments = transformers.TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=BATCH,
        learning_rate=5e-4,
        weight_decay=0.01,
        max_steps=1_000_000,
        bf16=bf16,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data, callbacks=[_Pause(pause, steps)]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


# ---------------------------------------------------------------------------------------------------------
# By name


@dataclass(frozen=True)
class Contender:
    """Somebody's model in somebody's loop."""

    theirs: Callable[[], nn.Module] | None = None
    """What makes the model that is put in `transformers.Trainer`; None: our loop."""
    stft: bool = True
    """Of our loop: whether it has the STFT term."""
    our_precision: bool = False
    """Of theirs: in our precision, else in fp32."""
    keeps_memory: bool = False
    """Of theirs: the C library keeps what a step frees, as `biofound pretrain` has it do."""
    threads: int | None = None
    """Its threads where it has not as many as the others."""

    @property
    def steps(self) -> int:
        """Steps a turn: of the slow ones fewer."""
        return 4 if self.theirs is None or self.our_precision else 2


CONTENDERS = {
    "ours": Contender(),
    "ours, one thread": Contender(threads=1),
    "ours without STFT": Contender(stft=False),
    "ours in Trainer": Contender(OursInTrainer, our_precision=True),
    "ours in Trainer, memory kept": Contender(OursInTrainer, our_precision=True, keeps_memory=True),
    "granite": Contender(granite_default),
    "granite, our shape": Contender(granite_in_our_shape),
    "TSPulse": Contender(tspulse),
    "TSPulse, our patches": Contender(tspulse_in_our_patches),
}


def contend(name: str, directory: Path, precision: str, threads: int, pause: Pause) -> None:
    """Train as contender `name` on the store in `directory`, pausing after every turn; it has no end."""
    # What is said once about defaults and deprecations of granite and transformers.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    contender, store, output = CONTENDERS[name], StoreWindows(directory / "store"), directory / name
    torch.set_num_threads(contender.threads or threads)
    if contender.theirs is None:
        pause()
        for _ in our_loop(store, output, precision=precision, steps=contender.steps, stft=contender.stft):
            pause()
        return
    if contender.keeps_memory:
        keep_freed_memory()
    bf16 = contender.our_precision and precision == "bf16"
    transformers_loop(
        contender.theirs(), InMemory(store), output, bf16=bf16, steps=contender.steps, pause=pause
    )
