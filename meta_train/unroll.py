"""Inner training of one optimizee as pure functions of its parameters,
buffers and optimizer state."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from meta_train.problems import Metrics, Problem
from ngopt import build_graph
from ngopt.functional import Hyper, Record, UpdateRule, update_all
from ngopt.learned import LearnedOptimizer
from tasks.common.random import seeded


class Inner(NamedTuple):
    """Where an inner training stands: parameters, buffers, optimizer state, and steps done."""

    params: list[Tensor]
    buffers: dict[str, Tensor]
    state: list[Record]
    step: int


class Task:
    """A problem with a seed: fixes initial weights, batches and dropout of one inner training.

    autocast: compute the optimizee's loss in bfloat16 where torch deems it safe. scaling: each
    tensor is optimized as a multiple of what the network uses, by a factor log-uniform between its
    inverse and it (Moudgil et al. 2025, Celo2); the network starts the same.
    """

    def __init__(self, problem: Problem, seed: int, autocast: bool = False, scaling: float = 1.0):
        self.problem, self.seed, self.autocast = problem, seed, autocast
        self.model = problem.init(seed)
        self.graph = build_graph(self.model)
        self.names = [name for name, _ in self.model.named_parameters()]
        self._objective = _Objective(problem, self.model)
        with seeded(seed, 6):
            exponents = 2 * torch.rand(len(self.names), dtype=torch.float64) - 1
        self._scales = [scaling**e for e in exponents.tolist()]

    def start(self, rule: UpdateRule) -> Inner:
        """The inner training before its first step."""
        params = [
            p.detach() / s for p, s in zip(self.model.parameters(), self._scales, strict=True)
        ]
        buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        return Inner(params, buffers, rule.init(params), 0)

    def loss(
        self, params: list[Tensor], buffers: dict[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss at an inner step, (), and the buffers after it;
        nothing is changed in place."""
        buffers = {name: b.clone() for name, b in buffers.items()}
        used = zip(self.names, self._used(params), strict=True)
        tensors = {f"model.{n}": t for n, t in [*used, *buffers.items()]}
        batch = self.problem.batch(self.seed, step)
        with (
            seeded(self.seed, 2, step),
            torch.autocast("cpu", torch.bfloat16, enabled=self.autocast),
        ):
            loss = functional_call(self._objective, tensors, (batch,))
        return loss.float() if self.autocast else loss, buffers

    def gradient(
        self, inner: Inner, create_graph: bool = False
    ) -> tuple[Tensor, list[Tensor | None], dict[str, Tensor]]:
        """Loss, gradients (None for a parameter without one)
        and new buffers at the current step."""
        params = [
            p if create_graph and p.requires_grad else p.detach().requires_grad_()
            for p in inner.params
        ]
        with torch.enable_grad():
            loss, buffers = self.loss(params, inner.buffers, inner.step)
            grads = torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True)
        return loss if create_graph else loss.detach(), list(grads), buffers

    def hyper(self, weight_decay: float = 0.0) -> Hyper:
        return Hyper([1.0] * len(self.names), [weight_decay] * len(self.names))

    def model_at(self, inner: Inner) -> nn.Module:
        """The task's module with an inner training's parameters and buffers, in evaluation mode."""
        model = copy.deepcopy(self.model)
        used = dict(zip(self.names, self._used(inner.params), strict=True))
        model.load_state_dict({**used, **inner.buffers}, strict=False)
        return model.eval()

    def _used(self, params: Sequence[Tensor]) -> list[Tensor]:
        """What the network uses."""
        return [p if s == 1 else s * p for p, s in zip(params, self._scales, strict=True)]


def apply_update(
    inner: Inner,
    grads: list[Tensor | None],
    buffers: dict[str, Tensor],
    rule: UpdateRule,
    hyper: Hyper,
) -> Inner:
    """The inner training one step later."""
    deltas, state = update_all(rule, grads, inner.state, inner.params, hyper)
    return moved(inner, deltas, state, buffers)


def moved(
    inner: Inner, deltas: Sequence[Tensor | None], state: list[Record], buffers: dict[str, Tensor]
) -> Inner:
    """The inner training after an update."""
    params = [p if d is None else p + d for p, d in zip(inner.params, deltas, strict=True)]
    return Inner(params, buffers, state, inner.step + 1)


def unroll(
    task: Task,
    inner: Inner,
    rule: UpdateRule,
    steps: int,
    hyper: Hyper,
    create_graph: bool = False,
) -> tuple[Inner, Tensor]:
    """Trains for some steps; returns where it stands and the losses before each update, (steps,).

    With `create_graph` everything stays differentiable in the rule's metanet, through the
    optimizee's gradients too (second order).
    """
    losses = []
    with torch.set_grad_enabled(create_graph):
        for _ in range(steps):
            loss, grads, buffers = task.gradient(inner, create_graph)
            inner = apply_update(inner, grads, buffers, rule, hyper)
            losses.append(loss)
    return inner, torch.stack(losses)


def whole_run(
    task: Task, learned: LearnedOptimizer, steps: int, weight_decay: float = 0.0
) -> Metrics:
    """Validation metrics after a whole inner training."""
    rule = learned.bind(task.graph, steps)
    inner, _ = unroll(task, task.start(rule), rule, steps, task.hyper(weight_decay))
    return task.problem.evaluate(task.model_at(inner), "validation")


class _Objective(nn.Module):
    """A problem's loss as a module, so that `functional_call` can put other parameters under it."""

    def __init__(self, problem: Problem, model: nn.Module):
        super().__init__()
        self._problem, self.model = problem, model

    def forward(self, batch: Any) -> Tensor:
        return self._problem.loss(self.model, batch)
