"""Torch archives that describe themselves: written whole, read with `weights_only=True`, checked by digests.

torch does not check the CRC of its archives, so a damaged weight would load without a word. A file holds a
digest of every tensor and one of all other values, which reading compares.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from biofound.errors import CheckpointError
from biofound.files import require_checkpoint_file, write_atomically


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write `path` with the digests of its content, whole or not at all (temporary name, fsync, rename)."""
    buffer = BytesIO()  # torch.save into a file makes a RuntimeError of what the disk says
    torch.save(with_digests(content), buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def with_digests(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint's file, with the digests of all that it holds now."""
    digests = {name: _sha256_of_tensor(tensor) for name, tensor in _leaves(content)}
    whole = {**content, "tensor_sha256": digests}
    return {**whole, "values_sha256": _sha256_of_values(whole)}


def read_content(path: Path, *, kind: str, what: str, example: str) -> dict[str, Any]:
    """The content of a file, onto the CPU, not yet checked.

    Args:
        path: the file.
        kind: its `kind`.
        what: what a file of that kind is called.
        example: which file is one.

    Raises:
        CheckpointError: when it is missing, cannot be read, or is of another kind.
    """
    require_checkpoint_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about untrusted pickles, which are refused just below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch raises whatever its parsers stumble over
        # torch's own message is left out: for a refused pickle it tells how to run the code in it.
        raise CheckpointError(
            f"{path}: cannot be read as a {what} ({path.stat().st_size} bytes): it is truncated, damaged "
            "or another kind of file; use another checkpoint of the run"
        ) from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise CheckpointError(
            f"{path}: a torch file, but not a biofound {what} (its 'kind' should be {kind!r}); "
            f"expected one such as {example}"
        )
    return content


def require_format(path: Path, content: Mapping[str, Any], *, known: int, what: str) -> None:
    """Refuse another format version than `known`.

    Raises:
        CheckpointError: which names both.
    """
    found = content.get("format_version")
    if found != known:
        raise CheckpointError(
            f"{path}: {what} format {found!r}, but biofound {version('biofound')} reads format {known}; "
            "another version of biofound wrote it: use that version, or train again"
        )


def find_fault(content: Mapping[str, Any], *, states: Sequence[str]) -> str | None:
    """What is wrong with the tensors and values of a file's content, in words; None where nothing is.

    `states` are the keys of its state dictionaries, which hold nothing but float32.
    """
    for part in states:
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


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a state dictionary: names, dtypes, shapes and bytes, whatever file they are in."""
    digests = {name: _sha256_of_tensor(tensor) for name, tensor in state.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


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


@contextmanager
def making_described_model() -> Iterator[None]:
    """Within, a model is made that a file describes.

    Raises:
        CheckpointError: when there can be none of that description.
    """
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        reason = shorten(str(error), 200)
        raise CheckpointError(f"the model that it describes cannot be made: {reason}") from error


def load_exactly(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dictionary of just the module's names and shapes.

    Raises:
        CheckpointError: when a tensor is missing, left over or of another shape.
    """
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
