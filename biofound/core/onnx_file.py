"""ONNX export: the encoder with its normalisation, NaN as gaps, any number of windows at once.

Outputs: `latents` (B, P, D), and `vectors` (B, F), the read-out that `biofound embed` gives by default.
Compared with torch through onnxruntime before the file is there.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from biofound.core.checkpoint import Checkpoint
from biofound.core.readout import READOUTS, Activations
from biofound.core.readout_names import DEFAULT_READOUT
from biofound.core.safetensors_file import config_json
from biofound.errors import CheckpointError
from biofound.files import write_atomically
from biofound.onnx_encoder import DIGEST_KEY, INPUT, METADATA_KEY, OPSET, OUTPUTS, OnnxEncoder, digest_of

TOLERANCE = 1e-4
"""The largest difference from torch that is accepted, as a part of the largest value."""
_BATCHES = (1, 2, 5)


class _ExportedEncoder(nn.Module):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.encoder = checkpoint.build().encoder
        self.eval()

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.encoder.encode(windows)
        activations = Activations(latents=encoded.latents, layers=[encoded.by_channel])
        return encoded.latents, READOUTS[DEFAULT_READOUT](activations)


def save_onnx(path: Path, shared: Checkpoint) -> float:
    """Write a portable checkpoint to `path`, whole and only when onnxruntime gives what torch gives.

    Returns:
        The largest difference found, as a part of the largest value.

    Raises:
        CheckpointError: when the model cannot be exported, or the difference is above `TOLERANCE`.
        OSError: when the disk refuses.
    """
    model = _ExportedEncoder(shared)
    config = {**config_json(shared), "readout": DEFAULT_READOUT}
    content = _exported(model, shared, metadata=json.dumps(config))
    found = max(_difference(content, model, windows) for windows in _windows(shared))
    if not found <= TOLERANCE:
        raise CheckpointError(
            f"{path}: onnxruntime and torch differ by {found:.1e} of the largest value, expected at most "
            f"{TOLERANCE:g}; nothing was written"
        )
    write_atomically(path, lambda file: file.write(content))
    return found


def _exported(model: nn.Module, checkpoint: Checkpoint, *, metadata: str) -> bytes:
    example = torch.from_numpy(next(_windows(checkpoint, batches=(3,))))
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: "batch"},),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert program is not None  # dynamo=True gives a program
    model_proto = program.model_proto
    for key, value in ((METADATA_KEY, metadata), (DIGEST_KEY, digest_of(model_proto, metadata))):
        model_proto.metadata_props.add(key=key, value=value)
    content: bytes = model_proto.SerializeToString()
    return content


def _windows(checkpoint: Checkpoint, *, batches: tuple[int, ...] = _BATCHES) -> Iterator[NDArray[np.float32]]:
    """Windows (B, C, T) to compare on: noise, a gap, a channel that is absent, a flat one."""
    model = checkpoint.model
    draw = np.random.default_rng(0)
    for batch in batches:
        x = draw.standard_normal((batch, len(model.channels), model.context_length)).astype(np.float32)
        x *= np.float32(10.0) ** draw.integers(-3, 4, (batch, len(model.channels), 1)).astype(np.float32)
        x[0, 0, model.patch_size // 2 : 3 * model.patch_size] = np.nan
        x[-1, -1] = 3.0 if batch % 2 else np.nan
        yield x


def _difference(content: bytes, model: nn.Module, windows: NDArray[np.float32]) -> float:
    with torch.no_grad():
        wanted = [tensor.numpy() for tensor in model(torch.from_numpy(windows))]
    got = OnnxEncoder(content).run(windows)
    largest = [
        float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for ours, theirs in zip(got, wanted, strict=True)
    ]
    return float("inf") if not np.isfinite(largest).all() else max(largest)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about itself: operators of torchvision, and its own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
