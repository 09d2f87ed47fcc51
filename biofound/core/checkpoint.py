"""Checkpoints: a trained model in one file that describes itself and loads with `weights_only=True`.

torch does not check the CRC of its archives, so a damaged weight would load without a word. A checkpoint
holds a digest of every tensor and one of all other values, which loading compares.
"""

import hashlib
import json
import platform
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from biofound.core.models import ModelConfig, PretrainingModel
from biofound.errors import CheckpointError
from biofound.files import require_checkpoint_file, write_atomically
from biofound.weights import find_weights

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


def package_versions() -> dict[str, str]:
    """The versions that decide what a checkpoint's numbers mean."""
    packages = {name: version(name) for name in ("biofound", "torch", "granite-tsfm", "numpy")}
    return {**packages, "python": platform.python_version()}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` whole or not at all (temporary name, fsync, rename)."""
    buffer = BytesIO()  # torch.save into a file makes a RuntimeError of what the disk says
    torch.save(with_digests(checkpoint_content(checkpoint)), buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


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
        "versions": checkpoint.versions,
    }


def with_digests(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint's file, with the digests of all that it holds now."""
    digests = {name: _sha256_of_tensor(tensor) for name, tensor in _leaves(content)}
    whole = {**content, "tensor_sha256": digests}
    return {**whole, "values_sha256": _sha256_of_values(whole)}


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, onto the CPU, and compare all that it holds with its digests.

    Args:
        path: a `.pt` file, a `.safetensors` file of `biofound export`, a directory with one, or the name of
            weights that biofound brings along.

    Raises:
        CheckpointError: when the file is missing, damaged, no biofound checkpoint, of a format this version
            does not know, or a tensor in it is none, not finite or of another dtype.
    """
    path = find_weights(Path(path))
    if path.suffix == ".safetensors":
        from biofound.core.safetensors_file import load_safetensors  # which needs this module

        return load_safetensors(path)
    return checkpoint_of_content(_read(path), path=path)


def checkpoint_of_content(content: dict[str, Any], *, path: Path) -> Checkpoint:
    """The checkpoint that a file's content describes, compared with the digests in it.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
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
