"""Runs copies of one training at once: several settings and seeds.

The default optimizes all copies as if each were alone: their equal matrices share
stacks, which is what makes many small trainings cheap.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from harness.random import seeded
from meta_train.step_size.sources import Loss
from meta_train.step_size.trainings import Training
from ngopt import build_graph
from ngopt.functional import Hyper, Record, apply
from ngopt.soap.soap import Soap, SoapRule

MULTIPLIERS = 0.5, 1.0, 2.0
SEEDS = 0, 1

Factors = Sequence[float]
"""Of the step sizes of all parameters."""


class Outcome(NamedTuple):
    """What a training came to, by variant and seed.

    first: validation loss of the initial weights, (seeds,). validation: at the end,
    (variants, seeds); inf if it diverged.
    """

    first: Tensor
    validation: Tensor


class CopiesRule(SoapRule):
    """The default for copies of a network, as if each were alone.

    Only how untrained weights are is averaged over copies, which are all new.
    """

    def __init__(self, graph: Any, total_steps: int, copies: int):
        super().__init__(Soap(), graph, total_steps)
        count = len(self.layouts)
        self.precondition_frequency = self.renewal_interval(torch.device("cpu"))
        self.roles = self.roles * copies
        self.layouts = self.layouts * copies
        of_copy = self.bias_matrices
        self.bias_matrices = []
        for first in range(0, copies * count, count):
            self.bias_matrices += [first + i for i in of_copy]
        # its edges are those of one copy; the rule reads the parameters alone
        self.graph = replace(graph, parameters=graph.parameters * copies)


def measured(training: Training, variants: Sequence[Factors]) -> Outcome:
    """The outcome with all factors of step sizes, `variants`, and `SEEDS`."""
    copies = Copies(training, variants)
    first = copies.validation_loss()[: len(SEEDS)]
    with seeded(training.seed, 4):
        for step in range(training.steps):
            copies.step(step)
    validation = copies.validation_loss().view(len(variants), len(SEEDS))
    return Outcome(first, validation.nan_to_num(torch.inf))


class Copies:
    """Copies of a training, one for each variant and seed, seeds fastest."""

    def __init__(self, training: Training, variants: Sequence[Factors]):
        self.training = training
        self._variants = len(variants)
        models = [training.build(seed) for _ in variants for seed in SEEDS]
        self._template = models[0]
        params, self._buffers = stack_module_state(models)
        self._params = {name: p.detach() for name, p in params.items()}
        self._rows: list[nn.Parameter] = []
        for row in _by_copy(list(self._params.values())):
            self._rows.append(nn.Parameter(row))
        graph = build_graph(self._template.named_parameters())
        self._rule = CopiesRule(graph, training.steps, len(models))
        self._state: list[Record] = self._rule.init(self._rows)
        factors = [x for variant in variants for x in list(variant) * len(SEEDS)]
        self._hyper = Hyper(factors, [None] * len(factors))
        function = grad(partial(self._evaluate, training.task.loss))
        self._gradients = vmap(function, (0, 0, 0, 0), randomness="different")

    def _evaluate(self, function: Loss, *given: Any) -> Tensor:
        """given: parameters, buffers, inputs and targets of a copy."""
        *state, inputs, targets = given
        outputs = functional_call(self._template, tuple(state), (inputs,))
        return function(outputs, targets)

    def step(self, step: int) -> None:
        task, params = self.training.task, self._rows
        chosen = [self.training.indices(seed, step) for seed in SEEDS]
        indices = torch.stack(chosen).repeat(self._variants, 1)
        batches = task.inputs[indices], task.targets[indices]
        grads = self._gradients(self._params, self._buffers, *batches)
        rows = _by_copy(list(grads.values()))
        with torch.no_grad():
            for changes in self._rule.update(
                rows, self._state, params, self._hyper, in_place=True
            ):
                apply(changes, params)

    @torch.no_grad()
    def validation_loss(self) -> Tensor:
        """Of all copies, (copies,)."""
        task = self.training.task
        score = partial(self._evaluate, task.score)
        evaluate = vmap(score, (0, 0, None, None), randomness="different")
        self._template.eval()
        examples = task.validation_inputs, task.validation_targets
        losses = evaluate(self._params, self._buffers, *examples)
        self._template.train()
        return losses


def _by_copy(stacks: Sequence[Tensor]) -> list[Tensor]:
    """The rows of all stacks for the first copy, then for the second, ..."""
    return [stack[i] for i in range(len(stacks[0])) for stack in stacks]
