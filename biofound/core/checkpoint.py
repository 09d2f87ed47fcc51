"""Checkpoints: a trained model in one file that describes itself and loads with `weights_only=True`."""

import platform
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biofound.core.models import ModelConfig, PretrainingModel
from biofound.errors import CheckpointError
from biofound.files import require_checkpoint_file, write_atomically

KIND = "biofound-checkpoint"
FORMAT_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """Description of the training data, in plain JSON: enough to condition new recordings alike.

    `filters` maps channel name to its pass band (`low_hz`, `high_hz`, `order`), `units` to its physical
    unit. `fingerprint` identifies the training windows, `subjects` are those in them (sorted; empty where the
    windows do not say). `synthetic` says that no person was recorded.
    `parts` lists what several stores and streams gave: `name`, `windows` an epoch, `synthetic`; it is empty
    for a single store.
    """

    sfreq: float
    filters: dict[str, dict[str, Any]]
    units: dict[str, str]
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
            CheckpointError: when a tensor is missing, left over or of another shape.
        """
        with torch.random.fork_rng(devices=[]):
            model = PretrainingModel(self.model)
        for module, state in ((model.encoder, self.encoder), (model.decoder, self.decoder)):
            _load_exactly(module, state)
        return model.eval()


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
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, onto the CPU.

    Raises:
        CheckpointError: when the file is missing, truncated, no biofound checkpoint, or of a
            format this version does not know.
    """
    content = _read(path)
    found = content.get("format_version")
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {found!r}, but biofound {version('biofound')} reads format "
            f"{FORMAT_VERSION}; it was written by another version of biofound: use that version, or update"
        )
    try:
        return Checkpoint(
            model=ModelConfig.from_json(content["model"]),
            encoder=content["encoder_state_dict"],
            decoder=content["decoder_state_dict"],
            data=DataDescription(
                sfreq=content["sfreq"],
                filters=content["filters"],
                units=content["units"],
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
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a complete checkpoint: {type(error).__name__} {error}") from error


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
