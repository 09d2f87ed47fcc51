"""Task models: a pretrained encoder with a head for one label, and their files.

A file describes itself as a checkpoint does (`biofound.core.checkpoint`): model, channels, filters, classes
and whom it was trained on, with a digest of every tensor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biofound.core.archive import (
    find_fault,
    load_exactly,
    making_described_model,
    read_content,
    require_format,
    write_content,
)
from biofound.core.checkpoint import package_versions
from biofound.core.heads import HeadKind, build_head
from biofound.core.models import Encoder, ModelConfig
from biofound.data.description import DataDescription, data_content, data_of_content
from biofound.errors import CheckpointError, DataError

KIND = "biofound-task-model"
FORMAT_VERSION = 1

TaskKind = Literal["classification", "regression"]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What a task model predicts, and its head; plain JSON in its file.

    `classes` are the names of a classification's K classes, in the order of the outputs; empty for a
    regression, whose labels are `target_mean` and `target_std` wide, in the label's unit.
    """

    task: TaskKind
    target: str
    classes: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_std: float = 1.0
    head: HeadKind = "linear"
    hidden: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError where there are no two classes, or classes of a regression."""
        wrong = len(self.classes) < 2 if self.task == "classification" else len(self.classes) > 0
        if wrong or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"a classification has 2 or more distinct classes and a regression none, got {self.task} "
                f"with {list(self.classes)}"
            )
        if not self.target_std > 0:
            raise ValueError(f"target_std must be above 0, got {self.target_std}")

    @property
    def outputs(self) -> int:
        """K: the classes, or 1."""
        return len(self.classes) or 1

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`; a missing or unknown key is a TypeError."""
        return cls(**{**value, "classes": tuple(value["classes"])})


class TaskModel(nn.Module):
    """An encoder and a head: windows (B, C, T) in physical units to outputs (B, K).

    Outputs of a classification are logits, those of a regression are in the label's unit.
    """

    def __init__(self, encoder: Encoder, config: TaskConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = build_head(
            config.head,
            d_model=encoder.config.d_model,
            outputs=config.outputs,
            hidden=config.hidden,
            dropout=config.dropout,
        )

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """The outputs (B, K) of windows x (B, C, T); NaN, or `observed` (B, C, T) False, are gaps."""
        out: Tensor = self.head(self.encoder(x, observed=observed)).float()
        if self.config.task == "classification":
            return out
        number: Tensor = out * self.config.target_std + self.config.target_mean
        return number

    def train(self, mode: bool = True) -> Self:
        """Training mode, except in what is frozen as a whole: there dropout stays off."""
        super().train(mode)
        for module in frozen_modules(self):
            module.eval()
        return self

    def losses(self, out: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """The loss of each window (B,): cross-entropy, or squared error in units of `target_std`.

        Args:
            out: (B, K).
            labels: (B,) class numbers, or numbers in the label's unit.
            class_weights: (K,), which each window's loss is multiplied by.
        """
        if self.config.task == "regression":
            return ((out[:, 0] - labels) / self.config.target_std).square()
        loss = F.cross_entropy(out, labels, reduction="none")
        return loss if class_weights is None else loss * class_weights[labels]

    def predict(self, x: Tensor) -> Tensor:
        """Probabilities (B, K) of a classification, or numbers (B, 1) of a regression, without gradient."""
        with torch.no_grad():
            out: Tensor = self(x)
        return out.softmax(-1) if self.config.task == "classification" else out


def frozen_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The largest modules below `module` that have parameters, all of them frozen."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield module
    elif parameters:
        for child in module.children():
            yield from frozen_modules(child)


@dataclass(frozen=True, kw_only=True)
class TaskCheckpoint:
    """A task model with its origin. `resume` holds what resuming the run needs, or None.

    `data` describes the windows that it was fine-tuned on; `parent` the checkpoint whose encoder it started
    from (`sha256`, `channels`, `synthetic`, `fingerprint`, `subjects`), or None for random weights.
    `validation_subjects` are those whose windows it was stopped early by (sorted; empty where the file does
    not say). `absent` are the channels of the model that all windows lacked: they are unobserved, whatever
    stands in them.
    """

    model: ModelConfig
    task: TaskConfig
    encoder: dict[str, Tensor]
    head: dict[str, Tensor]
    data: DataDescription
    parent: dict[str, Any] | None
    settings: dict[str, Any]
    epoch: int
    step: int
    metrics: dict[str, Any]
    validation_subjects: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    optimizer: dict[str, Any] | None = None
    resume: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=lambda: package_versions())

    def build(self) -> TaskModel:
        """The model itself, with these weights, in eval mode.

        Raises:
            CheckpointError: when a tensor is missing, left over or of another shape, or no such model can be.
        """
        with making_described_model():
            model = build_task_model(self.model, self.task, seed=0)
        for module, state in ((model.encoder, self.encoder), (model.head, self.head)):
            load_exactly(module, state)
        return model.eval()

    def absent_channels(self, available: Sequence[str]) -> tuple[str, ...]:
        """The channels of the model that are absent: those that it was fine-tuned without, available or not.

        Raises:
            DataError: when another one is not available.
        """
        needed = [name for name in self.model.channels if name not in self.absent]
        lacking = [name for name in needed if name not in available]
        if lacking:
            raise DataError(
                f"takes {', '.join(needed)}; there is {', '.join(available) or 'nothing'}, but no "
                f"{', '.join(lacking)}: give all of its channels, or fine-tune a model for fewer"
            )
        return self.absent


def build_task_model(model: ModelConfig, task: TaskConfig, *, seed: int) -> TaskModel:
    """A new task model whose initial weights depend only on the seed; the global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TaskModel(Encoder(model), task)


def save_task_checkpoint(path: Path, checkpoint: TaskCheckpoint) -> None:
    """Write `path` whole or not at all (temporary name, fsync, rename)."""
    write_content(
        path,
        {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "encoder_state_dict": checkpoint.encoder,
            "head_state_dict": checkpoint.head,
            "optimizer_state_dict": checkpoint.optimizer,
            "metrics": checkpoint.metrics,
            "model": checkpoint.model.as_json(),
            "task": checkpoint.task.as_json(),
            **data_content(checkpoint.data),
            "parent": checkpoint.parent,
            "validation_subjects": list(checkpoint.validation_subjects),
            "absent_channels": list(checkpoint.absent),
            "settings": checkpoint.settings,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "resume": checkpoint.resume,
            "versions": checkpoint.versions,
        },
    )


def load_task_checkpoint(path: str | Path) -> TaskCheckpoint:
    """Read a task model's file, onto the CPU, and compare all that it holds with its digests.

    Raises:
        CheckpointError: when the file is missing, damaged, no task model, or of a format that this
            version does not know.
    """
    path = Path(path)
    content = read_content(
        path, kind=KIND, what="task model", example="the best_model.pt of `biofound finetune`"
    )
    require_format(path, content, known=FORMAT_VERSION, what="task model")
    try:
        checkpoint = TaskCheckpoint(
            model=ModelConfig.from_json(content["model"]),
            task=TaskConfig.from_json(content["task"]),
            encoder=content["encoder_state_dict"],
            head=content["head_state_dict"],
            data=data_of_content(content),
            parent=content["parent"],
            validation_subjects=tuple(content.get("validation_subjects", ())),
            absent=tuple(content.get("absent_channels", ())),
            settings=content["settings"],
            epoch=content["epoch"],
            step=content["step"],
            metrics=content["metrics"],
            optimizer=content["optimizer_state_dict"],
            resume=content["resume"],
            versions=content["versions"],
        )
        fault = find_fault(content, states=("encoder_state_dict", "head_state_dict"))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a complete task model: {type(error).__name__} {error}") from error
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}; use another file of the run")
    return checkpoint
