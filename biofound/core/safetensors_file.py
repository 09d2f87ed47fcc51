"""Safetensors files: a checkpoint's weights and description to pass on; no pickle, no optimizer, no run.

Format: https://huggingface.co/docs/safetensors. Tensors are named `encoder.` and `decoder.` with their name
in the model; the metadata `biofound` is what a `.pt` checkpoint holds beside the tensors, as JSON, digests
included.
"""

import json
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from biofound.core.archive import with_digests
from biofound.core.checkpoint import Checkpoint, Parent, checkpoint_content, checkpoint_of_content
from biofound.errors import CheckpointError
from biofound.files import require_checkpoint_file, write_atomically
from biofound.weights import WEIGHTS

HEADER_KEY = "biofound"
"""The key of the description in the file's metadata."""
MAX_HEADER_BYTES = 2**24
CONFIG, CARD = "config.json", "README.md"
"""The files beside the weights in a Hugging Face directory."""
MODEL_TYPE, ARCHITECTURE = "biofound", "BiofoundEncoder"
PARTS = ("encoder", "decoder")
PRIVATE_SETTINGS = (
    "data_dir",
    "output_dir",
    "resume_from",
    "init_from",
    "config",
    "channels_yaml",
    "probe_labels",
    "probe_labels_root",
)
"""Settings that tell where files lie on the machine of the training."""


def portable(checkpoint: Checkpoint, *, with_subjects: bool = False) -> Checkpoint:
    """The checkpoint without what is of no use to others, or none of their business.

    Left out: optimizer and run, paths of the machine, and the subjects unless asked for: they are the names
    that a hospital or a study gave to people. Without them `probe` cannot tell whom the encoder has seen.
    """
    settings = {name: value for name, value in checkpoint.settings.items() if name not in PRIVATE_SETTINGS}
    parts = [
        {**part, "name": part["name"] if part["synthetic"] else f"store {number}"}
        for number, part in enumerate(checkpoint.data.parts, start=1)
    ]
    data = replace(checkpoint.data, parts=parts, subjects=checkpoint.data.subjects if with_subjects else ())
    parent = _portable_parent(checkpoint.parent, with_subjects=with_subjects)
    return replace(checkpoint, settings=settings, data=data, parent=parent, optimizer=None, resume=None)


def _portable_parent(parent: Parent | None, *, with_subjects: bool) -> Parent | None:
    if parent is None:
        return None
    return replace(
        parent,
        path=Path(parent.path).name,
        subjects=parent.subjects if with_subjects else (),
        parent=_portable_parent(parent.parent, with_subjects=with_subjects),
    )


def safetensors_bytes(checkpoint: Checkpoint) -> bytes:
    """The content of a safetensors file of a portable checkpoint."""
    content = with_digests(checkpoint_content(checkpoint))
    tensors = {f"{part}.{name}": tensor for part in PARTS for name, tensor in _state(content, part).items()}
    header = {**content, **{f"{part}_state_dict": dict.fromkeys(_state(content, part)) for part in PARTS}}
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"format": "pt", HEADER_KEY: json.dumps(header)},
    )


def save_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` whole or not at all."""
    content = safetensors_bytes(checkpoint)
    write_atomically(path, lambda file: file.write(content))


def load_safetensors(path: Path) -> Checkpoint:
    """Read a checkpoint, onto the CPU, and compare all that it holds with its digests.

    Raises:
        CheckpointError: when the file is missing, damaged, or of another kind.
    """
    require_checkpoint_file(path)
    tensors, header = _read(path)
    _compare_config(path, header)
    try:
        for part in PARTS:
            names = header[f"{part}_state_dict"]
            header[f"{part}_state_dict"] = {name: tensors.pop(f"{part}.{name}") for name in names}
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its tensors are not those that its description names ({error}); get the file again"
        ) from error
    if tensors:
        raise CheckpointError(f"{path}: {min(tensors)}: a tensor that its description does not name")
    return checkpoint_of_content(header, path=path)


def config_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `config.json` says of a portable checkpoint: all but the tensors and their digests."""
    content = checkpoint_content(checkpoint)
    described = {name: value for name, value in content.items() if not name.endswith("_state_dict")}
    return {**described, "model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}


def _compare_config(path: Path, header: dict[str, Any]) -> None:
    """Refuse weights beside a `config.json` that describes another model than they do.

    Raises:
        CheckpointError: when it differs in a key.
    """
    file = path.with_name(CONFIG)
    if path.name != WEIGHTS or not file.is_file():
        return
    try:
        config = json.loads(file.read_bytes()[:MAX_HEADER_BYTES])
        own = {**header, "model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}
        differing = [key for key in config if key not in own or config[key] != own[key]]
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: no JSON object; export the model again") from error
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{file}: {key} is {shorten(str(config[key]), 100)}, but {path.name} beside it was saved with "
            f"{shorten(str(own.get(key, 'no such key')), 100)}; the two must be of one export: export again"
        )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({path.stat().st_size} bytes; {error}): it is truncated, "
            "damaged or another kind of file; get it again"
        ) from error
    if text is None:
        raise CheckpointError(
            f"{path}: safetensors, but without a description by biofound (metadata {HEADER_KEY!r}); expected "
            "a file that `biofound export` wrote"
        )
    try:
        header = json.loads(text) if len(text) <= MAX_HEADER_BYTES else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its description is damaged, no JSON object; get the file again")
    return tensors, header


def _state(content: dict[str, Any], part: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = content[f"{part}_state_dict"]
    return state
