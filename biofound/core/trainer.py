"""How an encoder is pretrained: the loop, its validation, its checkpoints and its resumption.

The loop is an iterator of reports: it computes and writes files, and never prints. Everything random
depends on (seed, epoch, sample index) or (seed, step, part of the batch) alone, so a run that was killed
and resumed computes what it would have computed.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from biofound.core.checkpoint import Checkpoint, DataDescription, save_checkpoint
from biofound.core.devices import AUTOCAST_DTYPE
from biofound.core.distributed import ALONE, Group, Part
from biofound.core.global_term import RhythmTargets, global_terms
from biofound.core.history import (
    EpochReport,
    Losses,
    Report,
    StepReport,
    WriteFailure,
    history_json,
    reports_from_json,
    reports_to_json,
)
from biofound.core.losses import MultiResolutionSTFT, SumCount, masked_squared_error
from biofound.core.masking import MaskType, Stream, draw_masks, keyed_uniform
from biofound.core.meter import Meter
from biofound.core.models import PretrainingModel, Reconstruction
from biofound.core.optimizer import flat_gradient, make_optimizer
from biofound.core.order import Shuffle, epoch_order
from biofound.core.parts import PARTS_ALONE, parts_on
from biofound.core.schedule import learning_rate
from biofound.core.terms import Terms
from biofound.errors import CheckpointError, TrainingError
from biofound.files import write_atomically, write_json

BEST, LAST = "best_model.pt", "last_model.pt"
HISTORY, METRICS = "training_history.json", "metrics.jsonl"


class WindowReader(Protocol):
    """What the trainer needs of windows: `biofound.data` has the implementations."""

    @property
    def channels(self) -> tuple[str, ...]:
        """The channel names, in the order of the rows."""
        ...

    def __len__(self) -> int:
        """The number of windows."""
        ...

    def read(
        self, index: NDArray[np.int64], crop: NDArray[np.float64] | None = None
    ) -> NDArray[np.float32] | Tensor:
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
    global_weight: float = 0.0
    rhythm_weight: float = 0.0
    random_crop: bool
    shuffle: Shuffle
    seed: int
    precision: Literal["fp32", "bf16", "fp16"]
    compile: bool
    log_interval: int
    save_interval: int
    checkpoint_minutes: float
    on_write_error: Literal["stop", "continue"]


class LoadedPart(NamedTuple):
    """A part of a global batch: its place among the parts, windows (B, C, T) and masks (B, P)."""

    number: int
    windows: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Batch:
    """A global batch, and the parts of it that this process computes; there may be none."""

    index: NDArray[np.int64]
    parts: list[LoadedPart]


class Trainer:
    """Pretrains a model on windows and leaves its files in a directory.

    Validation masks are drawn once for the whole run, and validation windows are never cropped, so its
    losses can be compared. In a group of processes, each takes its part of every global batch, sums and
    counts are added up before the one division, and rank 0 alone writes.
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
        group: Group = ALONE,
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
            group: the processes that train together.
            stop: asked after every step; True on any rank saves `last_model.pt` and ends the run.
        """
        self.model, self.train, self.val, self.data = model.to(device), train, val, data
        self.config, self.settings, self.output_dir = config, settings, output_dir
        self.device, self.group, self.stop = device, group, stop
        self.optimizer = make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=config.precision == "fp16")
        filters = [data.filters[name] for name in model.config.channels]
        bands = [(band["low_hz"], band["high_hz"]) for band in filters]
        self.stft = MultiResolutionSTFT(
            sfreq=data.sfreq,
            bands=bands,
            window_lengths=config.stft_windows,
            floor=config.stft_floor,
        ).to(device)
        self.rhythm = None
        if model.config.rhythm_head:
            self.rhythm = RhythmTargets(
                sfreq=data.sfreq, bands=bands, samples=model.config.context_length
            ).to(device)
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.epoch = 0
        self.step = 0
        self.best_val_loss: float | None = None
        self.reports: list[EpochReport] = []
        self.interrupted = False
        self._forward_model = torch.compile(model) if config.compile else model
        self._parts = parts_on(
            device, dropout=model.config.dropout, compiled=config.compile, processes=group.size
        )
        self._gradient = flat_gradient(model)
        self._terms = self._no_terms()
        self._seconds_before = 0.0
        self._saved_at = time.monotonic()

    # -----------------------------------------------------------------------------------------------------
    # The run

    def run(self) -> Iterator[Report]:
        """Train to the end, or until `stop` says so; then `interrupted` is True.

        Yields:
            A report every `log_interval` steps; one an epoch, after its files are written; and one for each
            file that could not be written, where the run goes on after that.

        Raises:
            TrainingError: when a loss or gradient is not finite, or a file cannot be written and the run
                is not to go on.
        """
        with self._parts.sharing_threads():
            yield from self._run()

    def _run(self) -> Iterator[Report]:
        if self.step == 0:
            yield from self._save(LAST)  # so that whatever is killed can be resumed
        while self.epoch < self.config.epochs:
            started = time.perf_counter() - self._seconds_before
            for report in self._train_epoch():
                yield from self._log(report)
            if self.interrupted or self._checkpoint_is_due():
                self._seconds_before = time.perf_counter() - started
                yield from self._save(LAST)
            if self.interrupted:
                return
            if self._epoch_is_done():
                yield from self._end_epoch(started)

    def evaluate(self, *, constant_guess: bool = False) -> Losses:
        """The losses over the validation windows, under the run's fixed masks.

        Args:
            constant_guess: score the visible samples' mean in place of the reconstruction: what a model
                that has learned nothing reaches.
        """
        self.model.eval()
        terms: dict[int, Terms] = {}  # by part, as processes would add them up

        def add(part: Part) -> None:
            with torch.inference_mode():
                mask = torch.from_numpy(self.validation_mask(part.windows)).to(self.device)
                out = self._forward(torch.as_tensor(self.val.read(part.windows)).to(self.device), mask)
                if constant_guess:
                    out = out._replace(values=torch.zeros_like(out.values))
                terms[part.number] = terms.get(part.number, self._no_terms()) + self._loss_terms(out)

        for chunk in _chunks(np.arange(len(self.val)), self.config.batch_size):
            self._parts.map(add, self._parts_of(chunk))
        whole, _ = self._summed(terms.values())
        self._require_counted(whole, "validation")
        return self._losses(whole)

    def validation_mask(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The masks (B, P) of validation windows, the same in every epoch."""
        return self._mask(Stream.VALIDATION_MASK, 0, index)

    def history(self) -> dict[str, Any]:
        """What `training_history.json` holds; see `history_json`."""
        return history_json(self.reports, synthetic=self.data.synthetic)

    # -----------------------------------------------------------------------------------------------------
    # An epoch

    def _train_epoch(self) -> Iterator[StepReport]:
        """Steps to the end of the epoch, or until the run is to stop or a checkpoint is due."""
        order = epoch_order(
            windows=len(self.train),
            seed=self.config.seed,
            epoch=self.epoch,
            shuffle=self.config.shuffle,
        )
        batches = list(_chunks(order, self.config.batch_size))[
            self.step - self.epoch * self.steps_per_epoch :
        ]
        meter = Meter()
        for batch in self._prefetched(batches, meter):
            step = self._train_step(batch)
            meter.count(len(batch.index))
            if self.step % self.config.log_interval == 0 or self._epoch_is_done():
                yield self._report(step, meter)
                meter.reset()
            if self.interrupted or self._checkpoint_is_due():
                return

    def _epoch_is_done(self) -> bool:
        return self.step == (self.epoch + 1) * self.steps_per_epoch

    def _prefetched(self, batches: list[NDArray[np.int64]], meter: Meter) -> Iterator[Batch]:
        """The batches in order, each read while the one before it is computed."""
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
            upcoming: Future[Batch] | None = None
            for position in range(len(batches)):
                if upcoming is None:
                    upcoming = reader.submit(self._load, batches[position])
                with meter.waiting():
                    batch = upcoming.result()
                upcoming = None
                if position + 1 < len(batches):
                    upcoming = reader.submit(self._load, batches[position + 1])
                yield batch

    def _parts_of(self, batch: NDArray[np.int64]) -> list[Part]:
        """What this process computes of a global batch: its parts that are not empty."""
        parts = self.group.parts(batch, alone=PARTS_ALONE if self.device.type == "cpu" else 1)
        return [part for part in parts if len(part.windows)]

    def _load(self, index: NDArray[np.int64]) -> Batch:
        return Batch(index, [self._load_part(part) for part in self._parts_of(index)])

    def _load_part(self, part: Part) -> LoadedPart:
        config, crop = self.config, None
        if config.random_crop:
            crop = keyed_uniform(
                seed=config.seed, stream=Stream.CROP, epoch=self.epoch, index=part.windows, count=1
            )[:, 0]
        windows = torch.as_tensor(self.train.read(part.windows, crop))
        mask = torch.from_numpy(self._mask(Stream.TRAIN_MASK, self.epoch, part.windows))
        if self.device.type == "cuda":
            mask = mask.pin_memory()
            windows = windows if windows.is_cuda else windows.pin_memory()
        return LoadedPart(part.number, windows, mask)

    def _train_step(self, batch: Batch) -> "_Step":
        config = self.config
        self.model.train()
        lr = learning_rate(
            self.step,
            base=config.lr,
            warmup_steps=config.warmup_epochs * self.steps_per_epoch,
            total_steps=self.total_steps,
        )
        for settings in self.optimizer.param_groups:
            settings["lr"] = lr
        self._gradient.zero_()
        terms = self._parts.map(self._part_terms, batch.parts)
        whole, self.interrupted = self._summed(terms, stop=self.stop())
        self._parts.map(lambda own: self._backward(own, whole), terms)
        self.group.sum(self._gradient)
        self.scaler.unscale_(self.optimizer)
        norm = self._gradient.norm()
        step = _Step(lr, whole, norm)
        self._require_finite(step, batch)
        self._gradient.mul_((config.gradient_clip / norm.clamp(min=1e-12)).clamp(max=1.0))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self._terms = self._terms + whole
        return step

    def _report(self, step: "_Step", meter: Meter) -> StepReport:
        losses = self._losses(step.terms)
        return StepReport(
            step=self.step,
            epoch=self.epoch + 1,
            loss=losses.loss,
            msm=losses.msm,
            stft=losses.stft,
            lr=step.lr,
            gradient_norm=step.gradient_norm.item(),
            windows_per_second=meter.rate(),
            data_wait=meter.waited_share(),
        )

    def _end_epoch(self, started: float) -> Iterator[EpochReport | WriteFailure]:
        trained = time.perf_counter() - started
        val = self.evaluate()
        if not math.isfinite(val.loss):
            raise TrainingError(
                f"the validation loss is {val.loss} in epoch {self.epoch + 1}: some validation windows "
                "cannot be scored; check the store with `biofound verify --data-dir`"
            )
        best = self.best_val_loss is None or val.loss < self.best_val_loss
        self._require_counted(self._terms, "training")
        report = EpochReport(
            epoch=self.epoch + 1,
            train=self._losses(self._terms),
            val=val,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
            windows_per_second=len(self.train) / trained,
            best=best,
        )
        self.epoch += 1
        self.reports.append(report)
        self._terms, self._seconds_before = self._no_terms(), 0.0
        # `last_model.pt` comes last: killed before it, a resumed run writes the others again.
        if best:
            self.best_val_loss = val.loss
            yield from self._save(BEST)
        if self.epoch % self.config.save_interval == 0:
            yield from self._save(f"checkpoint_epoch_{self.epoch}.pt")
        yield from self._write(HISTORY, lambda path: write_json(path, self.history()))
        yield from self._save(LAST)
        yield report

    # -----------------------------------------------------------------------------------------------------
    # Parts of a step

    def _forward(self, windows: Tensor, mask: Tensor) -> Reconstruction:
        dtype = AUTOCAST_DTYPE.get(self.config.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            out: Reconstruction = self._forward_model(windows, mask)
        return out

    @contextmanager
    def _keyed_dropout(self, part: int) -> Iterator[None]:
        """Dropout that depends on (seed, step, part) alone; the global generator is put back afterwards."""
        if self.model.config.dropout == 0:
            yield
            return
        key = np.random.SeedSequence([self.config.seed, self.step, part])
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))
            yield

    def _part_terms(self, part: LoadedPart) -> Terms:
        with self._keyed_dropout(part.number):
            out = self._forward(
                part.windows.to(self.device, non_blocking=True), part.mask.to(self.device, non_blocking=True)
            )
        return self._loss_terms(out)

    def _backward(self, own: Terms, whole: Terms) -> None:
        loss = self._loss(own.counted_as(whole))
        torch.autograd.backward(self.scaler.scale(loss))

    def _loss_terms(self, out: Reconstruction) -> Terms:
        return Terms(
            masked_squared_error(out.values, out.target, out.counted),
            self.stft(out.values, out.target, out.counted),
            self._rhythm_terms(out),
        )

    def _rhythm_terms(self, out: Reconstruction) -> SumCount:
        if self.rhythm is None or out.rhythm is None:
            nothing = torch.zeros(2, device=self.device)
            return SumCount(nothing, nothing)
        summaries, intervals = self.rhythm(out.target)
        return global_terms(out.rhythm, summaries, intervals, out.whole)

    def _loss(self, terms: Terms) -> Tensor:
        return terms.total(stft_weight=self.config.stft_weight, rhythm_weights=self._rhythm_weights)

    @property
    def _rhythm_weights(self) -> tuple[float, float]:
        return self.config.global_weight, self.config.rhythm_weight

    def _no_terms(self) -> Terms:
        return Terms.zero(
            channels=len(self.model.config.channels),
            resolutions=len(self.config.stft_windows),
            device=self.device,
        )

    def _summed(self, terms: Iterable[Terms], *, stop: bool = False) -> tuple[Terms, bool]:
        """The terms of all parts and ranks, and whether any rank is to stop: one exchange for both."""
        packed = sum(terms, start=self._no_terms()).packed()
        if self.group.size > 1:
            packed = self.group.sum(torch.cat([packed, packed.new_tensor([float(stop)])]))
            packed, stop = packed[:-1], bool(packed[-1] > 0)
        channels, resolutions = len(self.model.config.channels), len(self.config.stft_windows)
        return Terms.unpacked(packed, channels=channels, resolutions=resolutions), stop

    def _losses(self, terms: Terms) -> Losses:
        return terms.losses(
            stft_weight=self.config.stft_weight,
            channels=self.model.config.channels,
            rhythm_weights=self._rhythm_weights,
        )

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

    def _require_counted(self, terms: Terms, part: str) -> None:
        """A channel of which nothing was hidden and real scores 0, which would look like success."""
        counts = terms.msm.count.tolist()
        empty = [name for name, count in zip(self.model.config.channels, counts, strict=True) if count == 0]
        if empty:
            raise TrainingError(
                f"no {part} window has a real sample of {', '.join(empty)} where the mask hides it, so there "
                "is nothing to score; the windows hold gaps only: build them again"
            )

    def _require_finite(self, step: "_Step", batch: Batch) -> None:
        """Stop before the weights change, and leave a checkpoint from just before."""
        loss, norm = self._loss(step.terms), step.gradient_norm
        if self.config.precision == "fp16":
            norm = torch.zeros_like(norm)  # GradScaler skips a step whose gradient overflowed, and goes on
        if torch.isfinite(loss + norm):
            return
        what = "gradient" if torch.isfinite(loss) else "loss"
        failures = list(self._save(LAST))
        cases = sorted({self.train.case_of(int(i)) for i in batch.index})
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
            resume={
                "epoch_terms": self._terms.packed().cpu(),
                "seconds": self._seconds_before,
                "reports": reports_to_json(self.reports),
                "scaler": self.scaler.state_dict(),
                "fingerprints": {"train": self.data.fingerprint},
                "world_size": self.group.size,
                # Every generator is keyed: its state on each rank follows from these.
                "rng": {"seed": self.config.seed, "epoch": self.epoch, "step": self.step},
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`, on any number of processes.

        Raises:
            CheckpointError: when it holds no run that could be continued.
        """
        if checkpoint.resume is None or checkpoint.optimizer is None:
            raise CheckpointError("this checkpoint holds a model, but no run that could be resumed")
        model = checkpoint.build()
        self.model.load_state_dict(model.state_dict())
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.scaler.load_state_dict(checkpoint.resume["scaler"])
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.best_val_loss = checkpoint.best_val_loss
        self.reports = reports_from_json(checkpoint.resume["reports"])
        self._terms = Terms.unpacked(
            checkpoint.resume["epoch_terms"].to(self.device),
            channels=len(self.model.config.channels),
            resolutions=len(self.config.stft_windows),
        )
        self._seconds_before = checkpoint.resume["seconds"]
        if self.group.rank == 0 and (self.output_dir / METRICS).is_file():
            _drop_lines_after(self.output_dir / METRICS, self.step)

    def _checkpoint_is_due(self) -> bool:
        """Asked of rank 0's clock only: the others write nothing."""
        if self.group.rank or self.config.checkpoint_minutes == 0:
            return False
        return time.monotonic() - self._saved_at > 60 * self.config.checkpoint_minutes

    def _save(self, name: str) -> Iterator[WriteFailure]:
        if name == LAST:
            self._saved_at = time.monotonic()
        yield from self._write(name, lambda path: save_checkpoint(path, self.checkpoint()))

    def _write(self, name: str, write: Callable[[Path], None]) -> Iterator[WriteFailure]:
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

    def _log(self, report: StepReport) -> Iterator[StepReport | WriteFailure]:
        def append(path: Path) -> None:
            with path.open("a") as file:
                file.write(json.dumps(vars(report)) + "\n")

        yield from self._write(METRICS, append)
        yield report


class _Step(NamedTuple):
    """One step's learning rate, the terms of its global batch, and its gradient's norm before clipping."""

    lr: float
    terms: Terms
    gradient_norm: Tensor


def _drop_lines_after(path: Path, step: int) -> None:
    """Drop the metrics of steps that a resumed run takes again, and a last line that was cut short."""

    def belongs(line: str) -> bool:
        try:
            return bool(json.loads(line)["step"] <= step)
        except ValueError:
            return False

    kept = [line for line in path.read_text().splitlines() if belongs(line)]
    write_atomically(path, lambda file: file.writelines(f"{line}\n".encode() for line in kept))


def _chunks(index: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(index), size):
        yield index[start : start + size]


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
