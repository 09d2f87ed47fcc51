"""Pretraining loop: training steps, validation, checkpoints and resuming.

The loop is an iterator of events: it computes and writes files, and never prints. Everything random depends
on (seed, epoch, sample index) or (seed, step, micro-batch) alone, so a run that was killed and resumed
computes what it would have computed.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic_core import from_json
from torch import Tensor, nn

from biofound.core.checkpoint import Checkpoint, DataDescription, save_checkpoint
from biofound.core.devices import AUTOCAST_DTYPE
from biofound.core.distributed import ALONE, Group, MicroBatch
from biofound.core.gpu_cache import GpuWindowCache
from biofound.core.history import (
    EpochMetrics,
    Losses,
    ProbeErrors,
    StepMetrics,
    ThroughputMeter,
    TrainingEvent,
    WriteFailure,
    history_json,
    per_second,
)
from biofound.core.losses import LossSums, PretrainingLoss
from biofound.core.masking import MaskType, Stream, draw_masks, keyed_uniform
from biofound.core.micro_batches import MICRO_BATCHES, micro_batches_on
from biofound.core.models import ModelConfig, PretrainingModel, Reconstruction
from biofound.core.monitor import MonitorSums, monitor_sums
from biofound.core.optimizer import flat_grad_buffer, learning_rate, make_optimizer
from biofound.core.run_files import BEST, HISTORY, LAST, METRICS
from biofound.core.sampler import Shuffle, epoch_order, prefetched, split_batches
from biofound.data.mixture import MixedWindows
from biofound.data.windows import Windows
from biofound.errors import CheckpointError, TrainingError
from biofound.files import append_line, write_atomically, write_json

if TYPE_CHECKING:  # scikit-learn is imported by runs with a probe alone
    from biofound.core.validation_probe import ValidationProbe


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Units and bounds stand with the settings of the same names."""

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
    global_weight: float
    rhythm_weight: float
    rate_weight: float
    random_crop: bool
    shuffle: Shuffle
    seed: int
    precision: Literal["fp32", "bf16", "fp16"]
    compile: bool
    log_interval: int
    save_interval: int
    checkpoint_minutes: float
    on_write_error: Literal["stop", "continue"]

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
        )


class LoadedMicroBatch(NamedTuple):
    """A micro-batch with its data: windows (B, C, T), masks (B, P), heart rates (B,), NaN where unknown."""

    number: int
    windows: Tensor
    mask: Tensor
    heart_rate: Tensor | None


@dataclass(frozen=True)
class Batch:
    """A global batch, and the micro-batches of it that this process computes; there may be none."""

    index: NDArray[np.int64]
    micro_batches: list[LoadedMicroBatch]


class Trainer:
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
        """
        self.model, self.train, self.val, self.data = model.to(device), train, val, data
        self.config, self.settings, self.output_dir = config, settings, output_dir
        self.device, self.group, self.stop, self.probe = device, group, stop, probe
        self.optimizer = make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=config.precision == "fp16")
        self.loss_terms = config.loss_terms(data, model.config).to(device)
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.warmup_steps = config.warmup_epochs * self.steps_per_epoch
        self.epoch = 0
        self.step = 0
        self.best_val_loss: float | None = None
        self.epochs_done: list[EpochMetrics] = []
        self.interrupted = False
        self._forward_model = torch.compile(model) if config.compile else model
        self._micro_batches = micro_batches_on(
            device, dropout=model.config.dropout, compiled=config.compile, processes=group.size
        )
        self._gradient = flat_grad_buffer(model)
        self._epoch_sums = self._no_sums()
        self._seconds_before = 0.0
        self._saved_at = time.monotonic()

    # -----------------------------------------------------------------------------------------------------
    # Training

    def fit(self) -> Iterator[TrainingEvent]:
        """Train to the end, or until `stop` says so; then `interrupted` is True.

        Yields:
            `StepMetrics` every `log_interval` steps; `EpochMetrics` an epoch, after its files are written;
            and a `WriteFailure` for each file that could not be written, where the run goes on after that.

        Raises:
            TrainingError: when a loss or gradient is not finite, or a file cannot be written and the run
                is not to go on.
        """
        self.interrupted = False
        with self._micro_batches.sharing_threads():
            yield from self._prepare_files()
            while self.epoch < self.config.epochs and not self.interrupted:
                yield from self._fit_epoch()

    def _prepare_files(self) -> Iterator[WriteFailure]:
        """Make the files those of a run at this step, so that killed at any time it can be resumed."""
        if (self.output_dir / METRICS).is_file():
            yield from self.write(METRICS, lambda path: _drop_lines_after(path, self.step))
        if self.step == 0 or not (self.output_dir / LAST).is_file():
            yield from self._save(LAST)

    def _fit_epoch(self) -> Iterator[TrainingEvent]:
        """The steps that are left of the epoch, then its validation."""
        config, meter = self.config, ThroughputMeter()
        started = time.perf_counter() - self._seconds_before
        order = epoch_order(
            windows=len(self.train), seed=config.seed, epoch=self.epoch, shuffle=config.shuffle
        )
        steps_done = self.step - self.epoch * self.steps_per_epoch
        for batch in prefetched(self._load, split_batches(order, config.batch_size)[steps_done:], meter):
            lr, sums, gradient_norm = self._train_step(batch)
            meter.count(len(batch.index))
            if self.step % config.log_interval == 0 or self.step % self.steps_per_epoch == 0:
                losses = self._losses(sums)
                metrics = StepMetrics(
                    step=self.step,
                    epoch=self.epoch + 1,
                    loss=losses.loss,
                    msm=losses.msm,
                    stft=losses.stft,
                    lr=lr,
                    gradient_norm=gradient_norm.item(),
                    windows_per_second=meter.rate(),
                    data_wait=meter.data_wait_fraction(),
                )
                yield from self._log(metrics)
                meter.reset()
            if self.interrupted or self._checkpoint_is_due():
                self._seconds_before = time.perf_counter() - started
                yield from self._save(LAST)
            if self.interrupted:
                return
        yield from self._end_epoch(started)

    def _train_step(self, batch: Batch) -> tuple[float, LossSums, Tensor]:
        """One optimizer step: its learning rate, the batch's loss sums, and the gradient's norm."""
        config = self.config
        lr = learning_rate(
            self.step,
            base=config.lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.model.train()
        self._gradient.zero_()

        def forward(own: LoadedMicroBatch) -> LossSums:
            windows = own.windows.to(self.device, non_blocking=True)
            mask = own.mask.to(self.device, non_blocking=True)
            with self._keyed_dropout(own.number):
                sums: LossSums = self.loss_terms(self._forward(windows, mask), own.heart_rate)
                return sums

        def backward(own: LossSums) -> None:
            loss = own.with_counts_of(whole).loss(config.loss_weights)
            torch.autograd.backward(self.scaler.scale(loss))

        sums = self._micro_batches.map(forward, batch.micro_batches)
        whole, self.interrupted = self._summed(sums, stop=self.stop())
        self._micro_batches.map(backward, sums)
        self.group.sum(self._gradient)
        self.scaler.unscale_(self.optimizer)
        norm = self._gradient.norm()
        self._require_finite(whole, norm, batch)
        self._gradient.mul_((config.gradient_clip / norm.clamp(min=1e-12)).clamp(max=1.0))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self._epoch_sums = self._epoch_sums + whole
        return lr, whole, norm

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
        return history_json(self.epochs_done, synthetic=self.data.synthetic)

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

    def _own_micro_batches(self, index: NDArray[np.int64]) -> list[MicroBatch]:
        """What this process computes of a global batch: its micro-batches that are not empty."""
        alone = MICRO_BATCHES if self.device.type == "cpu" else 1
        return [own for own in self.group.micro_batches(index, alone=alone) if len(own.index)]

    def _load(self, index: NDArray[np.int64]) -> Batch:
        return Batch(index, [self._load_micro_batch(own) for own in self._own_micro_batches(index)])

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

    def _forward(self, windows: Tensor, mask: Tensor) -> Reconstruction:
        dtype = AUTOCAST_DTYPE.get(self.config.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            out: Reconstruction = self._forward_model(windows, mask)
        return out

    @contextmanager
    def _keyed_dropout(self, micro_batch: int) -> Iterator[None]:
        """Dropout that depends on (seed, step, micro-batch) alone; the global generator is put back after."""
        if self.model.config.dropout == 0:
            yield
            return
        key = np.random.SeedSequence([self.config.seed, self.step, micro_batch])
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))
            yield

    def _no_sums(self) -> LossSums:
        channels, resolutions = len(self.model.config.channels), len(self.config.stft_windows)
        return LossSums.zero(channels=channels, resolutions=resolutions, device=self.device)

    def _summed(self, sums: Iterable[LossSums], *, stop: bool = False) -> tuple[LossSums, bool]:
        """The sums of all micro-batches and ranks, and whether any rank is to stop: one exchange for both."""
        values = sum(sums, start=self._no_sums()).values
        if self.group.size > 1:
            both = self.group.sum(torch.cat([values.flatten(), values.new_tensor([float(stop)])]))
            values, stop = both[:-1].view_as(values), bool(both[-1] > 0)
        return LossSums(values), stop

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
            )

    def _require_finite(self, sums: LossSums, norm: Tensor, batch: Batch) -> None:
        """Stop before the weights change, and leave a checkpoint from just before."""
        loss = sums.loss(self.config.loss_weights)
        if self.config.precision == "fp16":
            norm = torch.zeros_like(norm)  # GradScaler skips a step whose gradient overflowed, and goes on
        if torch.isfinite(loss + norm):
            return
        what = "gradient" if torch.isfinite(loss) else "loss"
        failures = list(self._save(LAST))
        if isinstance(self.train, MixedWindows):
            info = self.train.info(batch.index, self.epoch)
        else:
            info = self.train.info(batch.index)
        cases = sorted(set(info.case_id.tolist()))
        saved = "could not be written" if failures else "is from just before it"
        raise TrainingError(
            f"the {what} is not finite in epoch {self.epoch + 1}, step {self.step + 1} (batch from cases "
            f"{', '.join(cases[:8])}{' …' if len(cases) > 8 else ''}): the run stops; "
            f"{self.output_dir / LAST} {saved}; lower the learning rate or look at these cases' windows"
        )

    # -----------------------------------------------------------------------------------------------------
    # Files

    def checkpoint(self) -> Checkpoint:
        """The run as it stands."""
        metrics: dict[str, Any] = {}
        if self.epochs_done:
            last = asdict(self.epochs_done[-1])
            metrics = {name: last[name] for name in ("train", "val", "monitor", "lr", "probe")}
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

    def forget_best(self) -> None:
        """Let the best of the epochs to come be the best: the model of the best so far is not at hand."""
        self.best_val_loss = None
        self.epochs_done = [replace(epoch, best=False) for epoch in self.epochs_done]

    def _checkpoint_is_due(self) -> bool:
        """Asked of rank 0's clock only: the others write nothing."""
        if self.group.rank or self.config.checkpoint_minutes == 0:
            return False
        return time.monotonic() - self._saved_at > 60 * self.config.checkpoint_minutes

    def _save(self, name: str) -> Iterator[WriteFailure]:
        if name == LAST:
            self._saved_at = time.monotonic()
        yield from self.write(name, lambda path: save_checkpoint(path, self.checkpoint()))

    def write(self, name: str, write: Callable[[Path], object]) -> Iterator[WriteFailure]:
        """Write a file of the run on rank 0: `write` is called with its path in the output directory.

        Yields:
            A `WriteFailure` when it cannot be written, and the run is to go on.

        Raises:
            TrainingError: when it cannot be written, and the run is to stop.
        """
        if self.group.rank:
            return
        path = self.output_dir / name
        try:
            write(path)
        except OSError as error:
            if self.config.on_write_error == "stop":
                raise TrainingError(
                    f"{path}: {error.strerror or error}; the file written before it is whole. Make room, "
                    "then resume the run (--resume), or run it with --on-write-error continue"
                ) from error
            yield WriteFailure(path=str(path), error=error.strerror or str(error))

    def _log(self, metrics: StepMetrics) -> Iterator[StepMetrics | WriteFailure]:
        yield from self.write(METRICS, lambda path: append_line(path, json.dumps(asdict(metrics))))
        yield metrics


def _drop_lines_after(path: Path, step: int) -> None:
    """Drop the metrics of steps that a resumed run takes again, and a last line that was cut short."""

    def belongs(line: str) -> bool:
        try:
            return bool(from_json(line)["step"] <= step)
        except (ValueError, KeyError, TypeError):
            return False

    kept = [line for line in path.read_text().splitlines() if belongs(line)]
    write_atomically(path, lambda file: file.writelines(f"{line}\n".encode() for line in kept))


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
