"""Read-outs of a frozen encoder: how its activations become one feature vector a window, (B, C, T) -> (B, F).

A read-out has a name in `READOUTS`: where the activations are taken (`latents`, the fused output;
`channels`, the last mixer layer before the fusion, each channel by itself; `layers`, that of every layer and
of the patch embedding below them) and how the P patches are pooled (`mean`; `mean_std`, mean and standard
deviation).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from biofound.core.models import Encoder
from biofound.core.readout_names import DEFAULT_BATCH_SIZE, DEFAULT_READOUT


class WindowReader(Protocol):
    """N windows that are read by batch, such as a store's."""

    def __len__(self) -> int:
        """N."""
        ...

    def read(self, index: NDArray[np.int64], /) -> NDArray[np.float32]:
        """A batch (B, C, T) of the windows `index` (B,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What a frozen encoder computes of B windows on its way."""

    latents: Tensor
    """(B, P, D), the output."""
    layers: Sequence[Tensor]
    """(B, C, P, D) each: the embedded patches, then the output of every mixer layer."""


Readout = Callable[[Activations], Tensor]
"""From activations to features (B, F)."""


def _mean(x: Tensor) -> Tensor:
    return x.mean(-2).flatten(1)  # (B, ..., P, D) -> (B, F)


def _mean_std(x: Tensor) -> Tensor:
    return torch.cat([x.mean(-2), x.std(-2, correction=0)], dim=-1).flatten(1)


def _of_latents(activations: Activations, pool: Callable[[Tensor], Tensor]) -> Tensor:
    return pool(activations.latents)


def _of_channels(activations: Activations, pool: Callable[[Tensor], Tensor]) -> Tensor:
    return pool(activations.layers[-1])


def _of_layers(activations: Activations, pool: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([pool(layer) for layer in activations.layers], dim=1)


READOUTS: Mapping[str, Readout] = {
    place + name: partial(read, pool=pool)
    for place, read in (("", _of_latents), ("channels_", _of_channels), ("layers_", _of_layers))
    for name, pool in (("mean", _mean), ("mean_std", _mean_std))
}
"""The read-outs by name."""


def batch_features(
    windows: NDArray[Any] | WindowReader,
    function: Callable[[NDArray[np.float32]], NDArray[Any]],
    *,
    batch_size: int,
    what: str,
) -> NDArray[np.float32]:
    """Features (N, F) of N windows, computed by batch so that memory does not grow with N.

    Args:
        windows: (N, C, T), or something that reads them by batch.
        function: (B, C, T) float32 -> (B, F).
        batch_size: B.
        what: the name of the function, for messages.

    Raises:
        ValueError: when there are no windows, or what comes back is not (B, F) of finite numbers.
    """
    if not len(windows):
        raise ValueError(f"{what}: expected windows, got none")
    out: NDArray[np.float32] | None = None
    for start in range(0, len(windows), batch_size):
        index = np.arange(start, min(start + batch_size, len(windows)))
        batch = windows[index] if isinstance(windows, np.ndarray) else windows.read(index)
        features = np.asarray(function(np.ascontiguousarray(batch, dtype=np.float32)))
        if out is None:
            out = np.empty((len(windows), *features.shape[1:]), np.float32)
        if features.ndim != 2 or features.shape != (len(index), *out.shape[1:]):
            raise ValueError(
                f"{what}: expected features of shape ({len(index)}, F), the same F for every batch, for "
                f"windows of shape {batch.shape}; got shape {features.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError(
                f"{what}: expected finite features, got NaN or infinity for windows {index[0]} on"
            )
        out[index] = features
    assert out is not None  # there are windows
    return out


@torch.no_grad()
def embed_windows(
    encoder: Encoder,
    windows: NDArray[Any] | WindowReader,
    *,
    readout: str | Readout = DEFAULT_READOUT,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> NDArray[np.float32]:
    """Features (N, F) of N windows (N, C, T) from a frozen encoder: eval mode, no gradient, by batch.

    Args:
        encoder: on any device; its mode is as before afterwards.
        windows: channels as in `encoder.config.channels`, physical units, NaN in gaps.
        readout: a name in `READOUTS`, or a function of the activations (to read a pretraining head, say).
        batch_size: B.

    Raises:
        ValueError: when the read-out is unknown or the windows are not of the model's shape.
    """
    read = find_readout(readout) if isinstance(readout, str) else readout
    device = next(encoder.parameters()).device

    def features(batch: NDArray[np.float32]) -> NDArray[Any]:
        x = torch.from_numpy(batch).to(device)
        return read(capture(encoder, x)).float().cpu().numpy()

    with _eval_mode(encoder):
        return batch_features(windows, features, batch_size=batch_size, what=f"read-out {readout}")


def find_readout(name: str) -> Readout:
    """The read-out of that name.

    Raises:
        ValueError: when there is none.
    """
    if name not in READOUTS:
        raise ValueError(f"expected a read-out among {', '.join(READOUTS)}; got {name!r}")
    return READOUTS[name]


@torch.no_grad()
def capture(encoder: Encoder, x: Tensor) -> Activations:
    """The activations of windows x (B, C, T), without gradient."""
    layers: list[Tensor] = []
    mixers = encoder.backbone.encoder.mlp_mixer_encoder.mixers
    hooks = [mixers[0].register_forward_pre_hook(lambda _, inputs: layers.append(inputs[0]))]
    hooks += [mixer.register_forward_hook(lambda *call: layers.append(call[2])) for mixer in mixers]
    try:
        latents = encoder(x)
    finally:
        for hook in hooks:
            hook.remove()
    return Activations(latents=latents, layers=layers)


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
