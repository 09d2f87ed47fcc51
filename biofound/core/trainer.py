"""How an encoder is pretrained: the loop, its validation, its history and its checkpoints.

The loop is an iterator of reports: it computes and writes files, and never prints.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from biofound.core.checkpoint import Checkpoint, DataDescription, save_checkpoint
from biofound.core.devices import AUTOCAST_DTYPE
from biofound.core.losses import (
    MultiResolutionSTFT,
    SumCount,
    masked_squared_error,
    mean_of,
    msm_loss,
    stft_loss,
)
from biofound.core.masking import MaskType, Stream, draw_masks, keyed_uniform
from biofound.core.models import PretrainingModel, Reconstruction
from biofound.core.schedule import learning_rate
from biofound.errors import TrainingError
from biofound.files import write_json

BEST, LAST, HISTORY = "best_model.pt", "last_model.pt", "training_history.json"


class WindowReader(Protocol):
    """What the trainer needs of windows: `biofound.data` has the implementations."""

    @property
    def channels(self) -> tuple[str, ...]:
        """The channel names, in the order of the rows."""
        ...

    def __len__(self) -> int:
        """The number of windows."""
        ...

    def read(self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """(B, C, T) windows in physical units, NaN in gaps; with `crop` (B,) in [0, 1), shifted in time."""
        ...

    def case_of(self, index: int) -> str:
        """The case a window was cut from."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Units and bounds stand with the settings these values come from."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_epochs: int
    gradient_clip: float
    mask_ratio: float
    mask_type: MaskType
    stft_weight: float
    stft_windows: tuple[int, ...]
    stft_floor: float
    random_crop: bool
    seed: int
    precision: Literal["fp32", "bf16", "fp16"]
    log_interval: int
    save_interval: int


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses over a set of windows: `loss = msm + stft_weight * stft`; MSM also by channel."""

    loss: float
    msm: float
    stft: float
    msm_by_channel: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step: `step` counts from 1 over the run, `loss` is of its global batch."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    lr: float
    gradient_norm: float
    windows_per_second: float


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One epoch done: `epoch` counts from 1, `seconds` include validation."""

    epoch: int
    train: Losses
    val: Losses
    lr: float
    seconds: float
    windows_per_second: float
    best: bool


@dataclass(frozen=True)
class Terms:
    """The loss terms of some windows as sums and counts: MSM (C,), STFT (R, C)."""

    msm: SumCount
    stft: SumCount

    def __add__(self, other: "Terms") -> "Terms":
        """The terms of both sets of windows together."""
        return Terms(self.msm + other.msm, self.stft + other.stft)

    def total(self, *, stft_weight: float) -> Tensor:
        """`MSM + stft_weight * STFT`."""
        return msm_loss(self.msm) + stft_weight * stft_loss(self.stft)

    def detached(self) -> "Terms":
        """Without the graph, in float64, so that sums over an epoch lose nothing."""
        msm, stft = self.msm, self.stft
        return Terms(
            SumCount(msm.total.detach().double(), msm.count.double()),
            SumCount(stft.total.detach().double(), stft.count.double()),
        )

    def losses(self, *, stft_weight: float, channels: tuple[str, ...]) -> Losses:
        """The losses as plain numbers."""
        by_channel = mean_of(self.msm).tolist()
        return Losses(
            loss=self.total(stft_weight=stft_weight).item(),
            msm=msm_loss(self.msm).item(),
            stft=stft_loss(self.stft).item(),
            msm_by_channel=dict(zip(channels, by_channel, strict=True)),
        )


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) over the trainable parameters.

    Weight decay acts on matrices only: biases, norms and embeddings are vectors and are left alone.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999))


class Trainer:
    """Pretrains a model on windows and leaves its files in a directory.

    Batches, crops and masks depend on (seed, epoch, sample index) alone. Validation masks are drawn
    once for the whole run, and validation windows are never cropped, so its losses can be compared.
    """

    def __init__(
        self,
        *,
        model: PretrainingModel,
        train: WindowReader,
        val: WindowReader,
        data: DataDescription,
        config: TrainConfig,
        settings: dict[str, Any],
        output_dir: Path,
        device: torch.device,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Set up the run; nothing is written before `run`.

        Args:
            model: the model to train, moved to `device`.
            train: the training windows.
            val: the validation windows.
            data: what the windows are, for the loss's pass bands and the checkpoints.
            config: how to train.
            settings: the resolved settings as plain JSON, for the checkpoints.
            output_dir: where checkpoints and history go.
            device: where to compute.
            stop: asked after every step; True saves `last_model.pt` and ends the run.
        """
        self.model, self.train, self.val, self.data = model.to(device), train, val, data
        self.config, self.settings, self.output_dir = config, settings, output_dir
        self.device, self.stop = device, stop
        self.optimizer = make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=config.precision == "fp16")
        bands = [data.filters[name] for name in model.config.channels]
        self.stft = MultiResolutionSTFT(
            sfreq=data.sfreq,
            bands=[(band["low_hz"], band["high_hz"]) for band in bands],
            window_lengths=config.stft_windows,
            floor=config.stft_floor,
        ).to(device)
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.epoch = 0
        self.step = 0
        self.best_val_loss: float | None = None
        self.reports: list[EpochReport] = []
        self.interrupted = False

    def run(self) -> Iterator[StepReport | EpochReport]:
        """Train to the end, or until `stop` says so; then `interrupted` is True.

        Yields:
            A report every `log_interval` steps, and one an epoch, after its files are written.

        Raises:
            TrainingError: when a loss or gradient is not finite.
        """
        while self.epoch < self.config.epochs:
            started = time.perf_counter()
            terms: Terms | None = None
            for index in self._batches(self.epoch):
                step_terms, report = self._train_step(index, started)
                terms = step_terms if terms is None else terms + step_terms
                if self.step % self.config.log_interval == 0:
                    yield report
                if self.stop():
                    self._save(LAST)
                    self.interrupted = True
                    return
            assert terms is not None  # a reader is never empty
            yield self._end_epoch(terms, started)

    def evaluate(self) -> Losses:
        """The losses over the validation windows, under the run's fixed masks."""
        self.model.eval()
        terms: Terms | None = None
        with torch.inference_mode():
            for index in _chunks(np.arange(len(self.val)), self.config.batch_size):
                out = self._forward(self.val.read(index), self.validation_mask(index))
                batch = self._terms(out).detached()
                terms = batch if terms is None else terms + batch
        assert terms is not None
        return self._losses(terms)

    def validation_mask(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The masks (B, P) of validation windows, the same in every epoch."""
        return self._mask(Stream.VALIDATION_MASK, 0, index)

    def _batches(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        order = np.random.Generator(np.random.Philox(key=[self.config.seed, epoch])).permutation(
            len(self.train)
        )
        yield from _chunks(order, self.config.batch_size)

    def _train_step(self, index: NDArray[np.int64], started: float) -> tuple[Terms, StepReport]:
        config, epoch = self.config, self.epoch
        self.model.train()
        lr = learning_rate(
            self.step,
            base=config.lr,
            warmup_steps=config.warmup_epochs * self.steps_per_epoch,
            total_steps=self.total_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        crop = None
        if config.random_crop:
            crop = keyed_uniform(seed=config.seed, stream=Stream.CROP, epoch=epoch, index=index, count=1)[
                :, 0
            ]
        out = self._forward(self.train.read(index, crop), self._mask(Stream.TRAIN_MASK, epoch, index))
        terms = self._terms(out)
        loss = terms.total(stft_weight=config.stft_weight)
        self._require_finite("loss", loss, index)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        if config.precision != "fp16":  # GradScaler skips such a step itself, and lowers its scale
            self._require_finite("gradient", norm, index)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        done_in_epoch = (self.step - epoch * self.steps_per_epoch) * config.batch_size
        report = StepReport(
            step=self.step,
            total_steps=self.total_steps,
            epoch=epoch + 1,
            loss=loss.item(),
            lr=lr,
            gradient_norm=norm.item(),
            windows_per_second=min(done_in_epoch, len(self.train)) / (time.perf_counter() - started),
        )
        return terms.detached(), report

    def _end_epoch(self, terms: Terms, started: float) -> EpochReport:
        trained = time.perf_counter() - started
        val = self.evaluate()
        best = self.best_val_loss is None or val.loss < self.best_val_loss
        report = EpochReport(
            epoch=self.epoch + 1,
            train=self._losses(terms),
            val=val,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
            windows_per_second=len(self.train) / trained,
            best=best,
        )
        self._require_finite("validation loss", torch.tensor(val.loss), np.arange(len(self.val)))
        self.epoch += 1
        self.reports.append(report)
        if best:
            self.best_val_loss = val.loss
            self._save(BEST)
        if self.epoch % self.config.save_interval == 0:
            self._save(f"checkpoint_epoch_{self.epoch}.pt")
        self._save(LAST)
        write_json(self.output_dir / HISTORY, self.history())
        return report

    def history(self) -> dict[str, Any]:
        """What `training_history.json` holds; see `history_json`."""
        return history_json(self.reports, self.data)

    def _forward(self, x: NDArray[np.float32], mask: NDArray[np.bool_]) -> Reconstruction:
        windows = torch.from_numpy(x).to(self.device, non_blocking=True)
        hidden = torch.from_numpy(mask).to(self.device, non_blocking=True)
        dtype = AUTOCAST_DTYPE.get(self.config.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            out: Reconstruction = self.model(windows, hidden)
        return out

    def _terms(self, out: Reconstruction) -> Terms:
        return Terms(
            masked_squared_error(out.values, out.target, out.counted),
            self.stft(out.values, out.target, out.counted),
        )

    def _losses(self, terms: Terms) -> Losses:
        return terms.losses(stft_weight=self.config.stft_weight, channels=self.model.config.channels)

    def _mask(self, stream: Stream, epoch: int, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        config = self.config
        return draw_masks(
            kind=config.mask_type,
            ratio=config.mask_ratio,
            patches=self.model.config.patches,
            seed=config.seed,
            stream=stream,
            epoch=epoch,
            index=index,
        )

    def _require_finite(self, what: str, value: Tensor, index: NDArray[np.int64]) -> None:
        if torch.isfinite(value):
            return
        data = self.val if what.startswith("validation") else self.train
        cases = sorted({data.case_of(int(i)) for i in index})
        raise TrainingError(
            f"the {what} is {value.item()} in epoch {self.epoch + 1}, step {self.step + 1} (batch from cases "
            f"{', '.join(cases[:8])}{' …' if len(cases) > 8 else ''}): the run stops, and the checkpoints in "
            f"{self.output_dir} are from before it; lower the learning rate or look at these cases' windows"
        )

    def _save(self, name: str) -> None:
        save_checkpoint(self.output_dir / name, self.checkpoint())

    def checkpoint(self) -> Checkpoint:
        """The run as it stands."""
        last = self.reports[-1] if self.reports else None
        metrics: dict[str, Any] = {}
        if last is not None:
            metrics = {"train": vars(last.train), "val": vars(last.val), "lr": last.lr}
        return Checkpoint(
            model=self.model.config,
            encoder=_on_cpu(self.model.encoder),
            decoder=_on_cpu(self.model.decoder),
            data=self.data,
            settings=self.settings,
            epoch=self.epoch,
            step=self.step,
            best_val_loss=self.best_val_loss,
            metrics=metrics,
            optimizer=self.optimizer.state_dict(),
        )


def history_json(reports: list[EpochReport], data: DataDescription) -> dict[str, Any]:
    """The history of a run: lists with one entry an epoch, so that each can be plotted as it is."""

    def part(name: Literal["train", "val"]) -> dict[str, Any]:
        losses: list[Losses] = [getattr(report, name) for report in reports]
        channels = losses[0].msm_by_channel if losses else {}
        return {
            "loss": [item.loss for item in losses],
            "msm": [item.msm for item in losses],
            "stft": [item.stft for item in losses],
            "msm_by_channel": {c: [item.msm_by_channel[c] for item in losses] for c in channels},
        }

    return {
        "synthetic": data.synthetic,
        "epoch": [report.epoch for report in reports],
        "train": part("train"),
        "val": part("val"),
        "lr": [report.lr for report in reports],
        "seconds": [report.seconds for report in reports],
        "windows_per_second": [report.windows_per_second for report in reports],
        "best_epoch": max((report.epoch for report in reports if report.best), default=None),
    }


def _chunks(index: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(index), size):
        yield index[start : start + size]


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
