"""Update rules as functions of their metanet's weights, for one optimizee or for a
stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ngopt.functional import Change, Hyper, Record, UpdateRule, update_all
from ngopt.metanets import Metanet
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

Deltas = list[Tensor | None]


class WeightedRule:
    """An `UpdateRule` with other weights of its metanet than those that the metanet
    has.

    rule: bound to the metanet. weights: in the order of the metanet's parameters.
    count: () for one optimizee; (n,) for a stack, where all values, and the weights,
    have an axis of optimizees in front, and optimizees do not meet. shares_step: all of
    a stack are at the same step, which the rule may ask for on the host.
    """

    def __init__(
        self,
        rule: UpdateRule,
        metanet: nn.Module,
        weights: Sequence[Tensor],
        count: tuple[int, ...] = (),
        shares_step: bool = False,
    ):
        self.rule, self.count, self.shares_step = rule, count, shares_step
        self._function = _Function(rule, metanet)
        names = [f"metanet.{name}" for name, _ in metanet.named_parameters()]
        self._weights = dict(zip(names, weights, strict=True))

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
            deltas, new = self._updated(self._weights, grads, state, params, hyper)
        else:
            deltas, new = self._updated_stack(grads, state, params, hyper)
        rows = enumerate(zip(deltas, new, strict=True))
        yield [
            Change(i, delta, record) for i, (delta, record) in rows if delta is not None
        ]

    def may_be_traced(
        self, grads: Sequence[Tensor | None], state: Sequence[Record]
    ) -> bool:
        return False

    def renewal_interval(self, device: torch.device) -> None:
        return None

    def _updated(
        self,
        weights: dict[str, Tensor],
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
    ) -> tuple[Deltas, list[Record]]:
        return functional_call(self._function, weights, (grads, state, params, hyper))

    def _updated_stack(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
    ) -> tuple[Deltas, list[Record]]:
        """`_updated` of all optimizees; vmap takes tensors alone, so absent ones stay
        outside."""
        present = [i for i, grad in enumerate(grads) if grad is not None]
        before = [self._as_given(record) for record in state]
        in_dims = [{key: self._axis(key) for key in record} for record in before]

        def one(weights: Any, given: Any, state: Any, params: Any) -> Any:
            own: Deltas = [None] * len(params)
            for i, grad in zip(present, given, strict=True):
                own[i] = grad
            deltas, new = self._updated(weights, own, state, params, hyper)
            return [deltas[i] for i in present], new

        values = (self._weights, [grads[i] for i in present], before, list(params))
        if not torch.is_grad_enabled():
            values = tree_map(Tensor.detach, values)
        # vmap follows the way that is differentiated, also where nothing asks for
        # derivatives
        with torch.enable_grad():
            found, new = torch.vmap(one, (0, 0, in_dims, 0))(*values)
        deltas: Deltas = [None] * len(params)
        for i, delta in zip(present, found, strict=True):
            deltas[i] = delta
        return deltas, new

    def _as_given(self, record: Record) -> Record:
        return {
            key: value if self._axis(key) == 0 else value[0]
            for key, value in record.items()
        }

    def _axis(self, key: str) -> int | None:
        """Of optimizees, in the values of a record."""
        return None if self.shares_step and key == "step" else 0


class _Function(nn.Module):
    """An update as a module, so that `functional_call` can put other weights under its
    metanet."""

    def __init__(self, rule: UpdateRule, metanet: nn.Module):
        super().__init__()
        self.metanet, self._rule = metanet, rule

    def forward(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
    ) -> tuple[Deltas, list[Record]]:
        return update_all(self._rule, grads, state, params, hyper)


def trained_metanet(learned: LearnedOptimizer) -> Metanet:
    """What is trained. Raises ValueError if there is no metanet."""
    if learned.metanet is None:
        raise ValueError("meta-training: expected a metanet; got a base rule alone")
    return learned.metanet


def asks_for_step(learned: LearnedOptimizer) -> bool:
    """Whether an update depends on how many there were before."""
    return learned.cooldown is not None or trained_metanet(learned).graph_every > 1


def as_weights(vector: Tensor, metanet: Metanet) -> list[Tensor]:
    """Meta-parameters (*count, numel) -> the weights of a metanet, (*count, *shape)
    each."""
    parameters = list(metanet.parameters())
    pieces = vector.split([p.numel() for p in parameters], -1)
    count = vector.shape[:-1]
    return [
        piece.view((*count, *p.shape))
        for piece, p in zip(pieces, parameters, strict=True)
    ]


def as_vector(weights: Sequence[Tensor], count: tuple[int, ...]) -> Tensor:
    """The inverse of `as_weights`."""
    return torch.cat([w.reshape((*count, -1)) for w in weights], -1)


def along(number: Tensor, like: Tensor) -> Tensor:
    """Numbers of all optimizees, (*count), as factors of their values (*count, *shape)."""
    return number.view((*number.shape, *[1] * (like.dim() - number.dim())))
