"""Models: a TinyTimeMixer encoder that knows its channels by name, and its reconstruction head.

The mixer blocks are granite-tsfm's (Ekambaram et al. 2024, https://arxiv.org/abs/2401.03955). This is
the only module that imports it: granite's own layouts and names appear nowhere else.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from biofound.core.embedding import ConvolutionalEmbedding
from biofound.core.global_term import RateHead, RhythmHead
from biofound.data.channels import CHANNEL_NAME


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Leave the root logger, which is the user's, as it was: granite calls `logging.basicConfig(INFO)`."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


with _root_logger_kept(), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside granite and transformers, not ours to mend
    from tsfm_public.models.tinytimemixer import TinyTimeMixerConfig, TinyTimeMixerModel

PatchEmbedding = Literal["linear", "convolutional"]

# A channel whose visible samples vary by less than this fraction of their largest value is flat.
_FLAT = 1e-6


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Model configuration: a checkpoint holds it as plain JSON, and it rebuilds the model.

    `context_length` is T and `patch_size` L, in samples; `d_model` is D.
    """

    channels: tuple[str, ...]
    context_length: int
    patch_size: int
    d_model: int
    num_layers: int
    expansion_factor: int
    dropout: float
    patch_embedding: PatchEmbedding = "linear"
    """`linear` maps each patch by itself; `convolutional` adds convolutions over the whole window."""
    rhythm_head: bool = False
    """Whether the decoder also predicts the targets of the global and rhythm terms."""
    rate_head: bool = False
    """Whether the decoder also predicts the log heart rate."""

    def __post_init__(self) -> None:
        """Raises ValueError on channel names or sizes that make no model."""
        bad = [name for name in self.channels if not re.fullmatch(CHANNEL_NAME, name)]
        if bad or not self.channels or len(set(self.channels)) < len(self.channels):
            raise ValueError(
                f"channels must be distinct names of letters, digits and _, got {list(self.channels)}"
            )
        shorter = 1 <= self.patch_size < self.context_length
        if not shorter or self.context_length % self.patch_size:
            raise ValueError(
                f"context length {self.context_length} must be a multiple (2 or more times) of "
                f"patch size {self.patch_size}"
            )

    @property
    def patches(self) -> int:
        """P, the number of patches in a window."""
        return self.context_length // self.patch_size

    def as_json(self) -> dict[str, Any]:
        """Plain JSON for checkpoints."""
        return {**asdict(self), "channels": list(self.channels)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`; a missing or unknown key is a TypeError."""
        return cls(**{**value, "channels": tuple(value["channels"])})


class Normalised(NamedTuple):
    """A window in units of its own visible samples: `x = values * std + mean`."""

    values: Tensor
    """(B, C, T), 0 in gaps."""
    mean: Tensor
    """(B, C, 1), in the input's unit."""
    std: Tensor
    """(B, C, 1), in the input's unit."""


def normalise(x: Tensor, *, visible: Tensor, observed: Tensor) -> Normalised:
    """Remove mean and scale, both taken from visible samples only.

    Args:
        x: (B, C, T), in physical units; what stands in gaps is ignored, NaN included.
        visible: (B, C, T) bool, True where a sample is real and not hidden.
        observed: (B, C, T) bool, True where a sample is real.

    Returns:
        The normalised window. A channel with nothing visible has mean 0 and scale 1; a flat one
        is not blown up: its scale is at least 1e-6 of its largest visible value.
    """
    kept = torch.where(visible, x, 0.0)
    # Dividing by the largest value first keeps squares finite for any finite input.
    peak = kept.abs().amax(-1, keepdim=True)
    peak = torch.where(peak > 0, peak, 1.0)
    count = visible.sum(-1, keepdim=True).clamp(min=1)
    relative = kept / peak
    mean = relative.sum(-1, keepdim=True) / count
    deviation = torch.where(visible, relative - mean, 0.0)
    std = (deviation.square().sum(-1, keepdim=True) / count).sqrt().clamp(min=_FLAT)
    std = torch.where(visible.any(-1, keepdim=True), std, 1.0)
    values = torch.where(observed, (x / peak - mean) / std, 0.0)
    return Normalised(values, mean * peak, std * peak)


def _contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Granite hands its patch mixers a transposed view, whose product takes the bias in a pass of its own."""
    return (inputs[0].contiguous(),)


class Encoded(NamedTuple):
    """Latents of windows, and the scale that they were normalised by."""

    latents: Tensor
    """(B, P, D)."""
    by_channel: Tensor
    """(B, C, P, D), the features that are fused into the latents."""
    normalised: Normalised
    loss_mask: Tensor
    """(B, C, T) bool, True where a sample was hidden by the mask and is real: where the loss counts."""
    whole: Tensor
    """(B, C) bool, True where a channel has no gap."""


class Encoder(nn.Module):
    """Windows in physical units to one latent vector a patch: (B, C, T) -> (B, P, D).

    Each channel is normalised by its visible samples, split into patches, embedded, marked with the
    learned embedding of its *name*, mixed over time by the shared TinyTimeMixer blocks, and fused
    by a projection with one block a channel name. A hidden patch, and one in which nothing was
    observed, is the learned mask token instead: zeros would look like a flat line.

    An absent channel is one of which nothing was observed. It adds the same vector a patch to the latents of
    every window, whatever stands in its row: what its block makes of mask tokens. Training with channel
    dropout learns that vector, and the step from long gaps to none observed is no jump.

    The rows of the input follow `config.channels`. Parameters that belong to a channel are keyed
    by its name, so a checkpoint's tensors find their channel wherever it stands.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = TinyTimeMixerModel(
            TinyTimeMixerConfig(
                context_length=config.context_length,
                patch_length=config.patch_size,
                patch_stride=config.patch_size,
                num_input_channels=len(config.channels),
                d_model=config.d_model,
                num_layers=config.num_layers,
                expansion_factor=config.expansion_factor,
                dropout=config.dropout,
                mode="common_channel",
                gated_attn=False,
                adaptive_patching_levels=0,
                scaling=None,
                use_decoder=False,
            )
        )
        for layer in self.backbone.encoder.mlp_mixer_encoder.mixers:
            layer.patch_mixer.mlp.fc1.register_forward_pre_hook(_contiguous)
        width = config.d_model
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.channel_embedding = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(width) * 0.02) for name in config.channels}
        )
        bound = (len(config.channels) * width) ** -0.5
        self.fusion = nn.ParameterDict(
            {
                name: nn.Parameter(torch.empty(width, width).uniform_(-bound, bound))
                for name in config.channels
            }
        )
        self.fusion_bias = nn.Parameter(torch.zeros(width))
        self.convolutions = (
            ConvolutionalEmbedding(patches=config.patches, patch_size=config.patch_size, d_model=width)
            if config.patch_embedding == "convolutional"
            else None
        )

    def train(self, mode: bool = True) -> Self:
        """Training mode, except that dropout stays off in a frozen backbone."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def forward(self, x: Tensor, mask: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        """The latents (B, P, D) of windows x (B, C, T); see `encode`."""
        return self.encode(x, mask=mask, observed=observed).latents

    def encode(self, x: Tensor, *, mask: Tensor | None = None, observed: Tensor | None = None) -> Encoded:
        """The latents, with the scale of each window.

        Args:
            x: (B, C, T) float32 in physical units, channels as in `config.channels`.
            mask: (B, P) bool, True = hidden; None hides nothing.
            observed: (B, C, T) bool, True = real; None takes every finite sample as real.

        Raises:
            ValueError: when a shape is not the model's.
        """
        x, mask, observed = self._checked(x, mask, observed)
        length = self.config.patch_size
        hidden = mask.repeat_interleave(length, dim=1)[:, None, :]  # (B, 1, T)
        visible = observed & ~hidden
        scaled = normalise(x, visible=visible, observed=observed)
        seen = torch.where(visible, scaled.values, 0.0)
        patches = self.backbone.patching(seen.transpose(1, 2))  # granite: (B, T, C) -> (B, C, P, L)
        embedded = self.backbone.encoder.patcher(patches)  # (B, C, P, D)
        unseen = ~visible.view(*visible.shape[:2], -1, length).any(-1)  # (B, C, P)
        embedded = torch.where(unseen[..., None], self.mask_token.to(embedded.dtype), embedded)
        if self.convolutions is not None:  # a hidden patch learns from them what stands beside it
            embedded = embedded + self.convolutions(seen, visible)
        embedded = embedded + self._stacked(self.channel_embedding)[:, None, :]
        mixed, _ = self.backbone.encoder.mlp_mixer_encoder(embedded)  # (B, C, P, D)
        return Encoded(self._fuse(mixed), mixed, scaled, observed & hidden, observed.all(-1))

    def _fuse(self, mixed: Tensor) -> Tensor:
        # One product a channel, then a sum: a block of zeros then adds exactly nothing, which is
        # what makes inflation exact.
        blocks = self._stacked(self.fusion)  # (C, D, D)
        by_channel = torch.matmul(mixed.transpose(0, 1).flatten(1, 2), blocks)  # (C, B*P, D)
        return (by_channel.sum(0) + self.fusion_bias).view(mixed.shape[0], mixed.shape[2], -1)

    def _stacked(self, by_name: nn.ParameterDict) -> Tensor:
        return torch.stack([by_name[name] for name in self.config.channels])

    def _checked(
        self, x: Tensor, mask: Tensor | None, observed: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        expected = (len(config.channels), config.context_length)
        if x.ndim != 3 or x.shape[1:] != expected:
            raise ValueError(
                f"expected windows of shape (B, {expected[0]}, {expected[1]}) for channels "
                f"{list(config.channels)}, got {tuple(x.shape)}"
            )
        if mask is None:
            mask = torch.zeros(x.shape[0], config.patches, dtype=torch.bool, device=x.device)
        if mask.shape != (x.shape[0], config.patches) or mask.dtype != torch.bool:
            raise ValueError(
                f"expected a bool mask of shape {(x.shape[0], config.patches)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        if observed is None:
            observed = torch.isfinite(x)
        if observed.shape != x.shape or observed.dtype != torch.bool:
            raise ValueError(
                f"expected a bool observed of shape {tuple(x.shape)}, "
                f"got {observed.dtype} {tuple(observed.shape)}"
            )
        return x, mask, observed


class ReconstructionHead1D(nn.Module):
    """The decoder: one linear map from a patch's latent to its samples in every channel.

    With `config.rhythm_head` and `config.rate_head` it also holds the maps to the targets of those terms.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Linear(config.d_model, len(config.channels) * config.patch_size)
        self.rhythm = RhythmHead(config.channels, d_model=config.d_model) if config.rhythm_head else None
        self.rate = RateHead(config.channels, d_model=config.d_model) if config.rate_head else None

    def forward(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, C, T), in normalised units."""
        config = self.config
        patches: Tensor = self.proj(latents)  # (B, P, C*L)
        by_channel = patches.view(len(latents), config.patches, len(config.channels), config.patch_size)
        return by_channel.transpose(1, 2).flatten(2)


class Reconstruction(NamedTuple):
    """A reconstruction beside its target, both in normalised units, and where it counts."""

    values: Tensor
    """(B, C, T)."""
    target: Tensor
    """(B, C, T), 0 in gaps."""
    loss_mask: Tensor
    """(B, C, T) bool."""
    mean: Tensor
    """(B, C, 1)."""
    std: Tensor
    """(B, C, 1)."""
    latents: Tensor
    """(B, P, D)."""
    whole: Tensor
    """(B, C) bool, True where a channel has no gap."""
    rhythm: Tensor | None
    """(2, B, C, S + I), the prediction of `RhythmHead`, where there is one."""
    rate: Tensor | None
    """(2, B, C), the prediction of `RateHead`, where there is one."""

    def in_physical_units(self) -> Tensor:
        """The reconstruction (B, C, T) in the units of the input."""
        return self.values.float() * self.std + self.mean


class PretrainingModel(nn.Module):
    """Encoder and decoder: windows with some patches hidden, to a reconstruction of all of them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = ReconstructionHead1D(config)

    def forward(self, x: Tensor, mask: Tensor, observed: Tensor | None = None) -> Reconstruction:
        """Reconstruct x (B, C, T) from the patches that mask (B, P) leaves visible; see `Encoder.encode`."""
        encoded = self.encoder.encode(x, mask=mask, observed=observed)
        scaled = encoded.normalised
        values = self.decoder(encoded.latents)
        rhythm, rate = self.decoder.rhythm, self.decoder.rate
        return Reconstruction(
            values=values,
            target=scaled.values,
            loss_mask=encoded.loss_mask,
            mean=scaled.mean,
            std=scaled.std,
            latents=encoded.latents,
            whole=encoded.whole,
            rhythm=None if rhythm is None else rhythm(encoded.latents, encoded.by_channel),
            rate=None if rate is None else rate(encoded.latents, encoded.by_channel),
        )


def parameter_count(module: nn.Module) -> int:
    """The number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def build_model(config: ModelConfig, *, seed: int) -> PretrainingModel:
    """A new model whose initial weights depend only on the seed; the global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PretrainingModel(config)


def channel_rows(config: ModelConfig, name: str) -> slice:
    """The rows of `ReconstructionHead1D.proj` that reconstruct channel `name`."""
    first = config.channels.index(name) * config.patch_size
    return slice(first, first + config.patch_size)
