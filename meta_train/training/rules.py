"""Update rules as functions of the metanet's weights, for one optimizee or a stack."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from ngopt.functional import BoundRule, Change, Hyper, Record, UpdateRule, update_all
from ngopt.metanets import Metanet
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

Deltas = list[Tensor | None]


class WeightedRule(BoundRule):
    """An `BoundRule` with given weights in place of the metanet's own.

    rule: bound to the metanet.
    weights: in the order of the metanet's parameters.
    count: () for one optimizee; (n,) for a stack, where all values and weights have a
        leading axis of optimizees.
    shares_step: all optimizees of a stack are at the same step, which the rule may read
        on the host.
    """

    def __init__(
        self,
        rule: BoundRule,
        metanet: nn.Module,
        weights: Sequence[Tensor],
        count: tuple[int, ...] = (),
        shares_step: bool = False,
    ):
        self.rule = rule
        self.count = count
        self.shares_step = shares_step
        self._function = Function(partial(update_all, rule), metanet)
        self._weights = {}
        for (name, _), value in zip(metanet.named_parameters(), weights, strict=True):
            self._weights[f"module.{name}"] = value

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        if not self.count:
            return self.rule.init(params)
        return torch.vmap(self.rule.init)(list(params))

    def update(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[list[Change]]:
        if not self.count:
            given = grads, state, params, hyper
            deltas, new = functional_call(self._function, self._weights, given)
        else:
            deltas, new = self._updated_stack(grads, state, params, hyper)
        changes = []
        for i, (delta, record) in enumerate(zip(deltas, new, strict=True)):
            if delta is not None:
                changes.append(Change(i, delta, record))
        yield changes

    def _updated_stack(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
    ) -> tuple[Deltas, list[Record]]:
        """The update of all optimizees. vmap returns tensors alone, so updates of
        parameters without gradient are left out."""
        present = [i for i, grad in enumerate(grads) if grad is not None]
        grad_dims = [None if grad is None else 0 for grad in grads]
        before, in_dims = [], []
        for record in state:
            axes: dict[str, int | None] = dict.fromkeys(record, 0)
            if self.shares_step and "step" in record:
                record = {**record, "step": record["step"][0]}
                axes["step"] = None
            before.append(record)
            in_dims.append(axes)

        def one(weights: Any, *given: Any) -> Any:
            deltas, new = functional_call(self._function, weights, (*given, hyper))
            return [deltas[i] for i in present], new

        values = self._weights, list(grads), before, list(params)
        if not torch.is_grad_enabled():
            values = tree_map_only(Tensor, Tensor.detach, values)
        # the rule takes its differentiable path, as in the gradient
        with torch.enable_grad():
            moved, new = torch.vmap(one, (0, grad_dims, in_dims, 0))(*values)
        deltas: Deltas = [None] * len(params)
        for i, delta in zip(present, moved, strict=True):
            deltas[i] = delta
        return deltas, new


class Function(nn.Module):
    """A function that reads a module, for `functional_call` with other tensors."""

    def __init__(self, function: Callable[..., Any], module: nn.Module):
        super().__init__()
        self.module = module
        self._function = function

    def forward(self, *args: Any) -> Any:
        return self._function(*args)


def as_learned(rule: UpdateRule) -> LearnedOptimizer:
    """The rule of a metanet. Raises ValueError for another one."""
    if not isinstance(rule, LearnedOptimizer):
        raise ValueError("meta-training: expected a metanet; got a base rule alone")
    return rule


def depends_on_step(learned: LearnedOptimizer) -> bool:
    """Whether an update depends on the number of steps before it."""
    return learned.cooldown is not None or learned.metanet.graph_every > 1


def as_weights(vector: Tensor, metanet: Metanet) -> list[Tensor]:
    """Meta-parameters (*count, numel) -> the weights of a metanet, (*count, *shape)
    each."""
    parameters = list(metanet.parameters())
    pieces = vector.split([p.numel() for p in parameters], -1)
    count = vector.shape[:-1]
    weights = []
    for piece, p in zip(pieces, parameters, strict=True):
        weights.append(piece.view((*count, *p.shape)))
    return weights


def as_vector(weights: Sequence[Tensor], count: tuple[int, ...]) -> Tensor:
    """The inverse of `as_weights`."""
    return torch.cat([w.reshape((*count, -1)) for w in weights], -1)
