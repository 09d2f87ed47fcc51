"""What moves the weights: AdamW, and the one vector that holds every gradient."""

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


def flat_grad_buffer(model: nn.Module) -> Tensor:
    """One vector of which every trainable parameter's `.grad` is a part.

    Backward passes add into it, so it is zeroed, summed over processes, measured and scaled as a whole.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = torch.zeros(sum(p.numel() for p in trainable), device=trainable[0].device)
    for parameter, part in zip(trainable, torch.split(flat, [p.numel() for p in trainable]), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat
