"""Pretraining: masked windows, their loss terms, validation, and checkpoints; the loop is `TrainingLoop`."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biofound.core.checkpoint import Checkpoint, Parent, save_checkpoint
from biofound.core.distributed import ALONE, Group, MicroBatch
from biofound.core.gpu_cache import GpuWindowCache
from biofound.core.history import (
    EpochMetrics,
    Losses,
    ProbeErrors,
    StepMetrics,
    ThroughputMeter,
    WriteFailure,
    history_json,
    per_second,
)
from biofound.core.losses import LossSums, PretrainingLoss
from biofound.core.masking import MaskType, Stream, draw_channel_dropout, draw_masks, keyed_uniform
from biofound.core.models import ModelConfig, PretrainingModel, Reconstruction
from biofound.core.monitor import MonitorSums, monitor_sums
from biofound.core.optimizer import learning_rate
from biofound.core.qrs import is_ecg
from biofound.core.run_files import BEST, HISTORY, LAST
from biofound.core.sampler import split_batches
from biofound.core.training_loop import LoopConfig, TrainingLoop, on_cpu
from biofound.data.description import DataDescription
from biofound.data.mixture import MixedWindows
from biofound.data.windows import Windows
from biofound.errors import CheckpointError, TrainingError
from biofound.files import write_json

if TYPE_CHECKING:  # scikit-learn is imported by runs with a probe alone
    from biofound.core.validation_probe import ValidationProbe


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """How to pretrain. Units and bounds stand with the settings of the same names."""

    lr: float
    warmup_epochs: int
    mask_ratio: float
    mask_type: MaskType
    channel_dropout: float
    stft_weight: float
    stft_windows: tuple[int, ...]
    stft_floor: float
    global_weight: float
    rhythm_weight: float
    rate_weight: float
    qrs_weight: float
    random_crop: bool

    def masks(
        self, *, patches: int, stream: Stream, epoch: int, index: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """The masks (B, P) of the windows `index` (B,)."""
        return draw_masks(
            kind=self.mask_type,
            ratio=self.mask_ratio,
            patches=patches,
            seed=self.seed,
            stream=stream,
            epoch=epoch,
            index=index,
        )

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each term beside MSM, by name."""
        return {
            "stft": self.stft_weight,
            "global": self.global_weight,
            "rhythm": self.rhythm_weight,
            "rate": self.rate_weight,
            "qrs": self.qrs_weight,
        }

    def loss_terms(self, data: DataDescription, model: ModelConfig) -> PretrainingLoss:
        """The loss terms, over the pass bands of the model's channels."""
        bands = [data.filters[name] for name in model.channels]
        return PretrainingLoss(
            sfreq=data.sfreq,
            bands=[(band["low_hz"], band["high_hz"]) for band in bands],
            samples=model.context_length,
            stft_windows=self.stft_windows,
            stft_floor=self.stft_floor,
            qrs_rows=[row for row, name in enumerate(model.channels) if self.qrs_weight and is_ecg(name)],
        )


class LoadedMicroBatch(NamedTuple):
    """A micro-batch with its data: windows (B, C, T), masks (B, P), heart rates (B,), NaN where unknown."""

    number: int
    windows: Tensor
    mask: Tensor
    heart_rate: Tensor | None


class Trainer(TrainingLoop[PretrainingModel, LoadedMicroBatch, LossSums]):
    """Pretrains a model on windows and leaves its files in a directory.

    Validation masks are drawn once for the whole run, and validation windows are never cropped, so its
    losses can be compared. In a group of processes each computes one micro-batch of every global batch,
    sums and counts are added up before the one division, and rank 0 alone writes.
    """

    def __init__(
        self,
        *,
        model: PretrainingModel,
        train: Windows | GpuWindowCache,
        val: Windows | GpuWindowCache,
        data: DataDescription,
        config: TrainConfig,
        settings: dict[str, Any],
        output_dir: Path,
        device: torch.device,
        group: Group = ALONE,
        stop: Callable[[], bool] = lambda: False,
        probe: "ValidationProbe | None" = None,
        parent: Parent | None = None,
    ) -> None:
        """Set up the run; nothing is written before `fit`.

        Args:
            model: the model to train, moved to `device`.
            train: the training windows.
            val: the validation windows.
            data: what the windows are, for the loss's pass bands and the checkpoints.
            config: how to train.
            settings: the resolved settings as plain JSON, for the checkpoints.
            output_dir: where checkpoints and history go.
            device: where to compute.
            group: the processes that train together.
            stop: asked after every step; True on any rank saves `last_model.pt` and ends the run.
            probe: measures the frozen encoder every few epochs, on rank 0; None for no probe.
            parent: the checkpoint whose weights `model` has; None where they are random.
        """
        self.train, self.val, self.data, self.config = train, val, data, config
        self.settings, self.probe, self.parent = settings, probe, parent
        super().__init__(
            model=model,
            windows=len(train),
            config=config,
            dropout=model.config.dropout,
            output_dir=output_dir,
            device=device,
            group=group,
            stop=stop,
        )
        self.warmup_steps = config.warmup_epochs * self.steps_per_epoch
        self.loss_terms = config.loss_terms(data, model.config).to(device)
        self.best_val_loss: float | None = None
        self.epochs_done: list[EpochMetrics] = []

    # -----------------------------------------------------------------------------------------------------
    # Training

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.config.lr

    def _learning_rate(self) -> float:
        return learning_rate(
            self.step,
            base=self.config.lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
        )

    def _score(self, own: LoadedMicroBatch) -> LossSums:
        windows = own.windows.to(self.device, non_blocking=True)
        mask = own.mask.to(self.device, non_blocking=True)
        sums: LossSums = self.loss_terms(self._forward(windows, mask), own.heart_rate)
        return sums

    def _loss(self, sums: LossSums) -> Tensor:
        return sums.loss(self.config.loss_weights)

    def _step_event(
        self, sums: LossSums, *, lr: float, gradient_norm: float, meter: ThroughputMeter
    ) -> StepMetrics:
        losses = self._losses(sums)
        return StepMetrics(
            step=self.step,
            epoch=self.epoch + 1,
            loss=losses.loss,
            msm=losses.msm,
            stft=losses.stft,
            lr=lr,
            gradient_norm=gradient_norm,
            windows_per_second=meter.rate(),
            data_wait=meter.data_wait_fraction(),
        )

    def _end_epoch(self, started: float) -> Iterator[EpochMetrics | WriteFailure]:
        trained = time.perf_counter() - started
        val, monitor = self.validate()
        if not math.isfinite(val.loss):
            raise TrainingError(
                f"the validation loss is {val.loss} in epoch {self.epoch + 1}: some validation windows "
                "cannot be scored; check the store with `biofound verify --data-dir`"
            )
        probe = self._measure_probe()
        best = self._is_best(val, probe)
        self._require_scored(self._epoch_sums, "training")
        metrics = EpochMetrics(
            epoch=self.epoch + 1,
            train=self._losses(self._epoch_sums),
            val=val,
            monitor=monitor,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
            windows_per_second=per_second(len(self.train), trained),
            best=best,
            probe=probe,
        )
        self.epoch += 1
        self.epochs_done.append(metrics)
        self._epoch_sums, self._seconds_before = self._no_sums(), 0.0
        # `last_model.pt` comes last: killed before it, a resumed run writes the others again.
        if best:
            self.best_val_loss = val.loss
            yield from self._save(BEST)
        if self.epoch % self.config.save_interval == 0:
            yield from self._save(f"checkpoint_epoch_{self.epoch}.pt")
        yield from self.write(HISTORY, lambda path: write_json(path, self.history()))
        yield from self._save(LAST)
        yield metrics

    def history(self) -> dict[str, Any]:
        """What `training_history.json` holds; see `history_json`."""
        parent = None if self.parent is None else {"path": self.parent.path, "sha256": self.parent.sha256}
        return history_json(self.epochs_done, synthetic=self.data.synthetic, parent=parent)

    # -----------------------------------------------------------------------------------------------------
    # Validation

    def validate(self, *, baseline: bool = False) -> tuple[Losses, dict[str, Any]]:
        """The losses over the validation windows, under the run's fixed masks, and `MonitorSums.summary`.

        Args:
            baseline: score the visible samples' mean in place of the reconstruction: what a model that has
                learned nothing reaches.
        """
        self.model.eval()
        by_number: dict[int, LossSums] = {}  # a sum for each micro-batch, as processes would add them up
        watched: dict[int, MonitorSums] = {}
        channels = self.model.config.channels
        nothing = MonitorSums.zero(channels=channels, width=self.model.config.d_model, device=self.device)

        def score(own: MicroBatch) -> None:
            with torch.inference_mode():
                mask = torch.from_numpy(self.validation_mask(own.index)).to(self.device)
                out = self._forward(torch.as_tensor(self.val.read(own.index)).to(self.device), mask)
                if baseline:
                    out = out._replace(values=torch.zeros_like(out.values))
                by_number[own.number] = by_number.get(own.number, self._no_sums()) + self.loss_terms(out)
                sums = monitor_sums(
                    out.values,
                    out.target,
                    out.loss_mask,
                    mask=mask,
                    latents=out.latents,
                    channels=channels,
                    sfreq=self.data.sfreq,
                )
                watched[own.number] = watched.get(own.number, nothing) + sums

        for index in split_batches(np.arange(len(self.val)), self.config.batch_size):
            self._micro_batches.map(score, self._own_micro_batches(index))
        whole, _ = self._summed(by_number.values())
        self._require_scored(whole, "validation")
        total = sum((watched[number] for number in sorted(watched)), start=nothing)
        total = replace(total, vector=self.group.sum(total.vector))
        return self._losses(whole), total.summary()

    def _measure_probe(self) -> ProbeErrors | None:
        """The probe's errors, the same on every rank, where one is due after this epoch."""
        if self.probe is None or not self.probe.due(self.epoch + 1, epochs=self.config.epochs):
            return None
        error = torch.zeros(1, dtype=torch.float64, device=self.device)
        if self.group.rank == 0:
            error[0] = self.probe.measure(self.model.encoder)
        return self.probe.beside_constant(self.group.sum(error).item())

    def _is_best(self, val: Losses, probe: ProbeErrors | None) -> bool:
        """Whether this epoch beats the best one so far, by validation loss or by the probe."""
        if self.probe is None or not self.probe.chooses_best:
            return self.best_val_loss is None or val.loss < self.best_val_loss
        best = next((epoch.probe for epoch in reversed(self.epochs_done) if epoch.best), None)
        return probe is not None and (best is None or probe.error < best.error)

    def validation_mask(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The masks (B, P) of validation windows, the same in every epoch."""
        return self.config.masks(
            patches=self.model.config.patches, stream=Stream.VALIDATION_MASK, epoch=0, index=index
        )

    # -----------------------------------------------------------------------------------------------------
    # Batches, and what a step is made of

    def _load_micro_batch(self, own: MicroBatch) -> LoadedMicroBatch:
        config, crop = self.config, None
        if config.random_crop:
            crop = keyed_uniform(
                seed=config.seed, stream=Stream.CROP, epoch=self.epoch, index=own.index, count=1
            )[:, 0]
        heart_rate = None
        if isinstance(self.train, MixedWindows):
            windows = torch.from_numpy(self.train.read(own.index, crop, self.epoch))
            if config.rate_weight:
                heart_rate = torch.from_numpy(self.train.heart_rate(own.index, crop, self.epoch))
                heart_rate = heart_rate.to(self.device)
        else:
            windows = torch.as_tensor(self.train.read(own.index, crop))
        if config.channel_dropout:
            windows = self._without_dropped_channels(windows, own.index)
        mask = torch.from_numpy(
            config.masks(
                patches=self.model.config.patches,
                stream=Stream.TRAIN_MASK,
                epoch=self.epoch,
                index=own.index,
            )
        )
        if self.device.type == "cuda":
            mask = mask.pin_memory()
            windows = windows if windows.is_cuda else windows.pin_memory()
        return LoadedMicroBatch(own.number, windows, mask, heart_rate)

    def _without_dropped_channels(self, windows: Tensor, index: NDArray[np.int64]) -> Tensor:
        """Training windows (B, C, T) with gaps for the channels that they lose: neither seen nor counted."""
        dropped = draw_channel_dropout(
            torch.isfinite(windows).any(-1).cpu().numpy(),
            probability=self.config.channel_dropout,
            seed=self.config.seed,
            epoch=self.epoch,
            index=index,
        )
        return torch.where(torch.from_numpy(dropped).to(windows.device)[..., None], torch.nan, windows)

    def _forward(self, windows: Tensor, mask: Tensor) -> Reconstruction:
        with self._autocast():
            out: Reconstruction = self._forward_model(windows, mask)
        return out

    def _no_sums(self) -> LossSums:
        channels, resolutions = len(self.model.config.channels), len(self.config.stft_windows)
        return LossSums.zero(channels=channels, resolutions=resolutions, device=self.device)

    def _losses(self, sums: LossSums) -> Losses:
        return sums.losses(self.config.loss_weights, channels=self.model.config.channels)

    def _require_scored(self, sums: LossSums, split: str) -> None:
        """A channel of which nothing was hidden and real scores 0, which would look like success."""
        counts = sums.msm[1].tolist()
        empty = [name for name, count in zip(self.model.config.channels, counts, strict=True) if count == 0]
        if empty:
            raise TrainingError(
                f"no {split} window has a real sample of {', '.join(empty)} where the mask hides it, so "
                "there is nothing to score; the windows hold gaps only: build them again"
                + (", or lower channel_dropout" if self.config.channel_dropout else "")
            )

    def _cases_of(self, index: NDArray[np.int64]) -> list[str]:
        if isinstance(self.train, MixedWindows):
            info = self.train.info(index, self.epoch)
        else:
            info = self.train.info(index)
        return sorted(set(info.case_id.tolist()))

    # -----------------------------------------------------------------------------------------------------
    # Files

    def _save_checkpoint(self, path: Path) -> None:
        save_checkpoint(path, self.checkpoint())

    def checkpoint(self) -> Checkpoint:
        """The run as it stands."""
        metrics: dict[str, Any] = {}
        if self.epochs_done:
            last = asdict(self.epochs_done[-1])
            metrics = {name: last[name] for name in ("train", "val", "monitor", "lr", "probe")}
        return Checkpoint(
            model=self.model.config,
            encoder=on_cpu(self.model.encoder),
            decoder=on_cpu(self.model.decoder),
            data=self.data,
            settings=self.settings,
            epoch=self.epoch,
            step=self.step,
            best_val_loss=self.best_val_loss,
            metrics=metrics,
            optimizer=self.optimizer.state_dict(),
            parent=self.parent,
            resume={
                "epoch_sums": self._epoch_sums.values.cpu(),
                "seconds": self._seconds_before,
                "epochs_done": [asdict(metrics) for metrics in self.epochs_done],
                "scaler": self.scaler.state_dict(),
                "fingerprints": {
                    "train": self.data.fingerprint,
                    "probe": None if self.probe is None else self.probe.fingerprint,
                },
                "world_size": self.group.size,
                # Every generator is keyed: its state on each rank follows from these.
                "rng": {"seed": self.config.seed, "epoch": self.epoch, "step": self.step},
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`, on any number of processes. No file is touched.

        Raises:
            CheckpointError: when it holds no run that could be continued, or one of another model.
        """
        if checkpoint.resume is None or checkpoint.optimizer is None:
            raise CheckpointError("this checkpoint holds a model, but no run that could be resumed")
        model = checkpoint.build()
        try:
            self.model.load_state_dict(model.state_dict())
            self.optimizer.load_state_dict(checkpoint.optimizer)
            self.scaler.load_state_dict(checkpoint.resume["scaler"])
            self.epochs_done = [EpochMetrics.from_json(row) for row in checkpoint.resume["epochs_done"]]
            sums = self._epoch_sums.values.copy_(checkpoint.resume["epoch_sums"])
            self._seconds_before = checkpoint.resume["seconds"]
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the run in it cannot go on with this model and these settings: {shorten(str(error), 300)}; "
                "use those it was started with"
            ) from error
        self._epoch_sums = LossSums(sums)
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.best_val_loss = checkpoint.best_val_loss
        self.parent = checkpoint.parent

    def forget_best(self) -> None:
        """Let the best of the epochs to come be the best: the model of the best so far is not at hand."""
        self.best_val_loss = None
        self.epochs_done = [replace(epoch, best=False) for epoch in self.epochs_done]
