"""The interface of estimators, and functions that they share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from meta_train.training.rules import WeightedRule, depends_on_step
from meta_train.training.unroll import Inner, Optimizees, unroll
from ngopt.functional import BoundRule
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


class Estimate(NamedTuple):
    """The estimate of a truncation.

    meta_gradient: of the meta-loss, (*count, meta-parameters).
    meta_loss: (*count).
    inner_loss: mean training loss of the truncation, (*count).
    """

    meta_gradient: Tensor
    meta_loss: Tensor
    inner_loss: Tensor


def detached(inner: Inner) -> Inner:
    """The state without its autograd graph."""
    return tree_map_only(Tensor, Tensor.detach, inner)


def differentiable(
    optimizee: Optimizees, learned: LearnedOptimizer, total_steps: int | None = None
) -> tuple[list[Tensor], WeightedRule]:
    """A copy of the metanet's weights for each optimizee, (*count, *shape), that
    requires grad, and the rule with these weights."""
    weights = []
    for p in learned.metanet.parameters():
        copies = p.detach().expand((*optimizee.count, *p.shape)).clone()
        weights.append(copies.requires_grad_())
    bound = learned.bind(optimizee.graph, total_steps)
    return weights, weighted(bound, optimizee, learned, weights)


def weighted(
    bound: BoundRule,
    optimizee: Optimizees,
    learned: LearnedOptimizer,
    weights: Sequence[Tensor],
) -> WeightedRule:
    """The rule with separate weights for each optimizee."""
    return WeightedRule(
        bound, learned.metanet, weights, optimizee.count, depends_on_step(learned)
    )


def losses_after(
    optimizee: Optimizees,
    inner: Inner,
    rule: BoundRule,
    steps: int,
    create_graph: bool = False,
) -> tuple[Inner, Tensor]:
    """`unroll` with the losses after each update."""
    inner, losses = unroll(optimizee, inner, rule, steps, create_graph)
    with torch.set_grad_enabled(create_graph):
        last, _ = optimizee.loss(inner.params, inner.buffers, inner.step)
    return inner, torch.stack([*losses[1:], last])


def times(number: Tensor, value: Tensor) -> Tensor:
    """Values (*count, *shape) times a number per optimizee, (*count)."""
    trailing = [1] * (value.dim() - number.dim())
    return number.view(*number.shape, *trailing).to(value) * value


def tail_length(steps: int, tail: float) -> int:
    """Number of losses at the end of a truncation that make up the meta-loss."""
    return max(1, round(tail * steps))
