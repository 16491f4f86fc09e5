"""Truncated back-propagation through time, of first and second order."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from meta_train.training.estimators.estimate import (
    Estimate,
    detached,
    leaves,
    tail_length,
    times,
    weighted,
)
from meta_train.training.rules import as_vector, trained_metanet
from meta_train.training.unroll import Inner, Optimizee, Optimizees, moved, sent, unroll
from ngopt.functional import Hyper, Record, UpdateRule, update_all
from ngopt.metanets import Metanet
from ngopt.metanets.stepping.context import CONTEXT
from ngopt.metanets.stepping.rule import MetanetRule
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

# Elements of parameters whose updates autograd follows at once: some 500 bytes each,
# and LOOK times as much where the metanet looks at the neural graph.
FOLLOWED, LOOK = 1 << 22, 16


class _Update(NamedTuple):
    """What an update saw, and what it did where autograd has followed."""

    grads: Sequence[Tensor | None]
    state: list[Record]
    params: list[Tensor]
    followed: _Followed | None


class _Followed(NamedTuple):
    """What autograd knows of an update.

    heard, said: what the neural graph said of the parameters, as it was kept and as it
    is now.
    """

    deltas: Sequence[Tensor | None]
    records: list[Record]
    heard: dict[int, Tensor]
    said: dict[int, Tensor]


class TBPTT:
    """First-order truncated back-propagation through time.

    Gradients and parameter-valued features count as constants; what the neural graph
    said, and is kept for several updates, does not. The meta-loss is the mean over t =
    1 ... T of min(L_t, loss_limit), where L_t is the loss at params_t on the batch of
    step t; with `tail` < 1 only the last share of the truncation counts. With
    params_{t+1} = (1 - c_t) params_t + u_t and w_t the weight of a loss in the mean,
    the adjoint is lambda_t = w_t g_t + (1 - c_t) lambda_{t+1}, and the meta-gradient
    the sum of <lambda_{t+1}, du_t / dtheta>: one backward pass per update, in memory
    that holds the inputs of T updates and the autograd graphs of the last few
    (`followed_updates`, one for a large network); the others are computed again. What
    was said has an adjoint of its own, back to the update that looked at the graph.
    total_steps: the horizon of the inner training.

    loss_limit: of all, or of each, (*count).

    Raises ValueError for a base rule with weight decay, whose contraction is not known
    here.
    """

    def __init__(
        self,
        weight_decay: float = 0.0,
        loss_limit: float | Tensor = float("inf"),
        tail: float = 1.0,
        total_steps: int | None = None,
    ):
        self.weight_decay, self.loss_limit, self.tail = (weight_decay, loss_limit, tail)
        self.total_steps = total_steps

    def start(self, optimizee: Optimizee, learned: LearnedOptimizer) -> Inner:
        return optimizee.start(learned.bind(optimizee.graph, self.total_steps))

    def estimate(
        self, optimizee: Optimizees, learned: LearnedOptimizer, state: Inner, steps: int
    ) -> tuple[Estimate, Inner]:
        self._check(learned)
        weights = leaves(optimizee, learned)
        bound = learned.bind(optimizee.graph, self.total_steps)
        rule = weighted(bound, optimizee, learned, weights)
        hyper = optimizee.hyper(self.weight_decay)
        updates, losses, share, contractions = [], [], [], []
        counted = tail_length(steps, self.tail)
        followed = followed_updates(trained_metanet(learned), optimizee)
        loss, grads, buffers = optimizee.gradient(state)
        for t in range(steps):
            contractions.append(self._contraction(bound, state))
            seen = grads, state.state, state.params
            if t >= steps - followed:
                update = _followed(rule, *seen, hyper)
                deltas, records = update.deltas, update.records
                updates.append(_Update(*seen, update))
            else:
                with torch.no_grad():
                    deltas, records = update_all(rule, *seen, hyper)
                updates.append(_Update(*seen, None))
            state = detached(moved(state, deltas, records, buffers))
            loss, grads, buffers = optimizee.gradient(state)
            losses.append(loss.clamp(max=self.loss_limit))
            # the derivative of the meta-loss by this loss
            part = 1 / counted if t >= steps - counted else 0.0
            share.append(part * (loss <= self.loss_limit).to(loss.dtype))
        after = [*(update.grads for update in updates[1:]), grads]
        found = self._backward(
            rule, weights, updates, after, share, hyper, contractions
        )
        mean = torch.stack(losses[-counted:]).mean(0)
        inner_loss = torch.stack(losses).mean(0)
        return Estimate(as_vector(found, optimizee.count), mean, inner_loss), state

    def _check(self, learned: LearnedOptimizer) -> None:
        if self.weight_decay and learned.base is not None:
            raise ValueError(
                f"TBPTT: base rule '{learned.base.name}': expected weight decay 0; got "
                f"{self.weight_decay}"
            )

    def _contraction(self, rule: UpdateRule, inner: Inner) -> Tensor | float:
        """1 - c_t, where the parameters are."""
        if self.weight_decay == 0:
            return 1.0
        assert isinstance(rule, MetanetRule)
        heights = torch.as_tensor(rule.height(inner.step.double()), dtype=torch.float64)
        decay = rule.metanet.config.nominal_step * self.weight_decay
        found = 1 - decay * heights.expand(inner.step.shape)
        return sent(found, inner.params[0].device)

    def _backward(
        self,
        rule: UpdateRule,
        weights: Sequence[Tensor],
        updates: Sequence[_Update],
        after: Sequence[Sequence[Tensor | None]],
        share: Sequence[Tensor],
        hyper: Hyper,
        contractions: Sequence[Tensor | float],
    ) -> list[Tensor]:
        """The meta-gradient.

        after: the gradients after each update. share: their weights in the meta-loss.
        contractions:
            by which each step multiplies the parameters.
        """
        total = [torch.zeros_like(w) for w in weights]
        adjoint = [torch.zeros_like(p) for p in updates[-1].params]
        waiting: dict[int, Tensor] = {}  # the adjoint of what was said
        rows = list(zip(updates, after, share, [*contractions[1:], 1.0], strict=True))
        for update, ahead, part, contraction in reversed(rows):
            adjoint = [times(contraction, a) for a in adjoint]
            adjoint = [
                a if g is None else a + times(part, g)
                for a, g in zip(adjoint, ahead, strict=True)
            ]
            followed = update.followed or _followed(
                rule, update.grads, update.state, update.params, hyper
            )
            found, waiting = _pulled_back(followed, weights, adjoint, waiting)
            total = [
                t if f is None else t + f for t, f in zip(total, found, strict=True)
            ]
        return total


def _followed(
    rule: UpdateRule,
    grads: Sequence[Tensor | None],
    state: Sequence[Record],
    params: Sequence[Tensor],
    hyper: Hyper,
) -> _Followed:
    """An update as a function of the weights and of what is kept of the graph."""
    heard = {
        i: record[CONTEXT].detach().requires_grad_()
        for i, record in enumerate(state)
        if CONTEXT in record
    }
    given = list(state)
    for i, value in heard.items():
        given[i] = {**state[i], CONTEXT: value}
    with torch.enable_grad():
        deltas, records = update_all(rule, grads, given, params, hyper)
    said = {i: records[i][CONTEXT] for i in heard}
    return _Followed(deltas, records, heard, said)


def _pulled_back(
    update: _Followed,
    weights: Sequence[Tensor],
    adjoint: Sequence[Tensor],
    waiting: dict[int, Tensor],
) -> tuple[Sequence[Tensor | None], dict[int, Tensor]]:
    """Derivatives by the weights, and by what was heard; None, or left out, where there
    are none.

    adjoint, waiting: of the parameters, and of what was said, behind the update.
    """
    pairs = [
        (delta, own)
        for delta, own in zip(update.deltas, adjoint, strict=True)
        if delta is not None
    ]
    pairs += [(update.said[i], own) for i, own in waiting.items()]
    outputs, cotangents = zip(*pairs, strict=True)
    inputs = [*weights, *update.heard.values()]
    found = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
    of_heard = zip(update.heard, found[len(weights) :], strict=True)
    known = {i: value for i, value in of_heard if value is not None}
    return found[: len(weights)], known


class SecondOrderTBPTT(TBPTT):
    """Truncated back-propagation through time through the optimizee's gradients too.

    The meta-loss is that of `TBPTT`. The memory is that of the autograd graph of the
    whole truncation.
    """

    def estimate(
        self, optimizee: Optimizees, learned: LearnedOptimizer, state: Inner, steps: int
    ) -> tuple[Estimate, Inner]:
        weights = leaves(optimizee, learned)
        bound = learned.bind(optimizee.graph, self.total_steps)
        rule = weighted(bound, optimizee, learned, weights)
        inner, losses = unroll(
            optimizee,
            state,
            rule,
            steps,
            optimizee.hyper(self.weight_decay),
            create_graph=True,
        )
        with torch.enable_grad():
            last, _ = optimizee.loss(inner.params, inner.buffers, inner.step)
            behind = torch.stack([*losses[1:], last]).clamp(max=self.loss_limit)
            mean = behind[-tail_length(steps, self.tail) :].mean(0)
        found = torch.autograd.grad(mean.sum(), weights, materialize_grads=True)
        gradient = as_vector(found, optimizee.count)
        inner_loss = behind.detach().mean(0)
        return Estimate(gradient, mean.detach(), inner_loss), detached(inner)


def followed_updates(metanet: Metanet, optimizee: Optimizees) -> int:
    """Updates whose autograd graphs are kept, of at most `FOLLOWED` elements of
    parameters; a look at the neural graph counts as `LOOK` more."""
    looks = LOOK / metanet.graph_every if metanet.d_context else 0
    return int(FOLLOWED / (prod(optimizee.count) * optimizee.graph.numel * (1 + looks)))
