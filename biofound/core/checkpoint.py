"""Checkpoints: a trained model in one file that describes itself and loads with `weights_only=True`.

torch does not check the CRC of its archives, so a damaged weight would load without a word. A checkpoint
holds a digest of every tensor and one of all other values, which loading compares.
"""

import hashlib
import json
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import torch
from torch import Tensor

from biofound.core.models import ModelConfig, PretrainingModel
from biofound.errors import CheckpointError, DataError
from biofound.files import path_to_text, require_checkpoint_file, sha256_of, write_atomically

KIND = "biofound-checkpoint"
FORMAT_VERSION = 5


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """Description of the training data, in plain JSON: enough to condition new recordings alike.

    `filters` maps channel name to its pass band (`low_hz`, `high_hz`, `order`), `units` to its physical
    unit, `quality_thresholds` to the quality (0 to 1) from which on a window was kept; gaps of at most
    `max_gap_seconds` were bridged. `fingerprint` identifies the training windows, `subjects` are those in
    them (sorted; empty where the windows do not say). `synthetic` says that no person was recorded.
    `parts` lists what several stores and streams gave: `name`, `windows` an epoch, `synthetic`; it is empty
    for a single store.
    """

    sfreq: float
    filters: dict[str, dict[str, Any]]
    units: dict[str, str]
    quality_thresholds: dict[str, float]
    max_gap_seconds: float
    fingerprint: str
    synthetic: bool
    subjects: tuple[str, ...] = ()
    parts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def synthetic_share(self) -> float:
        """The share of the training windows of an epoch that are synthetic."""
        windows = sum(part["windows"] for part in self.parts)
        if not windows:
            return float(self.synthetic)
        return float(sum(part["windows"] for part in self.parts if part["synthetic"]) / windows)


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

    def build(self) -> PretrainingModel:
        """The model itself, with these weights, in eval mode.

        Raises:
            CheckpointError: when a tensor is missing, left over or of another shape, or no such model can be.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                model = PretrainingModel(self.model)
        except (MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            reason = shorten(str(error), 200)
            raise CheckpointError(f"the model that it describes cannot be made: {reason}") from error
        for module, state in ((model.encoder, self.encoder), (model.decoder, self.decoder)):
            _load_exactly(module, state)
        return model.eval()

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
        channels = self.model.channels
        absent = tuple(name for name in channels if name not in available)
        if not absent:
            return ()
        found = (
            f"the checkpoint takes {', '.join(channels)}; there is {', '.join(available) or 'nothing'}, "
            f"but no {', '.join(absent)}"
        )
        if len(absent) == len(channels):
            raise DataError(f"{found}: give at least one of its channels")
        if not self.settings.get("channel_dropout"):
            raise DataError(
                f"{found}. It was trained without channel dropout, so it does not know windows that lack a "
                "channel: give all of them, or a checkpoint of `biofound pretrain --channel-dropout 0.5`"
            )
        return absent


def package_versions() -> dict[str, str]:
    """The versions that decide what a checkpoint's numbers mean."""
    packages = {name: version(name) for name in ("biofound", "torch", "granite-tsfm", "numpy")}
    return {**packages, "python": platform.python_version()}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` whole or not at all (temporary name, fsync, rename)."""
    content = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "encoder_state_dict": checkpoint.encoder,
        "decoder_state_dict": checkpoint.decoder,
        "optimizer_state_dict": checkpoint.optimizer,
        "best_val_loss": checkpoint.best_val_loss,
        "metrics": checkpoint.metrics,
        "model": checkpoint.model.as_json(),
        "channels": list(checkpoint.model.channels),
        "sfreq": checkpoint.data.sfreq,
        "filters": checkpoint.data.filters,
        "units": checkpoint.data.units,
        "quality_thresholds": checkpoint.data.quality_thresholds,
        "max_gap_seconds": checkpoint.data.max_gap_seconds,
        "data_fingerprint": checkpoint.data.fingerprint,
        "synthetic": checkpoint.data.synthetic,
        "subjects": list(checkpoint.data.subjects),
        "synthetic_share": checkpoint.data.synthetic_share,
        "data_parts": checkpoint.data.parts,
        "settings": checkpoint.settings,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "resume": checkpoint.resume,
        "inflated_from": checkpoint.inflated_from,
        "parent": None if checkpoint.parent is None else checkpoint.parent.as_json(),
        "versions": checkpoint.versions,
    }
    content = with_digests(content)
    buffer = BytesIO()  # torch.save into a file makes a RuntimeError of what the disk says
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def with_digests(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint's file, with the digests of all that it holds now."""
    digests = {name: _sha256_of_tensor(tensor) for name, tensor in _leaves(content)}
    whole = {**content, "tensor_sha256": digests}
    return {**whole, "values_sha256": _sha256_of_values(whole)}


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, onto the CPU, and compare all that it holds with its digests.

    Raises:
        CheckpointError: when the file is missing, damaged, no biofound checkpoint, of a format this version
            does not know, or a tensor in it is none, not finite or of another dtype.
    """
    path = Path(path)
    content = _read(path)
    found = content.get("format_version")
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {found!r}, but biofound {version('biofound')} reads format "
            f"{FORMAT_VERSION}; another version of biofound wrote it: use that version, or train again"
        )
    try:
        checkpoint = Checkpoint(
            model=ModelConfig.from_json(content["model"]),
            encoder=content["encoder_state_dict"],
            decoder=content["decoder_state_dict"],
            data=DataDescription(
                sfreq=content["sfreq"],
                filters=content["filters"],
                units=content["units"],
                quality_thresholds=content["quality_thresholds"],
                max_gap_seconds=content["max_gap_seconds"],
                fingerprint=content["data_fingerprint"],
                synthetic=content["synthetic"],
                subjects=tuple(content["subjects"]),
                parts=content["data_parts"],
            ),
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
        fault = _fault(content)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a complete checkpoint: {type(error).__name__} {error}") from error
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}; use another checkpoint of the run")
    return checkpoint


def _read(path: Path) -> dict[str, Any]:
    require_checkpoint_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about untrusted pickles, which are refused just below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch raises whatever its parsers stumble over
        # torch's own message is left out: for a refused pickle it tells how to run the code in it.
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({path.stat().st_size} bytes): it is truncated, damaged "
            "or another kind of file; use another checkpoint of the run"
        ) from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise CheckpointError(
            f"{path}: a torch file, but not a biofound checkpoint (its 'kind' should be {KIND!r}); "
            "expected one such as the best_model.pt of a pretraining run"
        )
    return content


def _fault(content: dict[str, Any]) -> str | None:
    """What is wrong with the tensors and values of a file's content, in words; None where nothing is."""
    for part in ("encoder_state_dict", "decoder_state_dict"):
        for name, tensor in content[part].items():
            if not isinstance(tensor, Tensor):
                return f"{part}.{name}: expected a tensor, got {type(tensor).__name__}"
            if tensor.dtype != torch.float32:
                return f"{part}.{name}: expected a tensor of float32, got {tensor.dtype}"
    tensors = dict(_leaves(content))
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            return f"{name}: expected a tensor with its own number for each element, got another layout"
        if not torch.isfinite(tensor).all():
            return f"{name}: holds NaN or infinity"
    digests = content["tensor_sha256"]
    if tensors.keys() != digests.keys():
        return f"{min(tensors.keys() ^ digests.keys())}: missing, or not saved by biofound (it has no digest)"
    for name, tensor in tensors.items():
        if _sha256_of_tensor(tensor) != digests[name]:
            return f"{name}: damaged, its numbers are not those that were saved (SHA-256)"
    if _sha256_of_values(content) != content["values_sha256"]:
        return "damaged, the values beside the tensors are not those that were saved (SHA-256)"
    return None


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors inside of dictionaries and lists, each with its keys as its name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{name}.{number}")


def _sha256_of_tensor(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256_of_values(content: Mapping[str, Any]) -> str:
    """The SHA-256 of everything in a checkpoint but the tensors, as JSON."""
    plain = {key: value for key, value in content.items() if key != "values_sha256"}
    return hashlib.sha256(json.dumps(plain, default=_no_value).encode()).hexdigest()


def _no_value(value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} in a checkpoint: expected tensors and plain values")


def _load_exactly(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        differing = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        lines = [f"{name}: expected {expected.get(name)}, found {found.get(name)}" for name in differing[:5]]
        raise CheckpointError(
            f"the checkpoint's tensors are not those of the {type(module).__name__} it describes "
            f"({len(differing)} differ): " + "; ".join(lines)
        )
    module.load_state_dict(state)
