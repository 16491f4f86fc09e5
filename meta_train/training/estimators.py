"""Estimators of the meta-gradient, the derivative of an unroll's meta-loss by the
metanet's weights.

The metanet of a learned optimizer is trained; a base rule stays as it is. Estimators
work in truncations of an inner run: `start` begins it and gives its state, a
pytree of tensors; `estimate` unrolls it further, or a stack of several.

Biases, and costs of T steps of an optimizee:

TBPTT: ignores losses after T, and the effect of an update on later gradients.
    T + 1 gradients, T to 2 T updates and T backward passes of the metanet; memory of
    few.
SecondOrderTBPTT: ignores losses after T.
    T + 1 gradients and their derivatives; memory of T.
PES: unbiased for a loss that sigma smooths; the variance grows with the number of
    truncations. 2 T gradients and updates.
PES, persistent = False: ignores losses after T, so unbiased if T is the whole training
    (full ES). 2 T gradients and updates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.utils._pytree import tree_map_only

from meta_train.training.rules import (
    WeightedRule,
    as_vector,
    as_weights,
    depends_on_step,
)
from meta_train.training.unroll import (
    Inner,
    Optimizee,
    Optimizees,
    hyper_of,
    inner_gradient,
    moved,
    unroll,
)
from ngopt.functional import BoundRule, Hyper, Record, update_all
from ngopt.metanets import Metanet
from ngopt.metanets.stepping.context import CONTEXT
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

# Parameter elements of updates whose autograd graphs are kept: about 500 bytes each.
# An update that computes the graph context counts CONTEXT_COST times more.
TRACKED_ELEMENTS, CONTEXT_COST = 1 << 22, 16


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


class _TrackedUpdate(NamedTuple):
    """The outputs of an update with their autograd graph.

    context_before, context_after: graph context of the parameters, by index.
    """

    deltas: Sequence[Tensor | None]
    records: list[Record]
    context_before: dict[int, Tensor]
    context_after: dict[int, Tensor]


class _Step(NamedTuple):
    """The inputs of an update, and what follows it.

    tracked: None if the autograd graph of the update is not kept. next_grads: after the
    update. loss_weight: of the loss after it in the meta-loss.
    """

    grads: Sequence[Tensor | None]
    state: list[Record]
    params: list[Tensor]
    tracked: _TrackedUpdate | None
    next_grads: Sequence[Tensor | None]
    loss_weight: Tensor


@dataclass(frozen=True, eq=False)
class TBPTT:
    """First-order truncated back-propagation through time.

    Gradients and parameter-valued features are constants; the graph context, which is
    kept for several updates, is not. The meta-loss is the mean over t = 1 ... T of
    min(L_t, loss_limit), where L_t is the loss at params_t on the batch of step t. With
    `tail` < 1 only the last share of the truncation counts.

    With params_{t+1} = params_t + u_t and w_t the weight of a loss in the mean, the
    adjoint is lambda_t = w_t g_t + lambda_{t+1}. The meta-gradient is the sum of
    <lambda_{t+1}, du_t / dtheta>, with one backward pass per update. The
    memory holds the inputs of T updates, and the autograd graphs of the last few
    (`tracked_updates`); the others are computed again. The graph context has its own
    adjoint, back to the update that computed it.

    loss_limit: one for all, or per optimizee, (*count).
    total_steps: the horizon of the inner run.
    """

    loss_limit: float | Tensor = float("inf")
    tail: float = 1.0
    total_steps: int | None = None

    def start(self, optimizee: Optimizee, learned: LearnedOptimizer) -> Inner:
        return optimizee.start(learned.bind(optimizee.graph, self.total_steps))

    def estimate(
        self, optimizee: Optimizees, learned: LearnedOptimizer, state: Inner, steps: int
    ) -> tuple[Estimate, Inner]:
        weights, rule = differentiable(optimizee, learned, self.total_steps)
        hyper = hyper_of(optimizee)
        done: list[_Step] = []
        losses = []
        counted = tail_length(steps, self.tail)
        tracked_steps = tracked_updates(learned.metanet, optimizee)
        loss, grads, buffers = inner_gradient(optimizee, state)
        for t in range(steps):
            inputs = grads, state.state, state.params
            tracked = None
            if t >= steps - tracked_steps:
                tracked = _track(rule, *inputs, hyper)
                deltas, records = tracked.deltas, tracked.records
            else:
                with torch.no_grad():
                    deltas, records = update_all(rule, *inputs, hyper)
            state = detached(moved(state, deltas, records, buffers))
            loss, grads, buffers = inner_gradient(optimizee, state)
            losses.append(loss.clamp(max=self.loss_limit))
            # the derivative of the meta-loss by this loss
            weight = 1 / counted if t >= steps - counted else 0.0
            weight = weight * (loss <= self.loss_limit).to(loss.dtype)
            done.append(_Step(*inputs, tracked, grads, weight))
        gradient = as_vector(_backward(rule, weights, done, hyper), optimizee.count)
        mean = torch.stack(losses[-counted:]).mean(0)
        return Estimate(gradient, mean, torch.stack(losses).mean(0)), state


def _backward(
    rule: BoundRule, weights: Sequence[Tensor], steps: Sequence[_Step], hyper: Hyper
) -> list[Tensor]:
    """The meta-gradient."""
    total = [torch.zeros_like(w) for w in weights]
    adjoint = [torch.zeros_like(p) for p in steps[-1].params]
    context_adjoint: dict[int, Tensor] = {}
    for step in reversed(steps):
        for i, grad in enumerate(step.next_grads):
            if grad is not None:
                adjoint[i] = adjoint[i] + times(step.loss_weight, grad)
        tracked = step.tracked or _track(
            rule, step.grads, step.state, step.params, hyper
        )
        gradients, context_adjoint = _vjp(tracked, weights, adjoint, context_adjoint)
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                total[i] = total[i] + gradient
    return total


def _track(
    rule: BoundRule,
    grads: Sequence[Tensor | None],
    state: Sequence[Record],
    params: Sequence[Tensor],
    hyper: Hyper,
) -> _TrackedUpdate:
    """An update as a function of the weights and of the stored graph context."""
    before, given = {}, list(state)
    for i, record in enumerate(state):
        if CONTEXT in record:
            before[i] = record[CONTEXT].detach().requires_grad_()
            given[i] = {**record, CONTEXT: before[i]}
    with torch.enable_grad():
        deltas, records = update_all(rule, grads, given, params, hyper)
    after = {i: records[i][CONTEXT] for i in before}
    return _TrackedUpdate(deltas, records, before, after)


def _vjp(
    update: _TrackedUpdate,
    weights: Sequence[Tensor],
    adjoint: Sequence[Tensor],
    context_adjoint: dict[int, Tensor],
) -> tuple[Sequence[Tensor | None], dict[int, Tensor]]:
    """Vector-Jacobian products for the weights and for the context before the update.

    adjoint, context_adjoint: of the parameters and of the context after the update.
    Weights without derivative have None; contexts without are left out.
    """
    outputs, cotangents = [], []
    for delta, cotangent in zip(update.deltas, adjoint, strict=True):
        if delta is not None:
            outputs.append(delta)
            cotangents.append(cotangent)
    for i, cotangent in context_adjoint.items():
        outputs.append(update.context_after[i])
        cotangents.append(cotangent)
    inputs = [*weights, *update.context_before.values()]
    gradients = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
    of_context = zip(update.context_before, gradients[len(weights) :], strict=True)
    before = {i: gradient for i, gradient in of_context if gradient is not None}
    return gradients[: len(weights)], before


class SecondOrderTBPTT(TBPTT):
    """Truncated back-propagation through time through the optimizee's gradients too.

    The meta-loss is that of `TBPTT`. The whole truncation is one autograd graph.
    """

    def estimate(
        self, optimizee: Optimizees, learned: LearnedOptimizer, state: Inner, steps: int
    ) -> tuple[Estimate, Inner]:
        weights, rule = differentiable(optimizee, learned, self.total_steps)
        inner, losses = losses_after(optimizee, state, rule, steps, create_graph=True)
        with torch.enable_grad():
            after = losses.clamp(max=self.loss_limit)
            mean = after[-tail_length(steps, self.tail) :].mean(0)
        gradients = torch.autograd.grad(mean.sum(), weights, materialize_grads=True)
        estimate = Estimate(
            meta_gradient=as_vector(gradients, optimizee.count),
            meta_loss=mean.detach(),
            inner_loss=after.detach().mean(0),
        )
        return estimate, detached(inner)


def tracked_updates(metanet: Metanet, optimizee: Optimizees) -> int:
    """The number of updates whose autograd graphs are kept."""
    context = CONTEXT_COST / metanet.graph_every if metanet.d_context else 0
    elements = prod(optimizee.count) * optimizee.graph.numel * (1 + context)
    return int(TRACKED_ELEMENTS / elements)


class PESState(NamedTuple):
    """positive, negative: the antithetic pair of inner runs.

    perturbation: the sum of all perturbations so far.
    """

    positive: Inner
    negative: Inner
    perturbation: Tensor


@dataclass(frozen=True, eq=False)
class PES:
    """Persistent evolution strategies with one antithetic pair (Vicol et al. 2021, Eq.
    10).

    Every truncation draws a perturbation of the meta-parameters, epsilon ~ N(0,
    sigma^2). The losses of the pair are weighted by the sum of all perturbations since
    the inner run began, so the estimate is unbiased over the whole of it. Without
    that sum (`persistent=False`) it is truncated ES, which is biased. With a truncation
    as long as the inner run it is antithetic ES. Meta-losses are those of `TBPTT`.
    """

    sigma: float = 0.01
    loss_limit: float | Tensor = float("inf")
    tail: float = 1.0
    persistent: bool = True
    total_steps: int | None = None

    def start(self, optimizee: Optimizee, learned: LearnedOptimizer) -> PESState:
        inner = optimizee.start(learned.bind(optimizee.graph, self.total_steps))
        theta = parameters_to_vector(learned.metanet.parameters())
        return PESState(inner, inner, torch.zeros_like(theta.detach()))

    def estimate(
        self,
        optimizee: Optimizees,
        learned: LearnedOptimizer,
        state: PESState,
        steps: int,
    ) -> tuple[Estimate, PESState]:
        metanet = learned.metanet
        bound = learned.bind(optimizee.graph, self.total_steps)
        theta = parameters_to_vector(metanet.parameters()).detach()
        drawn = optimizee.normal(state.positive.step, len(theta), theta.dtype)
        noise = self.sigma * drawn.to(theta.device)
        total = state.perturbation + noise if self.persistent else noise
        rules = []
        for side in (noise, -noise):
            weights = as_weights(theta + side, metanet)
            rules.append(weighted(bound, optimizee, learned, weights))
        positive, above = losses_after(optimizee, state.positive, rules[0], steps)
        negative, below = losses_after(optimizee, state.negative, rules[1], steps)
        above, below = (x.clamp(max=self.loss_limit) for x in (above, below))
        counted = tail_length(steps, self.tail)
        plus = above[-counted:].mean(0)
        minus = below[-counted:].mean(0)
        slope = (plus - minus) / (2 * self.sigma**2)
        inner_loss = 0.5 * (above + below).mean(0)
        estimate = Estimate(times(slope, total), 0.5 * (plus + minus), inner_loss)
        return estimate, PESState(positive, negative, total)


Estimator = TBPTT | PES
