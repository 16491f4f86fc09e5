"""Runs copies of one training at once: several step sizes and seeds.

The default optimizes all copies as if each were alone: their equal matrices share
stacks, which is what makes many small trainings cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from harness.random import seeded
from meta_train.step_size.starts import started
from meta_train.step_size.trainings import Training
from ngopt import build_graph
from ngopt.base.soap import Soap, SoapRule
from ngopt.functional import Hyper, Record, apply

MULTIPLIERS = tuple(2.0**k for k in range(-3, 4))
SEEDS = 0, 1
CHECKS = 10, 20, 40  # steps after which signals are read
SIGNALS = "fall of log loss", "cosine", "log ratio of gradients", "relative step"
DECAY = 0.9  # of the momentum in the cosine
UNSTACKED = "lstm", "gru"  # vmap has no recurrent layers


@dataclass(frozen=True)
class Outcome:
    """What a training came to, by multiplier and seed.

    first: loss of the initial weights, (seeds,). validation: loss at the end, and
    train: mean of the last tenth of the steps, (multipliers, seeds); inf if it
    diverged. signals: (multipliers, seeds, checks, signals), see `SIGNALS`.
    """

    first: Tensor
    validation: Tensor
    train: Tensor
    signals: Tensor


class CopiesRule(SoapRule):
    """The default for copies of a network, as if each were alone.

    Only the shares of trained matrices are averaged over copies: copies of trained
    networks must have equal weights.
    """

    def __init__(self, graph: Any, total_steps: int, copies: int):
        super().__init__(Soap().config, graph, total_steps)
        count = len(self.layouts)
        self.roles = self.roles * copies
        self.layouts = self.layouts * copies
        matrices = []
        for copy in range(copies):
            matrices += [copy * count + i for i in self.matrices]
        self.matrices = matrices
        # its edges are those of one copy; the rule reads the parameters alone
        self.graph = replace(graph, parameters=graph.parameters * copies)


def measured(training: Training) -> Outcome:
    """The outcome at all `MULTIPLIERS` and `SEEDS`."""
    if training.start == "new":
        return _run(training, SEEDS)
    parts = [_run(training, [seed]) for seed in SEEDS]
    return Outcome(
        torch.cat([part.first for part in parts]),
        torch.cat([part.validation for part in parts], 1),
        torch.cat([part.train for part in parts], 1),
        torch.cat([part.signals for part in parts], 1),
    )


def _run(training: Training, seeds: Sequence[int]) -> Outcome:
    copies = Copies(training, seeds)
    checks = []
    with seeded(training.seed, 4):
        for step in range(training.steps):
            copies.step(step)
            if step + 1 in CHECKS:
                checks.append(copies.signals())
    shape = len(MULTIPLIERS), len(seeds)
    while len(checks) < len(CHECKS):
        checks.append(torch.full((len(SIGNALS), shape[0] * shape[1]), torch.nan))
    validation = copies.validation_loss().view(shape)
    losses = torch.stack(copies.losses)
    last = losses[-max(1, training.steps // 10) :].mean(0).view(shape)
    signals = torch.stack(checks).permute(2, 0, 1)
    first = losses[0].view(shape)[0]
    return Outcome(
        first,
        validation.nan_to_num(torch.inf),
        last.nan_to_num(torch.inf),
        signals.reshape(*shape, *signals.shape[1:]),
    )


class Copies:
    """Copies of a training, one for each multiplier and seed, seeds fastest."""

    def __init__(self, training: Training, seeds: Sequence[int]):
        self.training, self.seeds = training, list(seeds)
        self.models: list[nn.Module] = []
        for _ in MULTIPLIERS:
            self.models += [started(training, seed) for seed in seeds]
        template = self.models[0]
        params, self._buffers = stack_module_state(self.models)
        self._params = {name: p.detach() for name, p in params.items()}
        self._rows: list[nn.Parameter] = []
        for i in range(len(self.models)):
            self._rows += [nn.Parameter(p[i]) for p in self._params.values()]
        if training.family in UNSTACKED:
            for i, model in enumerate(self.models):
                for name, p in model.named_parameters():
                    p.data = self._params[name][i]
        graph = build_graph(dict(template.named_parameters()).items())
        self._rule = CopiesRule(graph, training.steps, len(self.models))
        self._state: list[Record] = self._rule.init(self._rows)
        lr = []
        for multiplier in MULTIPLIERS:
            lr += [multiplier] * (len(seeds) * len(self._params))
        self._hyper = Hyper(lr, [None] * len(lr))
        self._template = template
        function = grad_and_value(self._loss)
        self._gradients = vmap(function, (0, 0, 0, 0), randomness="different")
        self.losses: list[Tensor] = []
        self._first_norm: Tensor | None = None
        self._momentum: list[Tensor] = []
        self._cosine = self._norm = self._relative = torch.zeros(len(self.models))

    def _loss(self, params: Any, buffers: Any, inputs: Tensor, targets: Tensor):
        outputs = functional_call(self._template, (params, buffers), (inputs,))
        return self.training.task.loss(outputs, targets)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        task = self.training.task
        chosen = [self.training.indices(seed, step) for seed in self.seeds]
        indices = torch.stack(chosen).repeat(len(MULTIPLIERS), 1)
        return task.inputs[indices], task.targets[indices]

    def _grads(self, step: int) -> tuple[list[Tensor], Tensor]:
        """Stacked gradients of all parameters, and losses of all copies."""
        inputs, targets = self._batch(step)
        if self.training.family not in UNSTACKED:
            args = self._params, self._buffers, inputs, targets
            grads, losses = self._gradients(*args)
            return list(grads.values()), losses.detach()
        rows, losses = [], []
        for model, x, y in zip(self.models, inputs, targets, strict=True):
            loss = self.training.task.loss(model(x), y)
            rows.append(torch.autograd.grad(loss, list(model.parameters())))
            losses.append(loss.detach())
        stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
        return stacked, torch.stack(losses)

    def step(self, step: int) -> None:
        grads, losses = self._grads(step)
        self.losses.append(losses)
        rows = []
        for i in range(len(self.models)):
            rows += [grad[i] for grad in grads]
        is_early = step < max(CHECKS)
        before = [p.clone() for p in self._params.values()] if is_early else []
        with torch.no_grad():
            for changes in self._rule.update(
                rows, self._state, self._rows, self._hyper, in_place=True
            ):
                apply(changes, self._rows)
            if is_early:
                self._observe(grads, before)

    def _observe(self, grads: list[Tensor], before: list[Tensor]) -> None:
        """Measures the last step for `signals`."""
        flat = torch.cat([grad.flatten(1) for grad in grads], 1)
        weights = torch.cat([p.flatten(1) for p in before], 1)
        after = torch.cat([p.flatten(1) for p in self._params.values()], 1)
        self._norm = flat.norm(dim=1)
        if self._first_norm is None:
            self._first_norm = self._norm
            self._momentum = [torch.zeros_like(flat)]
        momentum = self._momentum[0]
        product = self._norm * momentum.norm(dim=1)
        cosine = (flat * momentum).sum(1) / product.clamp(min=1e-30)
        self._cosine = DECAY * self._cosine + (1 - DECAY) * cosine
        self._momentum = [momentum.lerp(flat, 1 - DECAY)]
        self._relative = (after - weights).norm(dim=1) / weights.norm(dim=1)

    def signals(self) -> Tensor:
        """`SIGNALS` of the steps so far, (signals, copies)."""
        assert self._first_norm is not None
        recent = torch.stack(self.losses[-5:]).mean(0)
        fall = self.losses[0].clamp(min=1e-12).log() - recent.clamp(min=1e-12).log()
        ratio = (self._norm / self._first_norm).log()
        return torch.stack((fall, self._cosine, ratio, self._relative.log()))

    @torch.no_grad()
    def validation_loss(self) -> Tensor:
        """Of all copies, (copies,)."""
        task = self.training.task
        x, y = task.validation_inputs, task.validation_targets
        if self.training.family in UNSTACKED:
            return torch.stack([task.loss(model(x), y) for model in self.models])
        evaluate = vmap(self._loss, (0, 0, None, None), randomness="different")
        return evaluate(self._params, self._buffers, x, y)
