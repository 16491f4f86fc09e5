"""What estimators have in common: their interface, and weights of each optimizee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from meta_train.training.rules import (
    WeightedRule,
    along,
    asks_for_step,
    trained_metanet,
)
from meta_train.training.unroll import Inner, Optimizee, Optimizees
from ngopt.functional import UpdateRule
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


class Estimate(NamedTuple):
    """What a truncation says; `count` is that of the optimizees.

    meta_gradient: (*count, meta-parameters). meta_loss: what it is the gradient of,
    (*count).
    inner_loss: the optimizee's training loss, a mean over the truncation, (*count).
    """

    meta_gradient: Tensor
    meta_loss: Tensor
    inner_loss: Tensor


class Estimator(Protocol):
    def start(self, optimizee: Optimizee, learned: LearnedOptimizer) -> Any:
        """The state of an inner training before its first step: a pytree of tensors."""
        ...

    def estimate(
        self, optimizee: Optimizees, learned: LearnedOptimizer, state: Any, steps: int
    ) -> tuple[Estimate, Any]:
        """Unrolls by a number of steps: meta-gradient and meta-loss, and the state
        after them."""
        ...


def detached(inner: Inner) -> Inner:
    """The same without what autograd knows of it."""
    params, buffers, state, step = inner
    records = [
        {key: value.detach() for key, value in record.items()} for record in state
    ]
    return Inner(
        [p.detach() for p in params],
        {k: b.detach() for k, b in buffers.items()},
        records,
        step,
    )


def leaves(optimizee: Optimizees, learned: LearnedOptimizer) -> list[Tensor]:
    """The weights of the metanet, for each optimizee its own, (*count, *shape), to
    differentiate by."""
    parameters = trained_metanet(learned).parameters()
    found = [
        p.detach().expand((*optimizee.count, *p.shape)).clone() for p in parameters
    ]
    return [weight.requires_grad_() for weight in found]


def weighted(
    bound: UpdateRule,
    optimizee: Optimizees,
    learned: LearnedOptimizer,
    weights: Sequence[Tensor],
) -> WeightedRule:
    """A rule with the weights of each optimizee."""
    return WeightedRule(
        bound,
        trained_metanet(learned),
        weights,
        optimizee.count,
        asks_for_step(learned),
    )


def times(number: Tensor | float, value: Tensor) -> Tensor:
    """Values (*count, *shape) times a number, or one of each optimizee (*count)."""
    if not isinstance(number, Tensor):
        return value if number == 1 else number * value
    return along(number, value).to(value) * value


def tail_length(steps: int, tail: float) -> int:
    """Number of losses at the end of a truncation that make up the meta-loss."""
    return max(1, round(tail * steps))
