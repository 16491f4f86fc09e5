"""Trains copies of a network at once, each as if it were alone.

Gradients are stacked by `torch.func.vmap`, and equal matrices of all copies share
stacks in the rule, which is what makes many small training runs cheap.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from meta_train.training.rules import Function
from ngopt import build_graph
from ngopt.functional import BoundRule, Hyper, Record, apply
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.soap.soap import Soap, SoapRule
from ngopt.specialized.first_order import FirstOrderRule
from ngopt.specialized.storage import HandRule

LossOf = Callable[[nn.Module, Any], Tensor]
"""The loss of a network on a batch."""


class SoapOfCopies(SoapRule):
    """SOAP on copies of a network.

    Only how untrained weights are is averaged over copies, which are all new.
    """

    def __init__(self, soap: Soap, graph: NeuralGraph, total_steps: int, copies: int):
        super().__init__(soap, graph, total_steps)
        count = len(self.layouts)
        self.precondition_frequency = self.renewal_interval(torch.device("cpu"))
        self.roles = self.roles * copies
        self.layouts = self.layouts * copies
        firsts = range(0, copies * count, count)
        self.bias_matrices = [first + i for first in firsts for i in self.bias_matrices]
        # its edges are those of one copy; the rule reads the parameters alone
        self.graph = replace(graph, parameters=graph.parameters * copies)


def bound_to_copies(
    rule: HandRule, graph: NeuralGraph, total_steps: int, copies: int
) -> BoundRule:
    """A rule on all parameters of the first copy, then of the second, ..."""
    if isinstance(rule, Soap):
        return SoapOfCopies(rule, graph, total_steps, copies)
    alone = replace(rule, multiplier=None).bind(graph)
    with_muon, rates = list(alone.with_muon) * copies, None
    if rule.multiplier is not None:
        positions = range(len(with_muon))
        rates = rule.multiplier.bound(graph, positions, total_steps)
    return FirstOrderRule(rule, with_muon, total_steps, rates)


class Copies:
    """Copies of a network, of equal shapes, with a rule that trains them.

    Raises RuntimeError if networks cannot be stacked.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        loss: LossOf,
        rule: HandRule,
        total_steps: int,
        factors: Sequence[float] | None = None,
    ):
        """factors: of step sizes, of all parameters of the first copy, then of the
        second, ...; None: 1."""
        self._template = models[0]
        params, self._buffers = stack_module_state(list(models))
        self.params = {name: p.detach() for name, p in params.items()}
        self._rows = [nn.Parameter(x) for x in _by_copy(self.params)]
        graph = build_graph(self._template.named_parameters())
        self._rule = bound_to_copies(rule, graph, total_steps, len(models))
        self._state: list[Record] = self._rule.init(self._rows)
        factors = factors or [1.0] * len(self._rows)
        self._hyper = Hyper(factors, [None] * len(factors))
        function = grad_and_value(self._evaluated(loss))
        self._gradients = vmap(function, (0, 0, 0), randomness="different")

    def _evaluated(self, function: LossOf) -> Callable[..., Tensor]:
        module = Function(partial(function, self._template), self._template)

        def evaluate(params: Any, buffers: Any, batch: Any) -> Tensor:
            named = {f"module.{key}": x for key, x in (params | buffers).items()}
            return functional_call(module, named, (batch,))

        return evaluate

    def step(self, batches: Any) -> Tensor:
        """The losses before the step, (copies,). batches: of all copies, stacked."""
        grads, losses = self._gradients(self.params, self._buffers, batches)
        rows = _by_copy(grads)
        with torch.no_grad():
            for changes in self._rule.update(
                rows, self._state, self._rows, self._hyper, in_place=True
            ):
                apply(changes, self._rows)
        return losses

    @torch.no_grad()
    def evaluate(self, function: LossOf, batch: Any) -> Tensor:
        """Of all copies on one batch, in evaluation mode, (copies,)."""
        evaluate = vmap(self._evaluated(function), (0, 0, None), randomness="different")
        self._template.eval()
        values = evaluate(self.params, self._buffers, batch)
        self._template.train()
        return values


def _by_copy(stacks: Mapping[str, Tensor]) -> list[Tensor]:
    """The rows of all stacks for the first copy, then for the second, ..."""
    return [row for rows in zip(*stacks.values(), strict=True) for row in rows]
