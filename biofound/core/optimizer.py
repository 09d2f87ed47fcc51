"""Optimizer: AdamW, its learning rate schedule, and the one vector that holds every gradient."""

import math

import torch
from torch import Tensor, nn


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) over the trainable parameters.

    Weight decay acts on matrices only: biases, norms and embeddings are vectors and are left alone.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), fused=True)


def learning_rate(step: int, *, base: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0: linear warm-up, then a cosine to zero.

    Warm-up gives `base * (step + 1) / warmup_steps`, so it is never 0 and reaches `base` at its last step;
    the cosine (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, one cycle, no restart) then falls
    from `base` to almost 0 at step `total_steps - 1`.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def flat_grad_buffer(model: nn.Module) -> Tensor:
    """One vector of which every trainable parameter's `.grad` is a part.

    Backward passes add into it, so it is zeroed, summed over processes, measured and scaled as a whole.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = torch.zeros(sum(p.numel() for p in trainable), device=trainable[0].device)
    for parameter, part in zip(trainable, torch.split(flat, [p.numel() for p in trainable]), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat
