"""How the step size changes over a training.

Steps are numbers, or tensors of them in a compiled step.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ngopt.base.arrays import at_most


def with_horizon(
    step: Any, now: Any, total_steps: int, warmup: float, cooldown: float = 1.0
) -> Any:
    """Linear warm-up over a share of all steps, times a linear way to zero over the last share.

    step: updates of the parameter before this one. now: steps of the training before this one.
    Past the horizon it stays at its last, small value.
    """
    rising = at_most((step + 1) / max(warmup * total_steps, 1), 1.0)
    position = at_most(now + 1, total_steps)
    return rising * at_most((1 - position / (total_steps + 1)) / cooldown, 1.0)


def warn_past_horizon(now: int, total_steps: int | None) -> None:
    """Says once that a training goes on past its horizon. now: steps before this one."""
    if now == total_steps:
        warnings.warn(
            f"NGOptimizer: step {now + 1} of total_steps={now}: the step size stays near zero from "
            f"here on",
            stacklevel=2,
        )


def steps_so_far(
    counts: Sequence[Any], total_steps: int | None
) -> int | Tensor:
    """Of the training: the largest of some counts. Says what `warn_past_horizon` says.

    In a compiled step the counts are tensors, and it is a tensor (), float64, on the host.
    """
    if torch.compiler.is_compiling():
        now = torch.stack(list(counts)).double().max()
        return now if total_steps is None else _watched(now, total_steps)
    now = max(map(int, counts))
    warn_past_horizon(now, total_steps)
    return now


@torch.library.custom_op("ngopt::watched", mutates_args=())
def _watched(now: Tensor, total_steps: int) -> Tensor:
    """The number as it is: an operator, so that a compiled step may still warn."""
    warn_past_horizon(int(now), total_steps)
    return now.clone()


@_watched.register_fake
def _(now: Tensor, total_steps: int) -> Tensor:
    return torch.empty_like(now)


def without_horizon(step: Any, now: Any, warmup: int, constant: int) -> Any:
    """Linear warm-up over `warmup` steps, then the inverse square root of time.

    For about `constant` steps it stays near its greatest value. To be used with averages of the
    weights (`average_weight`), which do what a way to zero does otherwise.
    """
    rising = at_most((step + 1) / warmup, 1.0)
    return rising / (1 + now / constant) ** 0.5


def average_weight(step: Any, power: float) -> Any:
    """Weight of the newest in the polynomial average of all weights so far.

    The average is over about the last 1 / (1 + power) of the training, however long that gets
    (Shamir & Zhang 2013).
    """
    return (power + 1) / (step + power + 1)
