"""Fine-tuning: a task model on labelled windows, in stages that train ever more of it.

The stages follow the network from its end (Howard & Ruder 2018, https://arxiv.org/abs/1801.06146): the head,
then the last mixer layers too, then everything. What a stage does not train stays bit for bit what it was,
with dropout off. The loop is `TrainingLoop`, as in pretraining.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biofound.core.distributed import MicroBatch
from biofound.core.heads import split_linear_head
from biofound.core.history import (
    FinetuneEpoch,
    FinetuneStep,
    TaskLosses,
    ThroughputMeter,
    WriteFailure,
    finetune_history_json,
    per_second,
)
from biofound.core.models import Encoder
from biofound.core.optimizer import learning_rate
from biofound.core.probe import fit_linear_map
from biofound.core.readout import WindowReader
from biofound.core.run_files import BEST, HISTORY, LAST
from biofound.core.sampler import split_batches
from biofound.core.scores import ScoredTask
from biofound.core.task import TaskCheckpoint, TaskModel, save_task_checkpoint
from biofound.core.training_loop import LoopConfig, TrainingLoop, on_cpu
from biofound.data.description import DataDescription
from biofound.errors import CheckpointError, TrainingError
from biofound.files import write_json

StageName = Literal["head", "layers", "all"]
WARMUP = 0.1
"""The part of a stage's steps in which its learning rate rises."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: what it trains (see `trained_parameters`), for how many epochs at most, at which peak rate."""

    name: StageName
    epochs: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LoopConfig):
    """How to fine-tune. Units and bounds stand with the settings of the same names."""

    stages: tuple[Stage, ...]
    unfreeze_layers: int
    patience: int
    class_weights: tuple[float, ...] | None
    """(K,), or None where every window weighs the same."""


def trained_parameters(model: TaskModel, stage: StageName, *, layers: int) -> tuple[str, ...]:
    """The names of what a stage trains, as `model.named_parameters` has them.

    `head`: the head. `layers`: also the last `layers` mixer layers, and the fusion of the channels, which
    stands behind them. `all`: everything.
    """
    last = range(len(_mixers(model.encoder)))[-layers:]
    prefixes: tuple[str, ...] = ("head.",)
    if stage == "layers":
        mixers = "encoder.backbone.encoder.mlp_mixer_encoder.mixers"
        prefixes += ("encoder.fusion.", "encoder.fusion_bias", *(f"{mixers}.{number}." for number in last))
    elif stage == "all":
        prefixes = ("",)
    return tuple(name for name, _ in model.named_parameters() if name.startswith(prefixes))


def freeze_except(model: TaskModel, names: Sequence[str]) -> None:
    """Make these parameters trainable and freeze all others."""
    wanted = frozenset(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)


def _mixers(encoder: Encoder) -> torch.nn.ModuleList:
    mixers = encoder.backbone.encoder.mlp_mixer_encoder.mixers
    assert isinstance(mixers, torch.nn.ModuleList)
    return mixers


def balanced_weights(codes: NDArray[np.int64], *, classes: int) -> tuple[float, ...]:
    """Class weights (K,) under which each class weighs the same in all: N / (K n_k).

    Raises:
        ValueError: when a class has no window.
    """
    counts = np.bincount(codes, minlength=classes)
    if not counts.all():
        raise ValueError(f"expected windows of each of {classes} classes, got {counts.tolist()}")
    return tuple((len(codes) / (classes * counts)).tolist())


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Windows with labels: `rows` (N,) of what `windows` reads, `labels` (N,) class numbers or numbers."""

    windows: WindowReader
    rows: NDArray[np.int64]
    labels: NDArray[Any]
    subjects: NDArray[np.str_]
    """(N,)."""
    cases: NDArray[np.str_]
    """(N,) case ids, for messages."""

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: NDArray[np.int64]) -> Tensor:
        """The windows (B, C, T) of `index` (B,)."""
        return torch.from_numpy(np.ascontiguousarray(self.windows.read(self.rows[index])))


def fit_head(model: TaskModel, train: LabelledRows, *, seed: int, balanced: bool, batch_size: int) -> None:
    """Make a linear head the linear probe of the encoder as it is, by ridge or logistic regression.

    A new head's first gradients would change the encoder for the sake of a head that knows nothing yet (Kumar
    et al. 2022, https://arxiv.org/abs/2202.10054).

    Args:
        model: a task model with a `linear` head; its other parts stay as they are.
        train: the training windows.
        seed: of the folds that choose the regularisation.
        balanced: whether classes have equal weight; else windows have.
        batch_size: windows that go through the encoder at once.
    """
    config = model.config
    pool, linear = split_linear_head(model.head)
    device = linear.weight.device
    model.eval()

    def pooled(x: NDArray[np.float32]) -> NDArray[Any]:
        with torch.no_grad():
            features: Tensor = pool(model.encoder(torch.from_numpy(x).to(device)))
        return features.float().cpu().numpy()

    pieces = [
        pooled(np.ascontiguousarray(train.windows.read(index)))
        for index in split_batches(train.rows, batch_size)
    ]
    values = train.labels.astype(np.float64)
    if config.task == "classification":
        values = np.array(config.classes)[train.labels]
    else:
        values = (values - config.target_mean) / config.target_std
    task = ScoredTask(target=config.target, values=values, subjects=train.subjects)
    fitted = fit_linear_map(np.concatenate(pieces), task, seed=seed, balanced=balanced)
    order = np.searchsorted(task.classes, config.classes) if config.classes else np.array([0])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(fitted.weight[order]))
        linear.bias.copy_(torch.from_numpy(fitted.bias[order]))


class LoadedLabels(NamedTuple):
    """A micro-batch with its data: windows (B, C, T) and labels (B,)."""

    number: int
    windows: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TaskSums:
    """Sums and counts of some windows: `values` (2, 1 + K), the sums, then the counts.

    The first is of the loss, counted by class weight; then the misses of each class, or for numbers (K = 1)
    the absolute errors.
    """

    values: Tensor

    def __add__(self, other: "TaskSums") -> "TaskSums":
        """The sums of both sets of windows, without their graph."""
        return TaskSums(self.values.detach() + other.values.detach())

    def with_counts_of(self, whole: "TaskSums") -> "TaskSums":
        """These sums over the counts of a whole batch."""
        return TaskSums(torch.stack([self.values[0], whole.values[1].to(self.values.dtype)]))

    def loss(self) -> Tensor:
        """The training loss: the mean over windows, by class weight."""
        return self.values[0, 0] / self.values[1, 0]

    def losses(self) -> TaskLosses:
        """The loss, and the error as the mean over the classes that are there."""
        sums, counts = self.values[:, 1:].double()
        there = counts > 0
        return TaskLosses(loss=self.loss().item(), error=(sums[there] / counts[there]).mean().item())


def task_sums(
    model: TaskModel, out: Tensor, labels: Tensor, *, class_weights: Tensor | None = None
) -> TaskSums:
    """The sums of outputs (B, K) beside labels (B,), with the graph of the loss."""
    losses = model.losses(out, labels, class_weights)
    if model.config.task == "regression":
        one = torch.ones_like(losses)
        rows = [torch.stack([losses, (out[:, 0] - labels).abs().detach()]), torch.stack([one, one])]
        return TaskSums(torch.stack([row.sum(1) for row in rows]))
    weights = torch.ones_like(losses) if class_weights is None else class_weights[labels]
    of_class = torch.nn.functional.one_hot(labels, out.shape[1]).to(losses.dtype)  # (B, K)
    missed = of_class * (out.argmax(-1) != labels)[:, None]
    sums = torch.cat([losses.sum()[None], missed.sum(0)])
    return TaskSums(torch.stack([sums, torch.cat([weights.sum()[None], of_class.sum(0)])]))


class FineTuner(TrainingLoop[TaskModel, LoadedLabels, TaskSums]):
    """Fine-tunes a task model stage by stage, and leaves its files in a directory.

    A stage ends after its epochs, or when the validation loss has not fallen for `patience` epochs. The next
    one, and the end, go on from the model of the best epoch so far. One process trains.
    """

    def __init__(
        self,
        *,
        model: TaskModel,
        train: LabelledRows,
        val: LabelledRows,
        data: DataDescription,
        parent: dict[str, Any] | None,
        config: FinetuneConfig,
        settings: dict[str, Any],
        output_dir: Path,
        device: torch.device,
        absent: Sequence[str] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Set up the run; nothing is written before `fit`.

        Args:
            model: the model to train, moved to `device`.
            train: the training windows.
            val: the validation windows, of other subjects.
            data: what the training windows are, for the files.
            parent: the checkpoint of its encoder, for the files; see `TaskCheckpoint`.
            config: how to train.
            settings: the resolved settings as plain JSON, for the files.
            output_dir: where models and history go.
            device: where to compute.
            absent: the channels of the model that all windows lack, for the files.
            stop: asked after every step; True saves `last_model.pt` and ends the run.
        """
        self.train, self.val, self.data, self.parent = train, val, data, parent
        self.config, self.settings = config, settings
        self.absent = tuple(absent)
        self.stage = 0
        self.epochs_done: list[FinetuneEpoch] = []
        self.best_val_loss: float | None = None
        self._best: dict[str, Tensor] | None = None
        self._stage_began, self._since_best = 0, 0  # epochs
        weights = config.class_weights
        self._class_weights = None if weights is None else torch.tensor(weights, device=device)
        freeze_except(model, self.trained(model))
        super().__init__(
            model=model,
            windows=len(train),
            config=config,
            dropout=max(model.encoder.config.dropout, model.config.dropout),
            output_dir=output_dir,
            device=device,
            stop=stop,
        )

    def trained(self, model: TaskModel | None = None) -> tuple[str, ...]:
        """The names of what the present stage trains."""
        return trained_parameters(
            self.model if model is None else model,
            self.config.stages[self.stage].name,
            layers=self.config.unfreeze_layers,
        )

    # -----------------------------------------------------------------------------------------------------
    # Training

    @property
    def peak_lr(self) -> float:
        """The learning rate of the stage after its warm-up."""
        return self.config.stages[min(self.stage, len(self.config.stages) - 1)].lr

    def _learning_rate(self) -> float:
        steps = self.config.stages[self.stage].epochs * self.steps_per_epoch
        return learning_rate(
            self.step - self._stage_began * self.steps_per_epoch,
            base=self.peak_lr,
            warmup_steps=math.ceil(WARMUP * steps),
            total_steps=steps,
        )

    def _finished(self) -> bool:
        return self.stage >= len(self.config.stages)

    def _load_micro_batch(self, own: MicroBatch) -> LoadedLabels:
        labels = self.train.labels[own.index]
        return LoadedLabels(own.number, self.train.read(own.index), torch.from_numpy(labels))

    def _score(self, own: LoadedLabels) -> TaskSums:
        return self._sums_of(own.windows, own.labels)

    def _sums_of(self, windows: Tensor, labels: Tensor) -> TaskSums:
        with self._autocast():
            out = self._forward_model(windows.to(self.device))
        return task_sums(self.model, out, labels.to(self.device), class_weights=self._class_weights)

    def _no_sums(self) -> TaskSums:
        width = 1 + self.model.config.outputs
        return TaskSums(torch.zeros(2, width, dtype=torch.float64, device=self.device))

    def _loss(self, sums: TaskSums) -> Tensor:
        return sums.loss()

    def _step_event(
        self, sums: TaskSums, *, lr: float, gradient_norm: float, meter: ThroughputMeter
    ) -> FinetuneStep:
        return FinetuneStep(
            step=self.step,
            epoch=self.epoch + 1,
            stage=self.config.stages[self.stage].name,
            loss=sums.loss().item(),
            lr=lr,
            gradient_norm=gradient_norm,
            windows_per_second=meter.rate(),
            data_wait=meter.data_wait_fraction(),
        )

    def _end_epoch(self, started: float) -> Iterator[FinetuneEpoch | WriteFailure]:
        trained = time.perf_counter() - started
        val = self.validate()
        if not math.isfinite(val.loss):
            raise TrainingError(
                f"the validation loss is {val.loss} in epoch {self.epoch + 1}: some validation windows or "
                "labels cannot be scored; lower the learning rate, or look at them"
            )
        best = self.best_val_loss is None or val.loss < self.best_val_loss
        metrics = FinetuneEpoch(
            epoch=self.epoch + 1,
            stage=self.config.stages[self.stage].name,
            train=self._epoch_sums.losses(),
            val=val,
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
            windows_per_second=per_second(len(self.train), trained),
            best=best,
        )
        self.epoch += 1
        self.epochs_done.append(metrics)
        self._epoch_sums, self._seconds_before = self._no_sums(), 0.0
        self._since_best = 0 if best else self._since_best + 1
        # `last_model.pt` comes last: killed before it, a resumed run writes the others again.
        if best:
            self.best_val_loss, self._best = val.loss, on_cpu(self.model)
            yield from self._save(BEST)
        if self.epoch % self.config.save_interval == 0:
            yield from self._save(f"checkpoint_epoch_{self.epoch}.pt")
        yield from self.write(HISTORY, lambda path: write_json(path, self.history()))
        if self._stage_is_over():
            self._end_stage()
        yield from self._save(LAST)
        yield metrics

    def _stage_is_over(self) -> bool:
        done = self.epoch - self._stage_began
        return done >= self.config.stages[self.stage].epochs or self._since_best >= self.config.patience

    def _end_stage(self) -> None:
        """Go back to the best model, and on to the next stage, if there is one."""
        assert self._best is not None  # an epoch is done
        self.model.load_state_dict(self._best)
        self.stage, self._stage_began, self._since_best = self.stage + 1, self.epoch, 0
        if not self._finished():
            freeze_except(self.model, self.trained())
            self._start_optimizer()

    def history(self) -> dict[str, Any]:
        """What `training_history.json` holds; see `finetune_history_json`."""
        return finetune_history_json(self.epochs_done, synthetic=self.data.synthetic)

    def validate(self) -> TaskLosses:
        """The losses over the validation windows, without dropout."""
        self.model.eval()
        total = self._no_sums()
        with torch.inference_mode():
            for index in split_batches(np.arange(len(self.val)), self.config.batch_size):
                labels = torch.from_numpy(self.val.labels[index])
                total = total + self._sums_of(self.val.read(index), labels)
        return total.losses()

    def _cases_of(self, index: NDArray[np.int64]) -> list[str]:
        return sorted(set(self.train.cases[index].tolist()))

    # -----------------------------------------------------------------------------------------------------
    # Files

    def _save_checkpoint(self, path: Path) -> None:
        save_task_checkpoint(path, self.checkpoint(resumable=path.name != BEST))

    def checkpoint(self, *, resumable: bool = True) -> TaskCheckpoint:
        """The run as it stands, or only its model."""
        metrics: dict[str, Any] = {}
        if self.epochs_done:
            last = asdict(self.epochs_done[-1])
            metrics = {name: last[name] for name in ("stage", "train", "val", "lr")}
        resume = {
            "stage": self.stage,
            "stage_began": self._stage_began,
            "since_best": self._since_best,
            "best": self._best,
            "best_val_loss": self.best_val_loss,
            "epoch_sums": self._epoch_sums.values.cpu(),
            "seconds": self._seconds_before,
            "epochs_done": [asdict(metrics) for metrics in self.epochs_done],
            "scaler": self.scaler.state_dict(),
            # Every generator is keyed: its state follows from these.
            "rng": {"seed": self.config.seed, "epoch": self.epoch, "step": self.step},
        }
        return TaskCheckpoint(
            model=self.model.encoder.config,
            task=self.model.config,
            encoder=on_cpu(self.model.encoder),
            head=on_cpu(self.model.head),
            data=self.data,
            parent=self.parent,
            validation_subjects=tuple(np.unique(self.val.subjects).tolist()),
            absent=self.absent,
            settings=self.settings,
            epoch=self.epoch,
            step=self.step,
            metrics=metrics,
            optimizer=self.optimizer.state_dict() if resumable else None,
            resume=resume if resumable else None,
        )

    def restore(self, checkpoint: TaskCheckpoint) -> None:
        """Go on from `checkpoint`. No file is touched.

        Raises:
            CheckpointError: when it holds no run that could be continued, or one of another model.
        """
        resume = checkpoint.resume
        if resume is None or checkpoint.optimizer is None:
            raise CheckpointError("this file holds a model, but no run that could be resumed")
        try:
            self.model.load_state_dict(checkpoint.build().state_dict())
            self.stage, self._stage_began = resume["stage"], resume["stage_began"]
            self._since_best, self._best = resume["since_best"], resume["best"]
            self.best_val_loss, self._seconds_before = resume["best_val_loss"], resume["seconds"]
            self.epochs_done = [FinetuneEpoch.from_json(row) for row in resume["epochs_done"]]
            if not self._finished():
                freeze_except(self.model, self.trained())
                self._start_optimizer()
                self.optimizer.load_state_dict(checkpoint.optimizer)
            self.scaler.load_state_dict(resume["scaler"])
            sums = self._epoch_sums.values.copy_(resume["epoch_sums"])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the run in it cannot go on with this model and these settings: {shorten(str(error), 300)}; "
                "use those it was started with"
            ) from error
        self._epoch_sums = TaskSums(sums)
        self.epoch, self.step = checkpoint.epoch, checkpoint.step


def predict_rows(
    model: TaskModel, windows: WindowReader, rows: NDArray[np.int64], *, batch_size: int
) -> NDArray[np.float64]:
    """Predictions of the windows `rows` (N,): probabilities (N, K), or numbers (N, 1); in eval mode, fp32."""
    model.eval()
    device = next(model.parameters()).device
    found = [
        model.predict(torch.from_numpy(np.ascontiguousarray(windows.read(index))).to(device)).cpu()
        for index in split_batches(rows, batch_size)
    ]
    return torch.cat(found).double().numpy()
