"""Learning-rate schedules."""

from __future__ import annotations

from math import cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def half_cosine(progress: float) -> float:
    """Half a cosine, from 1 at a progress of 0 to 0 at a progress of 1."""
    return 0.5 * (1 + cos(pi * progress))


def cosine_schedule(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.0
) -> LambdaLR:
    """Linear warm-up, then half a cosine from the full learning rate to 0.

    warmup: share of the steps.
    """
    first = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        return half_cosine((step - first) / (total_steps - first))

    return LambdaLR(optimizer, factor)
