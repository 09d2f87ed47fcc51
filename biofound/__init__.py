"""From unlabelled PPG and ECG recordings to a small pretrained encoder one can trust."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biofound.core.checkpoint import load_checkpoint
    from biofound.core.embed import embed_array
    from biofound.core.inflate import load_pretrained_with_channel_inflate
    from biofound.core.predict import predict_array
    from biofound.core.pretrained import BiofoundEncoder, load_pretrained
    from biofound.onnx_encoder import OnnxEncoder

__version__ = version("biofound")

__all__ = [
    "BiofoundEncoder",
    "OnnxEncoder",
    "__version__",
    "embed_array",
    "load_checkpoint",
    "load_pretrained",
    "load_pretrained_with_channel_inflate",
    "predict_array",
]

_HOMES = {
    "BiofoundEncoder": "biofound.core.pretrained",
    "OnnxEncoder": "biofound.onnx_encoder",
    "embed_array": "biofound.core.embed",
    "load_checkpoint": "biofound.core.checkpoint",
    "load_pretrained": "biofound.core.pretrained",
    "load_pretrained_with_channel_inflate": "biofound.core.inflate",
    "predict_array": "biofound.core.predict",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is first used: the command line must answer at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'biofound' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
