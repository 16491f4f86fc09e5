"""How step sizes and averages go over a training, of the default and of metanets.

Steps are numbers, arrays of them or tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def at_most(value: Any, high: float) -> Any:
    is_many = isinstance(value, Tensor | np.ndarray)
    return value.clip(max=high) if is_many else min(value, high)


def with_horizon(
    age: Any, now: Any, total_steps: int, warmup: float, cooldown: float = 1.0
) -> Any:
    """Linear warm-up over a share of all steps, and a linear way to zero over the last.

    age: updates of the parameter before this one. now: steps of the training before
    this one. Past the horizon it stays at its last, small value.
    """
    rising = at_most((age + 1) / max(warmup * total_steps, 1), 1.0)
    left = 1 - at_most(now + 1, total_steps) / (total_steps + 1)
    return rising * at_most(left / cooldown, 1.0)


def without_horizon(age: Any, now: Any, warmup: int, constant: int) -> Any:
    """Linear warm-up over `warmup` steps, then the inverse square root of time.

    For about `constant` steps it stays near its greatest value. The step size never
    decays to zero, so the averaged weights (`average_weight`) are the ones to evaluate.
    """
    return at_most((age + 1) / warmup, 1.0) / (1 + now / constant) ** 0.5


def average_weight(age: Any, power: float) -> Any:
    """Weight of the newest in the polynomial average of all weights so far.

    The average is over about the last 1 / (1 + power) of the training, however long
    that gets (Shamir & Zhang 2013).
    """
    return (power + 1) / (age + power + 1)


def steps_so_far(counts: Iterable[Tensor], total_steps: int | None) -> int | Tensor:
    """Steps of the training: the largest of some counts on the host.

    Warns at the first step past the horizon. In a compiled step: a tensor (), float64.
    """
    if torch.compiler.is_compiling():
        now = torch.stack(list(counts)).double().max()
        return now if total_steps is None else _watched(now, total_steps)
    now = max(map(int, counts))
    warn_past_horizon(now, total_steps)
    return now


def warn_past_horizon(now: int, total_steps: int | None) -> None:
    """Says once that a training goes past its horizon. now: steps before this one."""
    if now == total_steps:
        warnings.warn(
            f"NGOptimizer: step {now + 1} of total_steps={now}: the step size stays "
            "near zero from here on",
            stacklevel=2,
        )


@torch.library.custom_op("ngopt::watched", mutates_args=())
def _watched(now: Tensor, total_steps: int) -> Tensor:
    """The number as it is: an operator, so that a compiled step may still warn."""
    warn_past_horizon(int(now), total_steps)
    return now.clone()


@_watched.register_fake
def _(now: Tensor, total_steps: int) -> Tensor:
    return torch.empty_like(now)
