"""Training loop: steps, learning rate, checkpoints, resuming; shared by pretraining and fine-tuning.

The loop is an iterator of events: it computes and writes files, and never prints. Everything random depends
on (seed, epoch, sample index) or (seed, step, micro-batch) alone, so a run that was killed and resumed
computes what it would have computed.
"""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic_core import from_json
from torch import Tensor, nn

from biofound.core.devices import AUTOCAST_DTYPE
from biofound.core.distributed import ALONE, Group, MicroBatch
from biofound.core.history import ThroughputMeter, TrainingEvent, WriteFailure
from biofound.core.micro_batches import MICRO_BATCHES, micro_batches_on
from biofound.core.optimizer import flat_grad_buffer, make_optimizer
from biofound.core.run_files import LAST, METRICS
from biofound.core.sampler import Shuffle, epoch_order, prefetched, split_batches
from biofound.errors import TrainingError
from biofound.files import append_line, write_atomically


class Sums(Protocol):
    """Sums and counts of some windows' losses, in one small tensor; `Sums(values)` makes them."""

    def __init__(self, values: Tensor) -> None: ...

    @property
    def values(self) -> Tensor:
        """The tensor."""
        ...

    def __add__(self, other: Self, /) -> Self:
        """The sums of both sets of windows, without their graph."""
        ...

    def with_counts_of(self, whole: Self, /) -> Self:
        """These sums over the counts of a whole batch."""
        ...


class LoadedBatch(Protocol):
    """A micro-batch with its data, and which of a batch's micro-batches it is."""

    @property
    def number(self) -> int:
        """Its place in the batch."""
        ...


S = TypeVar("S", bound=Sums)
M = TypeVar("M", bound=nn.Module)
L = TypeVar("L", bound=LoadedBatch)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How any training goes. Units and bounds stand with the settings of the same names."""

    epochs: int
    batch_size: int
    weight_decay: float
    gradient_clip: float
    shuffle: Shuffle
    seed: int
    precision: Literal["fp32", "bf16", "fp16"]
    compile: bool
    log_interval: int
    save_interval: int
    checkpoint_minutes: float
    on_write_error: Literal["stop", "continue"]


@dataclass(frozen=True)
class Batch(Generic[L]):
    """A global batch, and the micro-batches of it that this process computes; there may be none."""

    index: NDArray[np.int64]
    micro_batches: list[L]


class TrainingLoop(ABC, Generic[M, L, S]):
    """Trains a model on windows and leaves its files in a directory.

    In a group of processes each computes one micro-batch of every global batch, sums and counts are added up
    before the one division, and rank 0 alone writes. A subclass says how a micro-batch is loaded and scored,
    how an epoch ends, and what a checkpoint holds.
    """

    def __init__(
        self,
        *,
        model: M,
        windows: int,
        config: LoopConfig,
        dropout: float,
        output_dir: Path,
        device: torch.device,
        group: Group = ALONE,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Set up the run; nothing is written before `fit`.

        Args:
            model: the model to train, moved to `device`.
            windows: the number of training windows.
            config: how to train.
            dropout: of the model; where it is 0 micro-batches may be computed side by side.
            output_dir: where checkpoints and history go.
            device: where to compute.
            group: the processes that train together.
            stop: asked after every step; True on any rank saves `last_model.pt` and ends the run.
        """
        self.model, self._windows, self._loop_config = model.to(device), windows, config
        self.output_dir, self.device, self.group, self.stop = output_dir, device, group, stop
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=config.precision == "fp16")
        self.steps_per_epoch = math.ceil(windows / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.epoch = 0
        self.step = 0
        self.interrupted = False
        self._dropout = dropout
        self._forward_model = torch.compile(model) if config.compile else model
        self._micro_batches = micro_batches_on(
            device, dropout=dropout, compiled=config.compile, processes=group.size
        )
        self._start_optimizer()
        self._seconds_before = 0.0
        self._saved_at = time.monotonic()
        self._epoch_sums: S = self._no_sums()

    # -----------------------------------------------------------------------------------------------------
    # What a kind of training says

    @abstractmethod
    def _load_micro_batch(self, own: MicroBatch) -> L:
        """Read the windows of a micro-batch, and what its loss needs."""

    @abstractmethod
    def _score(self, own: L) -> S:
        """The loss sums of a micro-batch, with their graph."""

    @abstractmethod
    def _no_sums(self) -> S:
        """The sums of no windows, in float64."""

    @abstractmethod
    def _loss(self, sums: S) -> Tensor:
        """The loss of sums and counts."""

    @abstractmethod
    def _step_event(
        self, sums: S, *, lr: float, gradient_norm: float, meter: ThroughputMeter
    ) -> TrainingEvent:
        """What is told of the step just taken; its fields go to `metrics.jsonl`."""

    @abstractmethod
    def _end_epoch(self, started: float) -> Iterator[TrainingEvent]:
        """Validate, count the epoch and write its files; `started` is when it did, on `time.perf_counter`."""

    @abstractmethod
    def _save_checkpoint(self, path: Path) -> None:
        """Write the run as it stands."""

    @abstractmethod
    def _cases_of(self, index: NDArray[np.int64]) -> list[str]:
        """The cases of training windows, for messages."""

    @property
    @abstractmethod
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""

    @abstractmethod
    def _learning_rate(self) -> float:
        """Of the step to come."""

    def _finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self._loop_config.epochs

    # -----------------------------------------------------------------------------------------------------
    # Training

    def _start_optimizer(self) -> None:
        """A new optimizer over the parameters that are trainable now, and the gradients that it reads."""
        for parameter in self.model.parameters():
            parameter.grad = None
        self.optimizer = make_optimizer(
            self.model, lr=self.peak_lr, weight_decay=self._loop_config.weight_decay
        )
        self._gradient = flat_grad_buffer(self.model)

    def fit(self) -> Iterator[TrainingEvent]:
        """Train to the end, or until `stop` says so; then `interrupted` is True.

        Yields:
            an event every `log_interval` steps; one an epoch, after its files are written; and a
            `WriteFailure` for each file that could not be written, where the run goes on after that.

        Raises:
            TrainingError: when a loss or gradient is not finite, or a file cannot be written and the run
                is not to go on.
        """
        self.interrupted = False
        with self._micro_batches.sharing_threads():
            yield from self._prepare_files()
            while not self._finished() and not self.interrupted:
                yield from self._fit_epoch()

    def _prepare_files(self) -> Iterator[WriteFailure]:
        """Make the files those of a run at this step, so that killed at any time it can be resumed."""
        if (self.output_dir / METRICS).is_file():
            yield from self.write(METRICS, lambda path: _drop_lines_after(path, self.step))
        if self.step == 0 or not (self.output_dir / LAST).is_file():
            yield from self._save(LAST)

    def _fit_epoch(self) -> Iterator[TrainingEvent]:
        """The steps that are left of the epoch, then its validation."""
        config, meter = self._loop_config, ThroughputMeter()
        started = time.perf_counter() - self._seconds_before
        order = epoch_order(windows=self._windows, seed=config.seed, epoch=self.epoch, shuffle=config.shuffle)
        steps_done = self.step - self.epoch * self.steps_per_epoch
        for batch in prefetched(self._load, split_batches(order, config.batch_size)[steps_done:], meter):
            lr, sums, gradient_norm = self._train_step(batch)
            meter.count(len(batch.index))
            if self.step % config.log_interval == 0 or self.step % self.steps_per_epoch == 0:
                event = self._step_event(sums, lr=lr, gradient_norm=gradient_norm.item(), meter=meter)
                yield from self._log(event)
                meter.reset()
            if self.interrupted or self._checkpoint_is_due():
                self._seconds_before = time.perf_counter() - started
                yield from self._save(LAST)
            if self.interrupted:
                return
        yield from self._end_epoch(started)

    def _train_step(self, batch: Batch[L]) -> tuple[float, S, Tensor]:
        """One optimizer step: its learning rate, the batch's loss sums, and the gradient's norm."""
        config = self._loop_config
        lr = self._learning_rate()
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.model.train()
        self._gradient.zero_()

        def forward(own: L) -> S:
            with self._keyed_dropout(own.number):
                return self._score(own)

        def backward(own: S) -> None:
            torch.autograd.backward(self.scaler.scale(self._loss(own.with_counts_of(whole))))

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

    # -----------------------------------------------------------------------------------------------------
    # Batches, and what a step is made of

    def _own_micro_batches(self, index: NDArray[np.int64]) -> list[MicroBatch]:
        """What this process computes of a global batch: its micro-batches that are not empty."""
        alone = MICRO_BATCHES if self.device.type == "cpu" else 1
        return [own for own in self.group.micro_batches(index, alone=alone) if len(own.index)]

    def _load(self, index: NDArray[np.int64]) -> Batch[L]:
        return Batch(index, [self._load_micro_batch(own) for own in self._own_micro_batches(index)])

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """The precision of the run."""
        dtype = AUTOCAST_DTYPE.get(self._loop_config.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            yield

    @contextmanager
    def _keyed_dropout(self, micro_batch: int) -> Iterator[None]:
        """Dropout that depends on (seed, step, micro-batch) alone; the global generator is put back after."""
        if self._dropout == 0:
            yield
            return
        key = np.random.SeedSequence([self._loop_config.seed, self.step, micro_batch])
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))
            yield

    def _summed(self, sums: Iterable[S], *, stop: bool = False) -> tuple[S, bool]:
        """The sums of all micro-batches and ranks, and whether any rank is to stop: one exchange for both."""
        nothing = self._no_sums()
        values = sum(sums, start=nothing).values
        if self.group.size > 1:
            both = self.group.sum(torch.cat([values.flatten(), values.new_tensor([float(stop)])]))
            values, stop = both[:-1].view_as(values), bool(both[-1] > 0)
        return type(nothing)(values), stop

    def _require_finite(self, sums: S, norm: Tensor, batch: Batch[L]) -> None:
        """Stop before the weights change, and leave a checkpoint from just before."""
        loss = self._loss(sums)
        if self._loop_config.precision == "fp16":
            norm = torch.zeros_like(norm)  # GradScaler skips a step whose gradient overflowed, and goes on
        if torch.isfinite(loss + norm):
            return
        what = "gradient" if torch.isfinite(loss) else "loss"
        failures = list(self._save(LAST))
        cases = self._cases_of(batch.index)
        saved = "could not be written" if failures else "is from just before it"
        raise TrainingError(
            f"the {what} is not finite in epoch {self.epoch + 1}, step {self.step + 1} (batch from cases "
            f"{', '.join(cases[:8])}{' …' if len(cases) > 8 else ''}): the run stops; "
            f"{self.output_dir / LAST} {saved}; lower the learning rate or look at these cases' windows"
        )

    # -----------------------------------------------------------------------------------------------------
    # Files

    def _checkpoint_is_due(self) -> bool:
        """Asked of rank 0's clock only: the others write nothing."""
        if self.group.rank or self._loop_config.checkpoint_minutes == 0:
            return False
        return time.monotonic() - self._saved_at > 60 * self._loop_config.checkpoint_minutes

    def _save(self, name: str) -> Iterator[WriteFailure]:
        if name == LAST:
            self._saved_at = time.monotonic()
        yield from self.write(name, self._save_checkpoint)

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
            if self._loop_config.on_write_error == "stop":
                raise TrainingError(
                    f"{path}: {error.strerror or error}; the file written before it is whole. Make room, "
                    "then resume the run (--resume), or run it with --on-write-error continue"
                ) from error
            yield WriteFailure(path=str(path), error=error.strerror or str(error))

    def _log(self, event: TrainingEvent) -> Iterator[TrainingEvent]:
        yield from self.write(METRICS, lambda path: append_line(path, json.dumps(asdict(event))))
        yield event


def _drop_lines_after(path: Path, step: int) -> None:
    """Drop the metrics of steps that a resumed run takes again, and a last line that was cut short."""

    def belongs(line: str) -> bool:
        try:
            return bool(from_json(line)["step"] <= step)
        except (ValueError, KeyError, TypeError):
            return False

    kept = [line for line in path.read_text().splitlines() if belongs(line)]
    write_atomically(path, lambda file: file.writelines(f"{line}\n".encode() for line in kept))


def on_cpu(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
