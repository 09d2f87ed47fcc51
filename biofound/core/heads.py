"""Task heads: from an encoder's latents (B, P, D) to one output vector a window, (B, K)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

HeadKind = Literal["linear", "mlp", "attention"]
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)


class MeanStdPool(nn.Module):
    """Mean and standard deviation over the P patches, each row brought to mean 0 and variance 1."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * d_model)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, 2 D)."""
        # The 1e-6 keeps the gradient of a standard deviation of 0 finite.
        std = (latents.var(1, correction=0) + 1e-6).sqrt()
        pooled: Tensor = self.norm(torch.cat([latents.mean(1), std], dim=-1))
        return pooled


class AttentionPool(nn.Module):
    """A weighted mean of the P patches, with learned weights (Ilse et al. 2018).

    https://arxiv.org/abs/1802.04712, equation 8: the weight of a patch is softmax over w · tanh(V h).
    """

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.inner, self.score = nn.Linear(d_model, hidden), nn.Linear(hidden, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, P, D) -> (B, D)."""
        h = self.norm(latents)
        weights = self.score(torch.tanh(self.inner(h))).softmax(1)  # (B, P, 1)
        pooled: Tensor = (weights * h).sum(1)
        return pooled


def split_linear_head(head: nn.Sequential) -> tuple[nn.Module, nn.Linear]:
    """The pooling and the linear map of a `linear` head; between them stands dropout alone."""
    pool, _, linear = head
    assert isinstance(linear, nn.Linear)
    return pool, linear


def build_head(kind: HeadKind, *, d_model: int, outputs: int, hidden: int, dropout: float) -> nn.Sequential:
    """A head (B, P, D) -> (B, K).

    Args:
        kind: `linear`, one linear map of mean and standard deviation over the patches; `mlp`, a hidden layer
            before it; `attention`, a linear map of a learned weighted mean of the patches.
        d_model: D.
        outputs: K.
        hidden: width of the hidden layer of `mlp`, and of the scores of `attention`.
        dropout: on what the last linear map takes.
    """
    if kind == "linear":
        layers: list[nn.Module] = [MeanStdPool(d_model)]
        width = 2 * d_model
    elif kind == "mlp":
        layers = [MeanStdPool(d_model), nn.Linear(2 * d_model, hidden), nn.GELU()]
        width = hidden
    else:
        layers = [AttentionPool(d_model, hidden)]
        width = d_model
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, outputs))
