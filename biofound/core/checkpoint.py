"""Checkpoints: a trained model in one file that describes itself and loads with `weights_only=True`."""

import functools
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from biofound.core.archive import (
    find_fault,
    load_exactly,
    making_described_model,
    read_content,
    require_format,
    sha256_of_state,
    write_content,
)
from biofound.core.models import Encoder, ModelConfig, PretrainingModel
from biofound.data.description import DataDescription, data_content, data_of_content
from biofound.data.model_input import absent_channels
from biofound.errors import CheckpointError
from biofound.files import path_to_text, sha256_of
from biofound.weights import SAFETENSORS_SUFFIX, find_weights

Module = TypeVar("Module", PretrainingModel, Encoder)

KIND = "biofound-checkpoint"
FORMAT_VERSION = 5


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The checkpoint from whose weights a run started (`pretrain --init-from`).

    `path` and `sha256` are the file's; `fingerprint`, `subjects` and `synthetic` are of its training windows,
    as in `DataDescription`; `epoch` and `step` say how far it was trained; `parent` is its own parent.
    """

    path: str
    sha256: str
    channels: tuple[str, ...]
    epoch: int
    step: int
    fingerprint: str
    subjects: tuple[str, ...]
    synthetic: bool
    parent: "Parent | None" = None

    def chain(self) -> Iterator["Parent"]:
        """Itself, its own parent, and so on."""
        yield self
        if self.parent is not None:
            yield from self.parent.chain()

    def as_json(self) -> dict[str, Any]:
        """Plain JSON for checkpoints."""
        parent = None if self.parent is None else self.parent.as_json()
        return {
            **vars(self),
            "channels": list(self.channels),
            "subjects": list(self.subjects),
            "parent": parent,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`; a missing or unknown key is a TypeError or KeyError."""
        parent = value["parent"]
        changed = {
            "channels": tuple(value["channels"]),
            "subjects": tuple(value["subjects"]),
            "parent": None if parent is None else cls.from_json(parent),
        }
        return cls(**{**value, **changed})


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model with its origin. `resume` holds what resuming the run needs, or None."""

    model: ModelConfig
    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    data: DataDescription
    settings: dict[str, Any]
    epoch: int
    """Epochs done."""
    step: int
    """Optimizer steps done."""
    best_val_loss: float | None
    """Of the best epoch so far; None before the first one."""
    metrics: dict[str, Any]
    optimizer: dict[str, Any] | None = None
    resume: dict[str, Any] | None = None
    inflated_from: dict[str, Any] | None = None
    parent: Parent | None = None
    """The checkpoint whose weights the run started from; None where they were random."""
    versions: dict[str, str] = field(default_factory=lambda: package_versions())

    @property
    def encoder_sha256(self) -> str:
        """A digest of the encoder's weights: the same in every file that holds them."""
        return sha256_of_state(self.encoder)

    def build(self) -> PretrainingModel:
        """The model itself, with these weights, in eval mode.

        Raises:
            CheckpointError: when a tensor is missing, left over or of another shape, or no such model can be.
        """
        model = self._made(PretrainingModel)
        for module, state in ((model.encoder, self.encoder), (model.decoder, self.decoder)):
            load_exactly(module, state)
        return model.eval()

    def build_encoder(self) -> Encoder:
        """The encoder alone, with these weights, in eval mode; channels in the order of `model.channels`.

        Raises:
            CheckpointError: see `build`.
        """
        encoder = self._made(Encoder)
        load_exactly(encoder, self.encoder)
        return encoder.eval()

    def _made(self, kind: type[Module]) -> Module:
        """A model of that kind with other weights; the global generator is untouched."""
        with making_described_model(), torch.random.fork_rng(devices=[]):
            return kind(self.model)

    def ancestors(self) -> Iterator[Parent]:
        """The checkpoint that its run started from, the one that that one's run started from, and so on."""
        if self.parent is not None:
            yield from self.parent.chain()

    def as_parent(self, path: Path) -> Parent:
        """This checkpoint, whose file is `path`, as the parent of a run."""
        return Parent(
            path=path_to_text(path.absolute()),
            sha256=sha256_of(path),
            channels=self.model.channels,
            epoch=self.epoch,
            step=self.step,
            fingerprint=self.data.fingerprint,
            subjects=self.data.subjects,
            synthetic=self.data.synthetic,
            parent=self.parent,
        )

    def absent_channels(self, available: Sequence[str]) -> tuple[str, ...]:
        """The channels of the model that are not `available`: the encoder takes them as unobserved.

        Raises:
            DataError: when that are all of them, or the encoder was trained without channel dropout and so
                does not know windows that lack a channel.
        """
        return absent_channels(self.model.channels, available, settings=self.settings)


_installed = functools.cache(version)
"""The version of an installed package: looking it up reads a file, at every checkpoint."""


def package_versions() -> dict[str, str]:
    """The versions that decide what a checkpoint's numbers mean."""
    packages = {name: _installed(name) for name in ("biofound", "torch", "granite-tsfm", "numpy")}
    return {**packages, "python": platform.python_version()}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` whole or not at all (temporary name, fsync, rename)."""
    write_content(path, checkpoint_content(checkpoint))


def checkpoint_content(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint's file holds, by its names there, without the digests."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "encoder_state_dict": checkpoint.encoder,
        "decoder_state_dict": checkpoint.decoder,
        "optimizer_state_dict": checkpoint.optimizer,
        "best_val_loss": checkpoint.best_val_loss,
        "metrics": checkpoint.metrics,
        "model": checkpoint.model.as_json(),
        "channels": list(checkpoint.model.channels),
        **data_content(checkpoint.data),
        "settings": checkpoint.settings,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "resume": checkpoint.resume,
        "inflated_from": checkpoint.inflated_from,
        "parent": None if checkpoint.parent is None else checkpoint.parent.as_json(),
        "versions": checkpoint.versions,
    }


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, onto the CPU, and compare all that it holds with its digests.

    Args:
        path: a file of `biofound pretrain` or `inflate`, what `biofound export` wrote as safetensors or a
            directory, or the name of weights that biofound brings along.

    Raises:
        CheckpointError: when the file is missing, damaged, no biofound checkpoint, of a format this version
            does not know, or a tensor in it is none, not finite or of another dtype.
    """
    path = find_weights(Path(path))
    if path.suffix == SAFETENSORS_SUFFIX:
        from biofound.core.safetensors_file import load_safetensors  # which needs this module

        return load_safetensors(path)
    content = read_content(
        path, kind=KIND, what="checkpoint", example="the best_model.pt of a pretraining run"
    )
    return checkpoint_of_content(content, path=path)


def checkpoint_of_content(content: dict[str, Any], *, path: Path) -> Checkpoint:
    """The checkpoint that a file's content describes, compared with the digests in it.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    require_format(path, content, known=FORMAT_VERSION, what="checkpoint")
    try:
        checkpoint = Checkpoint(
            model=ModelConfig.from_json(content["model"]),
            encoder=content["encoder_state_dict"],
            decoder=content["decoder_state_dict"],
            data=data_of_content(content),
            settings=content["settings"],
            epoch=content["epoch"],
            step=content["step"],
            best_val_loss=content["best_val_loss"],
            metrics=content["metrics"],
            optimizer=content["optimizer_state_dict"],
            resume=content["resume"],
            inflated_from=content["inflated_from"],
            parent=None if content.get("parent") is None else Parent.from_json(content["parent"]),
            versions=content["versions"],
        )
        fault = find_fault(content, states=("encoder_state_dict", "decoder_state_dict"))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a complete checkpoint: {type(error).__name__} {error}") from error
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}; use another checkpoint of the run")
    return checkpoint
