"""Schedules of step sizes and of averaged weights, for the default and for metanets,
and of the learning rates of other optimizers.

Numbers of steps are Python numbers, arrays or tensors.
"""

from collections.abc import Iterable
from math import cos, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ngopt.user_warnings import warn

SPARE_STEPS = 1  # past the horizon: loops that count from 0 to max_steps make one more


def at_most(value: Any, high: float) -> Any:
    is_many = isinstance(value, Tensor | np.ndarray)
    return value.clip(max=high) if is_many else min(value, high)


def with_horizon(
    age: Any, now: Any, total_steps: int, warmup: float, cooldown: float = 1.0
) -> Any:
    """Linear warm-up, constant, linear decay to zero; at most 1.

    age: updates of the parameter before this one. now: steps of the training before
    this one. warmup, cooldown: shares of `total_steps`. Past the horizon it stays at
    its last, small value.
    """
    rising = at_most((age + 1) / max(warmup * total_steps, 1), 1.0)
    left = 1 - at_most(now + 1, total_steps) / (total_steps + 1)
    return rising * at_most(left / cooldown, 1.0)


def without_horizon(age: Any, now: Any, warmup: int, constant: int) -> Any:
    """Linear warm-up over `warmup` steps, then inverse square root decay.

    It stays near 1 for about `constant` steps. The step size never decays to zero, so
    evaluate the averaged weights (`average_weight`).
    """
    rising = at_most((age + 1) / warmup, 1.0)
    return rising / (1 + now / constant) ** 0.5


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
        return half_cosine((step - first) / max(total_steps - first, 1))

    return LambdaLR(optimizer, factor)


def average_weight(age: Any, power: float) -> Any:
    """Weight of the new values in a polynomial average (Shamir & Zhang 2013).

    The average covers about the last 1 / (1 + power) of the training so far.
    """
    return (power + 1) / (age + power + 1)


def steps_so_far(counts: Iterable[Tensor], total_steps: int | None) -> int | Tensor:
    """Steps of the training before this one: the largest of some counts on the host.

    Warns past the horizon. In a compiled step: a tensor (), float64.
    """
    if torch.compiler.is_dynamo_compiling():
        now = torch.stack(list(counts)).double().max()
        return now if total_steps is None else _with_warning(now, total_steps)
    now = max(map(int, counts))
    warn_past_horizon(now, total_steps)
    return now


def warn_past_horizon(now: int, total_steps: int | None) -> None:
    """Warns at the first step past the horizon, but for `SPARE_STEPS`.

    now: steps before this one.
    """
    if total_steps is not None and now == total_steps + SPARE_STEPS:
        warn(
            f"step {now + 1} exceeds total_steps={total_steps}; the step size stays at "
            "its last value, near zero for long runs. total_steps is the number of "
            "calls of step(), not of epochs."
        )


@torch.library.custom_op("ngopt::watched", mutates_args=())
def _with_warning(now: Tensor, total_steps: int) -> Tensor:
    """Returns `now`; an operator, so that a compiled step can warn, too."""
    warn_past_horizon(int(now), total_steps)
    return now.clone()


@_with_warning.register_fake
def _(now: Tensor, total_steps: int) -> Tensor:
    return torch.empty_like(now)
