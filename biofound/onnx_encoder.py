"""Exported encoders without torch: an ONNX file of `biofound export`, through onnxruntime.

encoder = OnnxEncoder("encoder.onnx")
windows = encoder.preprocess(x, sfreq=250)
vectors = encoder.embed(windows.x)
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from biofound.data.description import data_of_content
from biofound.data.model_input import PreparedWindows, prepare_array
from biofound.errors import CheckpointError, SettingsError

INPUT, OUTPUTS = "windows", ("latents", "vectors")
METADATA_KEY, DIGEST_KEY = "biofound", "biofound_sha256"
"""The keys of the description, and of the digest of description and graph, in the file's metadata."""
OPSET = 18


class OnnxEncoder:
    """An encoder in an ONNX file: windows (B, C, T) float32, NaN in gaps, to latents and vectors.

    Args:
        path: the file, or its content.

    Raises:
        SettingsError: when onnxruntime is not installed.
        CheckpointError: when the file cannot be read, is of another opset, or none of `biofound export`.
    """

    def __init__(self, path: str | Path | bytes) -> None:
        require_onnx(("onnx", "onnxruntime"))
        import onnx
        import onnxruntime

        name = "the exported model" if isinstance(path, bytes) else str(path)
        try:
            content = path if isinstance(path, bytes) else Path(path).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{name}: cannot be read ({error.strerror})") from error
        try:
            model = onnx.load_model_from_string(content)
            opsets = {entry.domain: entry.version for entry in model.opset_import}
            metadata = {entry.key: entry.value for entry in model.metadata_props}
            said = metadata.get(METADATA_KEY)
            self.config: dict[str, Any] = json.loads(said) if said else {}
        except Exception as error:  # protobuf has no exception family of its own
            raise CheckpointError(
                f"{name}: cannot be read as ONNX; it is damaged or another kind of file"
            ) from error
        if opsets.get("") != OPSET:
            raise CheckpointError(
                f"{name}: is of ONNX opset {opsets.get('')}, expected {OPSET}; export the checkpoint again "
                "with this version of biofound"
            )
        if not self.config:
            raise CheckpointError(
                f"{name}: ONNX without a description by biofound (metadata {METADATA_KEY!r}); expected a "
                "file that `biofound export --to onnx` wrote"
            )
        if metadata.get(DIGEST_KEY) != digest_of(model, said or ""):
            raise CheckpointError(
                f"{name}: damaged, its graph, weights or description are not those that were exported "
                "(SHA-256); get the file again"
            )
        try:
            self._session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        except Exception as error:  # neither has onnxruntime
            raise CheckpointError(f"{name}: onnxruntime cannot run it: {error}") from error

    @property
    def channels(self) -> tuple[str, ...]:
        """The C channel names, in the order of the input."""
        return tuple(self.config["channels"])

    def preprocess(
        self, x: ArrayLike, *, sfreq: float, channels: Sequence[str] | None = None, gate: bool = True
    ) -> PreparedWindows:
        """Filter and resample a recording as the training's were; see `BiofoundEncoder.preprocess`."""
        config = self.config
        return prepare_array(
            x,
            sfreq=sfreq,
            names=channels,
            channels=self.channels,
            window_samples=config["model"]["context_length"],
            data=data_of_content(config),
            settings=config["settings"],
            gate=gate,
        )

    def embed(self, x: ArrayLike, *, batch_size: int = 64) -> NDArray[np.float32]:
        """One vector a window (N, F) of windows x (N, C, T), by the default read-out of `biofound embed`."""
        windows = np.asarray(x, np.float32)
        pieces = [
            self.run(windows[start : start + batch_size])[1] for start in range(0, len(windows), batch_size)
        ]
        if not pieces:
            raise ValueError("expected windows (N, C, T), got none")
        return np.concatenate(pieces)

    def run(self, windows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Latents (B, P, D) and vectors (B, F) of windows (B, C, T).

        Raises:
            ValueError: when the shape is not the model's.
        """
        expected = (len(self.channels), self.config["model"]["context_length"])
        if windows.ndim != 3 or windows.shape[1:] != expected:
            raise ValueError(
                f"expected windows of shape (B, {expected[0]}, {expected[1]}) for channels "
                f"{list(self.channels)}, got {windows.shape}"
            )
        latents, vectors = self._session.run(list(OUTPUTS), {INPUT: windows})
        return latents, vectors


def digest_of(model: Any, description: str) -> str:
    """The SHA-256 of an ONNX model's graph with its weights, and of its description."""
    digest = hashlib.sha256(model.graph.SerializeToString(deterministic=True))
    digest.update(description.encode())
    return digest.hexdigest()


def require_onnx(packages: Sequence[str]) -> None:
    """Refuse where packages of the extra are missing.

    Raises:
        SettingsError: which says what to install.
    """
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise SettingsError(
            f"onnx: {', '.join(absent)} not installed; install biofound[onnx], or export to safetensors"
        )
