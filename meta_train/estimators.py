"""Estimators of the meta-gradient: how the meta-loss of an unroll changes with the metanet's
weights.

The metanet of a learned optimizer is what is trained; a base rule stays as it is. All estimators
work in truncations of an inner training, behind one interface: `start` begins an inner training,
`estimate` unrolls it further, or a stack of several, and returns what was learned from each.

Their biases, and what T steps of an optimizee cost:

TBPTT               blind to what comes after T, and to what an update does to later gradients.
                    T + 1 gradients, T to 2 T updates and T backward passes of the metanet;
                    memory of few.
SecondOrderTBPTT    blind to what comes after T. T + 1 gradients and their derivatives; memory of T.
PES                 none, of a loss that sigma smooths; variance grows with the number of
                    truncations. 2 T gradients and updates.
PES, persistent     blind to what comes after T; none where T is the whole training (full ES). The
  = False           same.
Imitation           another goal: what a strong rule does, not the loss. T gradients, T updates of
                    both rules, T backward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from meta_train.unroll import Inner, Optimizees, Task, apply_update, moved, unroll
from meta_train.weighted import (
    WeightedRule,
    along,
    as_vector,
    as_weights,
    asks_for_step,
    trained_metanet,
)
from ngopt.functional import Hyper, Record, UpdateRule, update_all
from ngopt.learned import LearnedOptimizer
from ngopt.metanet_rule import CONTEXT, MetanetRule
from ngopt.models import Metanet
from ngopt.pretrained import load_pretrained

# Elements of parameters whose updates autograd follows at once: some 500 bytes each, and LOOK times
# as much where the metanet looks at the neural graph.
FOLLOWED, LOOK = 1 << 22, 16


class Estimate(NamedTuple):
    """What a truncation says; `count` is that of the optimizees.

    meta_gradient: (*count, meta-parameters). meta_loss: what it is the gradient of, (*count).
    inner_loss: the optimizee's training loss, a mean over the truncation, (*count).
    """

    meta_gradient: Tensor
    meta_loss: Tensor
    inner_loss: Tensor


class Estimator(Protocol):
    def start(self, task: Task, learned: LearnedOptimizer) -> Any:
        """The state of an inner training before its first step: a pytree of tensors."""
        ...

    def estimate(
        self, task: Optimizees, learned: LearnedOptimizer, state: Any, steps: int
    ) -> tuple[Estimate, Any]:
        """Unrolls by a number of steps: meta-gradient and meta-loss, and the state after them."""
        ...


class _Update(NamedTuple):
    """What an update saw, and what it did where autograd has followed."""

    grads: Sequence[Tensor | None]
    state: list[Record]
    params: list[Tensor]
    followed: _Followed | None


class _Followed(NamedTuple):
    """What autograd knows of an update.

    heard, said: what the neural graph said of the parameters, as it was kept and as it is now.
    """

    deltas: Sequence[Tensor | None]
    records: list[Record]
    heard: dict[int, Tensor]
    said: dict[int, Tensor]


class TBPTT:
    """First-order truncated back-propagation through time.

    Gradients and parameter-valued features count as constants; what the neural graph said, and is
    kept for several updates, does not. The meta-loss is the mean over
    t = 1 ... T of min(L_t, loss_limit), where L_t is the loss at params_t on the batch of step t;
    with `tail` < 1 only the last share of the truncation counts. With params_{t+1} =
    (1 - c_t) params_t + u_t and w_t the weight of a loss in the mean, the adjoint is
    lambda_t = w_t g_t + (1 - c_t) lambda_{t+1}, and the meta-gradient the sum of
    <lambda_{t+1}, du_t / dtheta>: one backward pass per update, in memory that holds the inputs of
    T updates and the autograd graphs of the last few (`followed_updates`, one for a large network);
    the others are computed again. What was said has an adjoint of its own, back to the update that
    looked at the graph. total_steps: the horizon of the inner training.

    loss_limit: of all, or of each, (*count).

    Raises ValueError for a base rule with weight decay, whose contraction is not known here.
    """

    def __init__(
        self,
        weight_decay: float = 0.0,
        loss_limit: float | Tensor = float("inf"),
        tail: float = 1.0,
        total_steps: int | None = None,
    ):
        self.weight_decay, self.loss_limit, self.tail = weight_decay, loss_limit, tail
        self.total_steps = total_steps

    def start(self, task: Task, learned: LearnedOptimizer) -> Inner:
        return task.start(learned.bind(task.graph, self.total_steps))

    def estimate(
        self, task: Optimizees, learned: LearnedOptimizer, state: Inner, steps: int
    ) -> tuple[Estimate, Inner]:
        self._check(learned)
        weights = _leaves(task, learned)
        bound = learned.bind(task.graph, self.total_steps)
        rule = _weighted(bound, task, learned, weights)
        hyper = task.hyper(self.weight_decay)
        updates, losses, share, contractions = [], [], [], []
        counted = tail_length(steps, self.tail)
        followed = followed_updates(trained_metanet(learned), task)
        loss, grads, buffers = task.gradient(state)
        for t in range(steps):
            contractions.append(self._contraction(bound, state.step))
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
            loss, grads, buffers = task.gradient(state)
            losses.append(loss.clamp(max=self.loss_limit))
            # the derivative of the meta-loss by this loss
            part = 1 / counted if t >= steps - counted else 0.0
            share.append(part * (loss <= self.loss_limit).to(loss.dtype))
        after = [*(update.grads for update in updates[1:]), grads]
        found = self._backward(
            rule, weights, updates, after, share, hyper, contractions
        )
        mean = torch.stack(losses[-counted:]).mean(0)
        return Estimate(as_vector(found, task.count), mean, mean), state

    def _check(self, learned: LearnedOptimizer) -> None:
        if self.weight_decay and learned.base is not None:
            raise ValueError(
                f"TBPTT: base rule '{learned.base.name}': expected weight decay 0; got "
                f"{self.weight_decay}"
            )

    def _contraction(self, rule: UpdateRule, step: Tensor) -> Tensor | float:
        """1 - c_t."""
        if self.weight_decay == 0:
            return 1.0
        assert isinstance(rule, MetanetRule)
        heights = torch.as_tensor(rule.height(step.double()), dtype=torch.float64)
        decay = rule.metanet.config.nominal_step * self.weight_decay
        return 1 - decay * heights.expand(step.shape)

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

        after: the gradients after each update. share: their weights in the meta-loss. contractions:
            by which each step multiplies the parameters.
        """
        total = [torch.zeros_like(w) for w in weights]
        adjoint = [torch.zeros_like(p) for p in updates[-1].params]
        waiting: dict[int, Tensor] = {}  # the adjoint of what was said
        rows = list(zip(updates, after, share, [*contractions[1:], 1.0], strict=True))
        for update, ahead, part, contraction in reversed(rows):
            adjoint = [_times(contraction, a) for a in adjoint]
            adjoint = [
                a if g is None else a + _times(part, g)
                for a, g in zip(adjoint, ahead, strict=True)
            ]
            *seen, followed = update
            followed = followed or _followed(rule, *seen, hyper)
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
    """Derivatives by the weights, and by what was heard; None, or left out, where there are none.

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

    The meta-loss is that of `TBPTT`. The memory is that of the autograd graph of the whole
    truncation.
    """

    def estimate(
        self, task: Optimizees, learned: LearnedOptimizer, state: Inner, steps: int
    ) -> tuple[Estimate, Inner]:
        weights = _leaves(task, learned)
        bound = learned.bind(task.graph, self.total_steps)
        rule = _weighted(bound, task, learned, weights)
        inner, losses = unroll(
            task, state, rule, steps, task.hyper(self.weight_decay), create_graph=True
        )
        with torch.enable_grad():
            last, _ = task.loss(inner.params, inner.buffers, inner.step)
            counted = [*losses[1:], last][-tail_length(steps, self.tail) :]
            mean = torch.stack(
                [loss.clamp(max=self.loss_limit) for loss in counted]
            ).mean(0)
        found = torch.autograd.grad(mean.sum(), weights, materialize_grads=True)
        mean = mean.detach()
        return Estimate(as_vector(found, task.count), mean, mean), detached(inner)


class PESState(NamedTuple):
    """positive, negative: the antithetic pair of inner trainings. perturbation:
    their sum so far."""

    positive: Inner
    negative: Inner
    perturbation: Tensor


class PES:
    """Persistent evolution strategies with one antithetic pair (Vicol et al. 2021, Eq. 10).

    Every truncation draws a perturbation of the meta-parameters, epsilon ~ N(0, sigma^2); the
    losses of the pair are weighed with the sum of all perturbations since the inner training began,
    which makes the estimate unbiased over the whole of it. Without that sum (`persistent=False`) it
    is truncated ES, which is biased. A truncation as long as the inner training makes it plain
    antithetic ES. Meta-losses are those of `TBPTT`.
    """

    def __init__(
        self,
        sigma: float = 0.01,
        weight_decay: float = 0.0,
        loss_limit: float | Tensor = float("inf"),
        tail: float = 1.0,
        persistent: bool = True,
        total_steps: int | None = None,
    ):
        self.sigma, self.weight_decay, self.loss_limit = sigma, weight_decay, loss_limit
        self.tail, self.persistent, self.total_steps = tail, persistent, total_steps

    def start(self, task: Task, learned: LearnedOptimizer) -> PESState:
        inner = task.start(learned.bind(task.graph, self.total_steps))
        theta = parameters_to_vector(trained_metanet(learned).parameters())
        return PESState(inner, inner, torch.zeros_like(theta.detach()))

    def estimate(
        self, task: Optimizees, learned: LearnedOptimizer, state: PESState, steps: int
    ) -> tuple[Estimate, PESState]:
        metanet = trained_metanet(learned)
        bound = learned.bind(task.graph, self.total_steps)
        theta = parameters_to_vector(metanet.parameters()).detach()
        drawn = task.normal(state.positive.step, len(theta), theta.dtype)
        noise = self.sigma * drawn.to(theta.device)
        total = state.perturbation + noise if self.persistent else noise
        rules = [
            _weighted(bound, task, learned, as_weights(theta + side, metanet))
            for side in (noise, -noise)
        ]
        plus, positive = self._run(task, rules[0], state.positive, steps)
        minus, negative = self._run(task, rules[1], state.negative, steps)
        slope = (plus - minus) / (2 * self.sigma**2)
        mean = 0.5 * (plus + minus)
        estimate = Estimate(_times(slope, total), mean, mean)
        return estimate, PESState(positive, negative, total)

    @torch.no_grad()
    def _run(
        self, task: Optimizees, rule: UpdateRule, inner: Inner, steps: int
    ) -> tuple[Tensor, Inner]:
        """Mean of the clamped losses after each update of the tail."""
        hyper, losses = task.hyper(self.weight_decay), []
        loss, grads, buffers = task.gradient(inner)
        for _ in range(steps):
            inner = apply_update(inner, grads, buffers, rule, hyper)
            loss, grads, buffers = task.gradient(inner)
            losses.append(loss.clamp(max=self.loss_limit))
        return torch.stack(losses[-tail_length(steps, self.tail) :]).mean(0), inner


class Imitated(NamedTuple):
    """Where an imitated inner training stands: `inner` with the state of the rule that is trained.

    teacher: the state of the rule that is imitated.
    """

    inner: Inner
    teacher: list[Record]


class Imitation:
    """Learns to do what a strong rule does, along its own training (as the first phase of ELO).

    The meta-loss is the mean over steps and tensors of |u - u*|^2 / |u*|^2, where u* is the update
    of the bundled default and u that of the metanet, from the same weights and gradients. Its
    gradient is exact. total_steps: the horizon of the inner training.

    Raises ValueError for a stack, which the default cannot step.
    """

    def __init__(self, total_steps: int | None = None):
        self.total_steps = total_steps
        self.teacher = load_pretrained("default")

    def start(self, task: Task, learned: LearnedOptimizer) -> Imitated:
        inner = task.start(learned.bind(task.graph, self.total_steps))
        return Imitated(
            inner, self.teacher.bind(task.graph, self.total_steps).init(inner.params)
        )

    def estimate(
        self, task: Optimizees, learned: LearnedOptimizer, state: Imitated, steps: int
    ) -> tuple[Estimate, Imitated]:
        if task.count:
            raise ValueError(
                f"imitation: expected one optimizee at a time; got a stack of {task.count[0]}"
            )
        student = learned.bind(task.graph, self.total_steps)
        teacher = self.teacher.bind(task.graph, self.total_steps)
        weights = list(trained_metanet(learned).parameters())
        total = [torch.zeros_like(w) for w in weights]
        hyper = task.hyper()
        losses, inner_losses = [], []
        # what the graph said is kept for several updates, which are differentiated together
        window: list[Tensor] = []
        every = trained_metanet(learned).graph_every
        inner, records = state
        for _ in range(steps):
            inner_loss, grads, buffers = task.gradient(inner)
            inner_losses.append(inner_loss)
            with torch.no_grad():
                wanted, records = update_all(
                    teacher, grads, records, inner.params, hyper
                )
            with torch.enable_grad():
                found, own = update_all(
                    student, grads, inner.state, inner.params, hyper
                )
                loss = _distance(found, wanted)
            window.append(loss)
            losses.append(loss.detach())
            inner = moved(inner, wanted, own, buffers)
            if inner.step % every == 0 or len(losses) == steps:
                some = torch.autograd.grad(sum(window), weights, allow_unused=True)
                total = [
                    t if g is None else t + g / steps
                    for t, g in zip(total, some, strict=True)
                ]
                window = []
                inner = detached(inner)
        means = (torch.stack(some).mean() for some in (losses, inner_losses))
        return Estimate(parameters_to_vector(total), *means), Imitated(inner, records)


def _distance(
    found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]
) -> Tensor:
    """Mean over tensors of the relative squared difference; of those that are to move."""
    rows = zip(found, wanted, strict=True)
    pairs = [
        (u, v) for u, v in rows if u is not None and v is not None and bool(v.any())
    ]
    return torch.stack(
        [(u - v).square().sum() / v.square().sum() for u, v in pairs]
    ).mean()


def followed_updates(metanet: Metanet, task: Optimizees) -> int:
    """Updates whose autograd graphs are kept, of at most `FOLLOWED` elements of parameters; a look
    at the neural graph counts as `LOOK` more."""
    looks = LOOK / metanet.graph_every if metanet.d_context else 0
    return int(FOLLOWED / (prod(task.count) * task.graph.numel * (1 + looks)))


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


def _leaves(task: Optimizees, learned: LearnedOptimizer) -> list[Tensor]:
    """The weights of the metanet, for each optimizee its own, (*count, *shape), to differentiate
    by."""
    parameters = trained_metanet(learned).parameters()
    found = [p.detach().expand((*task.count, *p.shape)).clone() for p in parameters]
    return [weight.requires_grad_() for weight in found]


def _weighted(
    bound: UpdateRule,
    task: Optimizees,
    learned: LearnedOptimizer,
    weights: Sequence[Tensor],
) -> WeightedRule:
    """A rule with the weights of each optimizee."""
    return WeightedRule(
        bound, trained_metanet(learned), weights, task.count, asks_for_step(learned)
    )


def _times(number: Tensor | float, value: Tensor) -> Tensor:
    """Values (*count, *shape) times a number, or one of each optimizee (*count)."""
    if not isinstance(number, Tensor):
        return value if number == 1 else number * value
    return along(number, value).to(value) * value


def tail_length(steps: int, tail: float) -> int:
    """Number of losses at the end of a truncation that make up the meta-loss."""
    return max(1, round(tail * steps))
