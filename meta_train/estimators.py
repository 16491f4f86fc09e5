"""Estimators of the meta-gradient: how the meta-loss of an unroll changes with the metanet's
weights.

The metanet of a learned optimizer is what is trained; a base rule stays as it is. All estimators
work on one optimizee at a time, in truncations of an inner training, behind one interface: `start`
begins an inner training, `estimate` unrolls it further and returns what it learned.

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
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from meta_train.unroll import Inner, Task, apply_update, moved, unroll
from ngopt.functional import Hyper, Record, UpdateRule, update_all
from ngopt.graph import NeuralGraph
from ngopt.learned import LearnedOptimizer
from ngopt.metanet_rule import MetanetRule
from ngopt.models import Metanet
from ngopt.pretrained import load_pretrained
from tasks.common.random import derive_seed

# Elements of parameters whose updates autograd follows at once: some 500 bytes each, and LOOK times
# as much where the metanet looks at the neural graph.
FOLLOWED, LOOK = 1 << 22, 16


class Estimate(NamedTuple):
    """meta_gradient: (meta-parameters,). meta_loss: what it is the gradient of.

    inner_loss: the optimizee's training loss, a mean over the truncation.
    """

    meta_gradient: Tensor
    meta_loss: float
    inner_loss: float


class Estimator(Protocol):
    def start(self, task: Task, learned: LearnedOptimizer) -> Any:
        """The state of an inner training before its first step: a pytree of tensors and numbers."""
        ...

    def estimate(
        self, task: Task, learned: LearnedOptimizer, state: Any, steps: int
    ) -> tuple[Estimate, Any]:
        """Unrolls by a number of steps: meta-gradient and meta-loss, and the state after them."""
        ...


class _Update(NamedTuple):
    """What an update saw, and what it did where autograd has followed."""

    grads: Sequence[Tensor | None]
    state: list[Record]
    params: list[Tensor]
    deltas: Sequence[Tensor | None] | None


class TBPTT:
    """First-order truncated back-propagation through time.

    Gradients and parameter-valued features count as constants. The meta-loss is the mean over
    t = 1 ... T of min(L_t, loss_limit), where L_t is the loss at params_t on the batch of step t;
    with `tail` < 1 only the last share of the truncation counts. With params_{t+1} =
    (1 - c_t) params_t + u_t and w_t the weight of a loss in the mean, the adjoint is
    lambda_t = w_t g_t + (1 - c_t) lambda_{t+1}, and the meta-gradient the sum of
    <lambda_{t+1}, du_t / dtheta>: one backward pass per update, in memory that holds the inputs of
    T updates and the autograd graphs of the last few (`followed_updates`, one for a large network);
    the others are computed again. total_steps: the horizon of the inner training.

    Raises ValueError for a base rule with weight decay, whose contraction is not known here.
    """

    def __init__(
        self,
        weight_decay: float = 0.0,
        loss_limit: float = float("inf"),
        tail: float = 1.0,
        total_steps: int | None = None,
    ):
        self.weight_decay, self.loss_limit, self.tail = weight_decay, loss_limit, tail
        self.total_steps = total_steps

    def start(self, task: Task, learned: LearnedOptimizer) -> Inner:
        return task.start(learned.bind(task.graph, self.total_steps))

    def estimate(
        self, task: Task, learned: LearnedOptimizer, state: Inner, steps: int
    ) -> tuple[Estimate, Inner]:
        self._check(learned)
        rule = learned.bind(task.graph, self.total_steps)
        weights = list(trained_metanet(learned).parameters())
        hyper = task.hyper(self.weight_decay)
        updates, losses, share, contractions = [], [], [], []
        counted = tail_length(steps, self.tail)
        followed = followed_updates(trained_metanet(learned), task.graph)
        loss, grads, buffers = task.gradient(state)
        for t in range(steps):
            contractions.append(self._contraction(rule, state.step))
            is_followed = t >= steps - followed
            with torch.set_grad_enabled(is_followed):
                deltas, records = update_all(rule, grads, state.state, state.params, hyper)
            updates.append(
                _Update(grads, state.state, state.params, deltas if is_followed else None)
            )
            state = detached(moved(state, deltas, records, buffers))
            loss, grads, buffers = task.gradient(state)
            losses.append(loss.clamp(max=self.loss_limit))
            # the derivative of the meta-loss by this loss
            share.append(float(loss <= self.loss_limit and t >= steps - counted) / counted)
        after = [*(update.grads for update in updates[1:]), grads]
        meta = self._backward(rule, weights, updates, after, share, hyper, contractions)
        mean = torch.stack(losses[-counted:]).mean().item()
        return Estimate(meta, mean, mean), state

    def _check(self, learned: LearnedOptimizer) -> None:
        if self.weight_decay and learned.base is not None:
            raise ValueError(
                f"TBPTT: base rule '{learned.base.name}': expected weight decay 0; got "
                f"{self.weight_decay}"
            )

    def _contraction(self, rule: UpdateRule, step: int) -> float:
        """1 - c_t."""
        if self.weight_decay == 0:
            return 1.0
        assert isinstance(rule, MetanetRule)
        return 1 - rule.height(step) * rule.metanet.config.nominal_step * self.weight_decay

    def _backward(
        self,
        rule: UpdateRule,
        weights: Sequence[Tensor],
        updates: Sequence[_Update],
        after: Sequence[Sequence[Tensor | None]],
        share: list[float],
        hyper: Hyper,
        contractions: Sequence[float],
    ) -> Tensor:
        """The meta-gradient.

        after: the gradients after each update. share: their weights in the meta-loss. contractions:
            by which each step multiplies the parameters.
        """
        total = [torch.zeros_like(w) for w in weights]
        adjoint = [torch.zeros_like(p) for p in updates[-1].params]
        rows = list(zip(updates, after, share, [*contractions[1:], 1.0], strict=True))
        for update, ahead, part, contraction in reversed(rows):
            adjoint = [
                contraction * a if g is None else part * g + contraction * a
                for a, g in zip(adjoint, ahead, strict=True)
            ]
            deltas = update.deltas
            if deltas is None:
                deltas, _ = update_all(rule, update.grads, update.state, update.params, hyper)
            pairs = [(d, a) for d, a in zip(deltas, adjoint, strict=True) if d is not None]
            outputs, cotangents = zip(*pairs, strict=True)
            found = torch.autograd.grad(outputs, weights, cotangents, allow_unused=True)
            total = [t if f is None else t + f for t, f in zip(total, found, strict=True)]
        return parameters_to_vector(total)


class SecondOrderTBPTT(TBPTT):
    """Truncated back-propagation through time through the optimizee's gradients too.

    The meta-loss is that of `TBPTT`. The memory is that of the autograd graph of the whole
    truncation.
    """

    def estimate(
        self, task: Task, learned: LearnedOptimizer, state: Inner, steps: int
    ) -> tuple[Estimate, Inner]:
        rule = learned.bind(task.graph, self.total_steps)
        weights = list(trained_metanet(learned).parameters())
        inner, losses = unroll(
            task, state, rule, steps, task.hyper(self.weight_decay), create_graph=True
        )
        with torch.enable_grad():
            last, _ = task.loss(inner.params, inner.buffers, inner.step)
            counted = [*losses[1:], last][-tail_length(steps, self.tail) :]
            mean = torch.stack([loss.clamp(max=self.loss_limit) for loss in counted]).mean()
        found = torch.autograd.grad(mean, weights, allow_unused=True)
        rows = zip(found, weights, strict=True)
        meta = parameters_to_vector([torch.zeros_like(w) if f is None else f for f, w in rows])
        return Estimate(meta, mean.item(), mean.item()), detached(inner)


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
        loss_limit: float = float("inf"),
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
        self, task: Task, learned: LearnedOptimizer, state: PESState, steps: int
    ) -> tuple[Estimate, PESState]:
        rule = learned.bind(task.graph, self.total_steps)
        metanet = trained_metanet(learned)
        theta = parameters_to_vector(metanet.parameters()).detach().clone()
        generator = torch.Generator().manual_seed(derive_seed(task.seed, 3, state.positive.step))
        noise = self.sigma * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        total = state.perturbation + noise if self.persistent else noise
        try:
            vector_to_parameters(theta + noise, metanet.parameters())
            plus, positive = self._run(task, rule, state.positive, steps)
            vector_to_parameters(theta - noise, metanet.parameters())
            minus, negative = self._run(task, rule, state.negative, steps)
        finally:
            vector_to_parameters(theta, metanet.parameters())
        meta = total * ((plus - minus) / (2 * self.sigma**2))
        mean = 0.5 * (plus + minus)
        return Estimate(meta, mean, mean), PESState(positive, negative, total)

    @torch.no_grad()
    def _run(self, task: Task, rule: UpdateRule, inner: Inner, steps: int) -> tuple[float, Inner]:
        """Mean of the clamped losses after each update of the tail."""
        hyper, losses = task.hyper(self.weight_decay), []
        loss, grads, buffers = task.gradient(inner)
        for _ in range(steps):
            inner = apply_update(inner, grads, buffers, rule, hyper)
            loss, grads, buffers = task.gradient(inner)
            losses.append(loss.clamp(max=self.loss_limit))
        return torch.stack(losses[-tail_length(steps, self.tail) :]).mean().item(), inner


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
    """

    def __init__(self, total_steps: int | None = None):
        self.total_steps = total_steps
        self.teacher = load_pretrained("default")

    def start(self, task: Task, learned: LearnedOptimizer) -> Imitated:
        inner = task.start(learned.bind(task.graph, self.total_steps))
        return Imitated(inner, self.teacher.bind(task.graph, self.total_steps).init(inner.params))

    def estimate(
        self, task: Task, learned: LearnedOptimizer, state: Imitated, steps: int
    ) -> tuple[Estimate, Imitated]:
        student = learned.bind(task.graph, self.total_steps)
        teacher = self.teacher.bind(task.graph, self.total_steps)
        weights = list(trained_metanet(learned).parameters())
        total, hyper = [torch.zeros_like(w) for w in weights], task.hyper()
        losses, inner_losses = [], []
        inner, records = state
        for _ in range(steps):
            inner_loss, grads, buffers = task.gradient(inner)
            inner_losses.append(inner_loss)
            with torch.no_grad():
                wanted, records = update_all(teacher, grads, records, inner.params, hyper)
            with torch.enable_grad():
                found, own = update_all(student, grads, inner.state, inner.params, hyper)
                loss = _distance(found, wanted)
            some = torch.autograd.grad(loss, weights, allow_unused=True)
            total = [t if g is None else t + g / steps for t, g in zip(total, some, strict=True)]
            losses.append(loss.detach())
            params = [p if u is None else p + u for p, u in zip(inner.params, wanted, strict=True)]
            inner = detached(Inner(params, buffers, own, inner.step + 1))
        means = (torch.stack(some).mean().item() for some in (losses, inner_losses))
        return Estimate(parameters_to_vector(total), *means), Imitated(inner, records)


def _distance(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> Tensor:
    """Mean over tensors of the relative squared difference; of those that are to move."""
    rows = zip(found, wanted, strict=True)
    pairs = [(u, v) for u, v in rows if u is not None and v is not None and bool(v.any())]
    return torch.stack([(u - v).square().sum() / v.square().sum() for u, v in pairs]).mean()


def followed_updates(metanet: Metanet, graph: NeuralGraph) -> int:
    """Updates whose autograd graphs are kept, of at most `FOLLOWED` elements of parameters; a look
    at the neural graph counts as `LOOK` more."""
    looks = LOOK / metanet.graph_every if metanet.d_context else 0
    return int(FOLLOWED / (graph.numel * (1 + looks)))


def detached(inner: Inner) -> Inner:
    """The same without what autograd knows of it."""
    params, buffers, state, step = inner
    records = [{key: value.detach() for key, value in record.items()} for record in state]
    return Inner(
        [p.detach() for p in params], {k: b.detach() for k, b in buffers.items()}, records, step
    )


def trained_metanet(learned: LearnedOptimizer) -> Metanet:
    """What is trained. Raises ValueError if there is no metanet."""
    if learned.metanet is None:
        raise ValueError("meta-training: expected a metanet; got a base rule alone")
    return learned.metanet


def tail_length(steps: int, tail: float) -> int:
    """Number of losses at the end of a truncation that make up the meta-loss."""
    return max(1, round(tail * steps))
