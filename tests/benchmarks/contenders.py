"""What is compared: our loop, and what a user would write with `transformers.Trainer`.

Every contender is an iterator that makes some optimizer steps when it is asked for the next item, so
that contenders take turns in one process while each keeps its model, optimizer and data.
"""

import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from biofound.core.losses import MultiResolutionSTFT, masked_squared_error, msm_loss, stft_loss
from biofound.core.models import PretrainingModel, build_model, parameter_count
from biofound.data.store import StoreWindows
from tests.benchmarks.ours import BATCH, DATA, MODEL, PATCH, SAMPLES, WIDTH, default_config, our_loop

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
        self.stft = MultiResolutionSTFT(
            sfreq=DATA.sfreq,
            bands=[(band["low_hz"], band["high_hz"]) for band in DATA.filters.values()],
            window_lengths=config.stft_windows,
            floor=config.stft_floor,
        )

    def forward(self, past_values: Tensor) -> dict[str, Tensor]:
        """The loss of windows (B, T, C)."""
        x = past_values.transpose(1, 2)
        out = self.model(x, hidden_samples(len(x)))
        msm = msm_loss(masked_squared_error(out.values, out.target, out.counted))
        return {"loss": msm + 0.3 * stft_loss(self.stft(out.values, out.target, out.counted))}


def granite_default() -> nn.Module:
    """Granite's own expansion factor (2), with the layers that make the parameters about as many as ours."""
    wanted = parameter_count(PretrainingModel(MODEL))
    candidates = [GraniteMasked(num_layers=n, expansion_factor=2) for n in (12, 13, 14)]
    return min(candidates, key=lambda model: abs(parameter_count(model) - wanted))


def granite_in_our_shape() -> nn.Module:
    """Granite's gates and dropout, in the depth and expansion of ours."""
    return GraniteMasked(num_layers=MODEL.num_layers, expansion_factor=MODEL.expansion_factor)


def tspulse() -> nn.Module:
    """TSPulse in its published shape (width 24, 8 + 2 layers, time and frequency); patches of 10 divide T."""
    return TSPulseForReconstruction(
        TSPulseConfig(
            context_length=SAMPLES,
            patch_length=10,
            patch_stride=10,
            mask_block_length=10,
            num_input_channels=2,
            d_model=24,
            decoder_d_model=24,
            num_layers=8,
            decoder_num_layers=2,
            mask_ratio=0.4,
            mask_type="block",
            fuse_fft=True,
        )
    )


def tspulse_in_our_patches() -> nn.Module:
    """TSPulse over our patches and width, without its frequency half: its size is then nearest to ours."""
    return TSPulseForReconstruction(
        TSPulseConfig(
            context_length=SAMPLES,
            patch_length=PATCH,
            patch_stride=PATCH,
            mask_block_length=PATCH,
            num_input_channels=2,
            d_model=WIDTH,
            decoder_d_model=WIDTH,
            num_layers=8,
            decoder_num_layers=2,
            mask_ratio=0.4,
            mask_type="block",
            fuse_fft=False,
        )
    )


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
    """Hands over to the next contender after every `steps` steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.finished = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.steps == 0:
            self._wait()
        control.should_training_stop = self.finished

    def _wait(self) -> None:
        self.done.release()
        self.go.acquire()


def transformers_loop(
    model: nn.Module, data: InMemory, *, bf16: bool, steps: int, threads: int
) -> Iterator[None]:
    """`transformers.Trainer` with its defaults around `model`, stopped after every `steps` steps.

    It runs in a thread of its own, which is idle unless it is its turn.
    """
    pause = _Pause(steps)
    directory = tempfile.TemporaryDirectory()
    failure: list[BaseException] = []

    def train() -> None:
        torch.set_num_threads(threads)  # OpenMP keeps this for each thread that computes
        try:
            _transformers_trainer(model, data, Path(directory.name), bf16=bf16, pause=pause).train()
        except BaseException as error:
            failure.append(error)
        finally:
            pause.done.release()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    pause.done.acquire()
    try:
        while not failure:
            pause.go.release()
            pause.done.acquire()
            if failure:
                raise failure[0]
            yield
        raise failure[0]
    finally:
        pause.finished = True
        pause.go.release()
        thread.join()
        directory.cleanup()


def _transformers_trainer(
    model: nn.Module, data: InMemory, output: Path, *, bf16: bool, pause: _Pause
) -> transformers.Trainer:
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
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[pause])
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


Contender = Callable[[StoreWindows, Path, int], Iterator[Any]]


def contenders(*, precision: str, threads: int) -> dict[str, Contender]:
    """By name, what makes each: (store, directory to write in, steps a turn) -> steps in turns."""
    bf16 = precision == "bf16"

    def ours(stft: bool) -> Contender:
        return lambda store, output, steps: our_loop(
            store, output, precision=precision, steps=steps, stft=stft
        )

    def theirs(make: Callable[[], nn.Module], *, bf16: bool = False) -> Contender:
        return lambda store, _, steps: transformers_loop(
            make(), InMemory(store), bf16=bf16, steps=steps, threads=threads
        )

    return {
        "ours": ours(stft=True),
        "ours without STFT": ours(stft=False),
        "ours in Trainer": theirs(OursInTrainer, bf16=bf16),
        "granite": theirs(granite_default),
        "granite, our shape": theirs(granite_in_our_shape),
        "TSPulse": theirs(tspulse),
        "TSPulse, our patches": theirs(tspulse_in_our_patches),
    }
