"""Channel inflation and weight transfer: a pretrained encoder takes more channels, by name and exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from biofound.core.checkpoint import Checkpoint, load_checkpoint
from biofound.core.heads import HEADS
from biofound.core.models import Encoder, ModelConfig, PretrainingModel, build_model, channel_rows
from biofound.core.task import TaskConfig, TaskKind, TaskModel
from biofound.data.channels import FINETUNE_CHANNELS, Channel
from biofound.errors import CheckpointError, SettingsError
from biofound.files import sha256_of

TransferStatus = Literal["copied", "inflated", "new", "dropped"]


@dataclass(frozen=True, kw_only=True)
class TensorTransfer:
    """Transfer of one tensor: its shape before (None if new) and after (None if dropped)."""

    name: str
    status: TransferStatus
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class Inflation:
    """An inflated model and the transfer of every tensor of the checkpoint and of the new model."""

    model: PretrainingModel
    transfers: tuple[TensorTransfer, ...]

    def named(self, status: TransferStatus, *, part: Literal["encoder", "decoder"]) -> frozenset[str]:
        """The tensors of one part with this status, as that part's own `state_dict` names them."""
        prefix = f"{part}."
        return frozenset(
            item.name.removeprefix(prefix)
            for item in self.transfers
            if item.status == status and item.name.startswith(prefix)
        )


def inflate(checkpoint: Checkpoint, *, channels: Sequence[str], seed: int = 0) -> Inflation:
    """Inflate a model to `channels`: on the pretrained ones it computes what the checkpoint's model does.

    Tensors find their channel by name, wherever it stands in the new order. A new channel's block of
    the fusion starts at zero: what the channel holds then adds exactly nothing to the latents, while
    the block's own gradient is not zero, so the first training step changes it.

    Args:
        checkpoint: the pretrained model.
        channels: the new order; it holds every pretrained channel and at least one new one.
        seed: for the initial values of what is new.

    Raises:
        SettingsError: when `channels` leaves out a pretrained channel, or adds none.
        CheckpointError: when a tensor is unknown, or its shape does not fit.
    """
    old = checkpoint.model
    _require_all(old.channels, channels)
    if len(channels) <= len(old.channels):
        raise SettingsError(
            f"inflation adds channels: the checkpoint has {len(old.channels)} ({', '.join(old.channels)}), "
            f"so ask for more than that, not {len(channels)}"
        )
    try:
        config = replace(old, channels=tuple(channels))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return transfer_weights(checkpoint, config, seed=seed)


def transfer_weights(checkpoint: Checkpoint, config: ModelConfig, *, seed: int) -> Inflation:
    """A model of `config` with a checkpoint's weights: what both have is copied, new channels are inflated.

    The heads of the further loss terms are copied where both have them, new where only `config` has them,
    and dropped where only the checkpoint has them. Dropout may differ, as no tensor depends on it.

    Args:
        checkpoint: the pretrained model.
        config: the new model; it has every pretrained channel, in any order, and may have more.
        seed: for the initial values of what is new.

    Raises:
        SettingsError: when `config` leaves out a pretrained channel, or describes another encoder.
        CheckpointError: when a tensor is unknown, or its shape does not fit.
    """
    old = checkpoint.model
    _require_all(old.channels, config.channels)
    free = ("channels", "dropout", "rhythm_head", "rate_head")
    ours, theirs = config.as_json(), old.as_json()
    differing = [name for name in ours if name not in free and ours[name] != theirs[name]]
    if differing:
        listed = ", ".join(f"{name} {theirs[name]} (not {ours[name]})" for name in differing)
        raise SettingsError(
            f"the model of the checkpoint has {listed}: leave that setting out, and the checkpoint's is taken"
        )
    checkpoint.build()  # a checkpoint whose tensors are not its model's is refused before any is copied
    model = build_model(config, seed=seed)
    transfers: list[TensorTransfer] = []
    with torch.no_grad():
        for name in config.channels:
            if name not in old.channels:
                model.encoder.fusion[name].zero_()
        transfers += _fill("encoder", checkpoint.encoder, model.encoder.state_dict(), old, config)
        transfers += _fill("decoder", checkpoint.decoder, model.decoder.state_dict(), old, config)
    if checkpoint.optimizer is not None:
        transfers.append(TensorTransfer(name="optimizer state", status="dropped", before=None, after=None))
    return Inflation(model=model.eval(), transfers=tuple(transfers))


def _require_all(old: Sequence[str], channels: Sequence[str]) -> None:
    missing = [name for name in old if name not in channels]
    if missing:
        raise SettingsError(
            f"the checkpoint's channel {', '.join(missing)} is not among the new channels "
            f"{', '.join(channels)}; every pretrained channel is kept: add it"
        )


def inflated_checkpoint(
    checkpoint: Checkpoint,
    inflation: Inflation,
    *,
    path: Path,
    new: Sequence[Channel],
) -> Checkpoint:
    """The inflated model as a checkpoint that says where it came from.

    Args:
        checkpoint: the checkpoint that was inflated.
        inflation: the result.
        path: the file of `checkpoint`, for its SHA-256.
        new: the new channels.
    """
    model, data = inflation.model, checkpoint.data
    return replace(
        checkpoint,
        model=model.config,
        encoder=model.encoder.state_dict(),
        decoder=model.decoder.state_dict(),
        data=replace(
            data,
            filters={channel.name: channel.band.as_json() for channel in new} | data.filters,
            units={channel.name: channel.unit for channel in new} | data.units,
            quality_thresholds={channel.name: channel.quality_threshold for channel in new}
            | data.quality_thresholds,
        ),
        optimizer=None,
        resume=None,
        inflated_from={"channels": list(checkpoint.model.channels), "sha256": sha256_of(path)},
    )


def load_pretrained_with_channel_inflate(
    *,
    checkpoint_path: str | Path,
    pretrain_channels: int,
    finetune_channels: int,
    freeze_pretrained: bool = True,
    model_config: Mapping[str, Any] | None = None,
) -> Encoder | TaskModel:
    """The encoder of a checkpoint, inflated to more channels and ready for fine-tuning, with a head if asked.

    Args:
        checkpoint_path: a pretraining checkpoint, such as `best_model.pt`.
        pretrain_channels: how many channels it is expected to have.
        finetune_channels: how many the encoder shall have: as many, or more.
        freeze_pretrained: freeze what was copied, with dropout off in it. What is new stays trainable,
            and so does the head.
        model_config: `channels`, the names in the new order; by default ACC_X, ACC_Y, ACC_Z, PPG, ECG where
            five are asked for, and the checkpoint's where no new ones are. `task`, `classification` or
            `regression`, asks for a head; with it may stand `num_classes` (2) or the names `classes`, the
            label's name `target`, `head` (linear, mlp or attention), `hidden`, `head_dropout`, and for a
            regression `target_mean` and `target_std`. `input_channels` and any field of `ModelConfig` given
            here are checked against the checkpoint.

    Returns:
        Without `task` an `Encoder`, (B, finetune_channels, T) -> (B, P, D); with it a `TaskModel`, which ends
        in (B, classes) logits or (B, 1) numbers. Both in training mode.

    Raises:
        CheckpointError: when the file is no checkpoint, or not what the arguments say it is.
        SettingsError: when the channels or the task do not fit.
    """
    checkpoint = load_checkpoint(Path(checkpoint_path))
    stated = dict(model_config or {})
    channels = stated.pop("channels", None) or _default_channels(checkpoint, finetune_channels)
    for name, count in (
        ("finetune_channels", finetune_channels),
        ("input_channels", stated.pop("input_channels", None)),
    ):
        if count is not None and len(channels) != count:
            raise SettingsError(f"{name} is {count}, but {len(channels)} are named: {', '.join(channels)}")
    if len(checkpoint.model.channels) != pretrain_channels:
        raise CheckpointError(
            f"{checkpoint_path}: expected {pretrain_channels} channels (pretrain_channels), "
            f"found {len(checkpoint.model.channels)}: {', '.join(checkpoint.model.channels)}"
        )
    task = task_config_of(stated)
    _require_agreement(stated, checkpoint.model)
    model: Encoder | TaskModel
    if task is None:
        model, copied = encoder_for(checkpoint, channels=channels)
        encoder = model
    else:
        model, copied = task_model_for(checkpoint, channels=channels, task=task)
        encoder = model.encoder
    if freeze_pretrained:
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name not in copied)
    return model.train()


def encoder_for(
    checkpoint: Checkpoint, *, channels: Sequence[str], seed: int = 0
) -> tuple[Encoder, frozenset[str]]:
    """A checkpoint's encoder for these channels, inflated where it lacks some, and its copied tensors.

    Raises:
        SettingsError: when `channels` leaves out a pretrained channel.
        CheckpointError: when a tensor does not fit.
    """
    if set(channels) != set(checkpoint.model.channels):
        inflation = inflate(checkpoint, channels=channels, seed=seed)
        return inflation.model.encoder, inflation.named("copied", part="encoder")
    encoder = replace(checkpoint, model=replace(checkpoint.model, channels=tuple(channels))).build_encoder()
    return encoder, frozenset(encoder.state_dict())


def task_model_for(
    checkpoint: Checkpoint, *, channels: Sequence[str], task: TaskConfig, seed: int = 0
) -> tuple[TaskModel, frozenset[str]]:
    """A checkpoint's encoder for these channels with a new head, and the encoder's copied tensors.

    Raises:
        SettingsError: see `encoder_for`.
        CheckpointError: see `encoder_for`.
    """
    encoder, copied = encoder_for(checkpoint, channels=channels, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TaskModel(encoder, task), copied


def task_config_of(stated: dict[str, Any]) -> TaskConfig | None:
    """The task that `model_config` asks for, whose fields are taken out of `stated`; None without `task`.

    Raises:
        SettingsError: when there are fields of a task but none is named, or they do not fit it.
    """
    task = stated.pop("task", None)
    names = (
        "num_classes",
        "classes",
        "target",
        "head",
        "hidden",
        "head_dropout",
        "target_mean",
        "target_std",
    )
    given = {name: stated.pop(name) for name in names if name in stated}
    if task is None:
        if given:
            raise SettingsError(
                f"model_config has {', '.join(given)}, but no task: give task 'classification' or "
                "'regression'"
            )
        return None
    number = given.pop("num_classes", None)
    if task == "classification":
        classes = tuple(str(name) for name in given.pop("classes", range(2 if number is None else number)))
        if number is not None and len(classes) != number:
            raise SettingsError(
                f"num_classes is {number}, but {len(classes)} are named: {', '.join(classes)}"
            )
        given["classes"] = classes
    elif number is not None:
        raise SettingsError(f"num_classes is about a classification, not about the task {task!r}")
    if "head_dropout" in given:
        given["dropout"] = given.pop("head_dropout")
    if task not in get_args(TaskKind) or given.get("head", HEADS[0]) not in HEADS:
        raise SettingsError(
            f"expected task {' or '.join(get_args(TaskKind))} and head {', '.join(HEADS)}; got {task!r}, "
            f"{given.get('head', HEADS[0])!r}"
        )
    try:
        return TaskConfig(**{"task": task, "target": "label", **given})
    except (TypeError, ValueError) as error:
        raise SettingsError(f"model_config: {error}") from error


def _default_channels(checkpoint: Checkpoint, number: int) -> tuple[str, ...]:
    if number == len(checkpoint.model.channels):
        return checkpoint.model.channels
    if number == len(FINETUNE_CHANNELS):
        return tuple(FINETUNE_CHANNELS)
    raise SettingsError(
        f"there are no default names for {number} channels: "
        f"give model_config={{'channels': [...]}} with {number} names"
    )


def _require_agreement(stated: Mapping[str, Any], model: ModelConfig) -> None:
    actual = model.as_json()
    unknown = [name for name in stated if name not in actual]
    if unknown:
        raise SettingsError(
            f"model_config has no field {', '.join(unknown)}; it can have {', '.join(actual)}"
        )
    for name, value in stated.items():
        if actual[name] != value:
            raise CheckpointError(
                f"model_config says {name} = {value!r}, but the checkpoint's model has {actual[name]!r}; "
                "leave it out: the checkpoint describes its own model"
            )


def _fill(
    part: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor], before: ModelConfig, after: ModelConfig
) -> list[TensorTransfer]:
    """Copy `old` into `new` in place, and list the transfer of each tensor."""
    transfers = []
    for name, target in new.items():
        source = old.get(name)
        by_channel = part == "decoder" and name.startswith("proj.")
        if source is None:
            status: TransferStatus = "new"
        elif by_channel and source.shape[1:] == target.shape[1:]:
            status = "copied" if source.shape == target.shape else "inflated"
            for channel in before.channels:
                target[channel_rows(after, channel)] = source[channel_rows(before, channel)]
        elif source.shape == target.shape:
            status = "copied"
            target.copy_(source)
        else:
            raise CheckpointError(
                f"{part}.{name}: the checkpoint's tensor of shape {tuple(source.shape)} does not fit the "
                f"inflated model, which expects {tuple(target.shape)}"
            )
        transfers.append(
            TensorTransfer(
                name=f"{part}.{name}",
                status=status,
                before=None if source is None else tuple(source.shape),
                after=tuple(target.shape),
            )
        )
    transfers += [
        TensorTransfer(name=f"{part}.{name}", status="dropped", before=tuple(source.shape), after=None)
        for name, source in old.items()
        if name not in new
    ]
    return transfers
