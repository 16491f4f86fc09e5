"""How the step size changes over a training."""

from __future__ import annotations

import math
import warnings


def with_horizon(step: int, now: int, total_steps: int, warmup: float, cooldown: float = 1.0) -> float:
    """Linear warm-up over a share of all steps, times a linear way to zero over the last share.

    step: updates of the parameter before this one. now: steps of the training before this one.
    Past the horizon it stays at its last, small value.
    """
    rising = min(1.0, (step + 1) / max(warmup * total_steps, 1))
    position = min(now + 1, total_steps)
    return rising * min(1.0, (1 - position / (total_steps + 1)) / cooldown)


def warn_past_horizon(now: int, total_steps: int | None) -> None:
    """Says once that a training goes on past its horizon. now: steps before this one."""
    if now == total_steps:
        warnings.warn(
            f"NGOptimizer: step {now + 1} of total_steps={now}: the step size stays near zero from here on",
            stacklevel=4,
        )


def without_horizon(step: int, now: int, warmup: int, constant: int) -> float:
    """Linear warm-up over `warmup` steps, then the inverse square root of time.

    For about `constant` steps it stays near its greatest value. To be used with averages of the
    weights (`average_weight`), which do what a way to zero does otherwise.
    """
    rising = min(1.0, (step + 1) / warmup)
    return rising / math.sqrt(1 + now / constant)


def average_weight(step: int, power: float) -> float:
    """Weight of the newest in the polynomial average of all weights so far.

    The average is over about the last 1 / (1 + power) of the training, however long that gets
    (Shamir & Zhang 2013).
    """
    return (power + 1) / (step + power + 1)
