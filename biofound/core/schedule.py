"""How the learning rate moves: linear warm-up, then a cosine to zero, by optimizer step.

Loshchilov & Hutter 2017, "SGDR", https://arxiv.org/abs/1608.03983 (one cycle, no restart).
"""

import math


def learning_rate(step: int, *, base: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    Warm-up gives `base * (step + 1) / warmup_steps`, so it is never 0 and reaches `base` at its last
    step; the cosine then falls from `base` to almost 0 at step `total_steps - 1`.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
