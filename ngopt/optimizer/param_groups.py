"""What an optimizer's groups give to a rule, for every parameter in the graph."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from ngopt.functional import Hyper, Record, UpdateRule, state_dtype
from ngopt.graph.transforms import reordered
from ngopt.optimizer.arguments import OWN_DECAY, is_scheduled
from ngopt.optimizer.graph_wiring import Wiring
from ngopt.shard_layout import is_dtensor, local, local_gradient, real

Group = dict[str, Any]


class Members:
    """An optimizer's parameters, with the graph that was made for them.

    params: in the order of the groups. network: the graph, its parameters in the
    network's order.
    graph: the same with `params` first, as rules take it; others are not optimized.
    """

    def __init__(self, wiring: Wiring, params: Sequence[Tensor]):
        self.network, order = wiring
        self.graph = reordered(self.network, order)
        self.params, self._shapes = params, list(map(_shape, params))

    def are(self, params: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors in the same shapes."""
        if len(params) != len(self.params) or not all(map(is_, params, self.params)):
            return False
        return list(map(_shape, params)) == self._shapes

    def check_shapes(self, before: Members, state: Mapping[Tensor, Record]) -> None:
        """Raises ValueError if a parameter with a state has another shape than before."""
        shapes = dict(zip(map(id, before.params), before._shapes, strict=True))
        rows = zip(self.params, self._shapes, self.graph.parameters, strict=False)
        for p, shape, spec in rows:
            old = shapes.get(id(p), shape)
            if old is not None and old != shape and state.get(p):
                raise ValueError(
                    f"NGOptimizer: '{spec.name}': expected shape {tuple(old)}, as in earlier "
                    f"steps; got {tuple(p.shape)}. Delete its state, `del "
                    "optimizer.state[parameter]`, or make a new optimizer."
                )

    def values(self) -> list[Tensor]:
        """Real values of all parameters in the graph.

        Zeros, which take no memory, of those that are not optimized.
        """
        others = self.graph.parameters[len(self.params) :]
        zeros = (_zeros(spec.shape, self.params[0]) for spec in others)
        return [*(real(local(p)) for p in self.params), *zeros]

    def gradients(
        self, groups: Sequence[Group], of_weights: float
    ) -> tuple[list[Tensor | None], Hyper]:
        """Gradients, None of parameters that are absent from the step, and settings.

        of_weights: their own weight decay, in AdamW's units.

        Raises ValueError if a gradient is sparse.
        """
        count = len(self.graph.parameters)
        grads: list[Tensor | None] = [None] * count
        lr: list[float | Tensor] = [0.0] * count
        weight_decay: list[float | None] = [0.0] * count
        position = 0
        for group in groups:
            own_lr = _scalar(group["lr"])
            own_decay = group["weight_decay"]
            if group.get(OWN_DECAY) and own_decay == of_weights:
                own_decay = None
            for p in group["params"]:
                grad = local_gradient(p)
                if grad is not None and p.numel():
                    grads[position] = self._gradient(position, grad, group["maximize"])
                    lr[position], weight_decay[position] = own_lr, own_decay
                position += 1
        return grads, Hyper(lr, weight_decay, is_scheduled(groups))

    def _gradient(self, position: int, grad: Tensor, maximize: bool) -> Tensor:
        """A parameter's gradient as the rule takes it."""
        if grad.is_sparse:
            name = self.graph.parameters[position].name
            raise ValueError(
                f"NGOptimizer: '{name}': expected a dense gradient; got a sparse gradient: make "
                "the layer without sparse=True, or give this parameter to torch.optim.SparseAdam"
            )
        if grad.is_complex():
            grad = real(grad.resolve_conj())
        return -grad if maximize else grad

    def records(
        self,
        state: MutableMapping[Tensor, Record],
        rule: UpdateRule,
        grads: Sequence[Tensor | None],
    ) -> list[Record]:
        """The state of all parameters, begun where there is a gradient and none yet.

        state: of the optimizer.
        """
        records = self.present_records(state)
        new: dict[int, Tensor] = {}
        for i, p in enumerate(self.params):
            if grads[i] is not None and not records[i]:
                new[i] = real(local(p))
        if new:
            first = self.first_records(rule, new)
            for i in new:
                record = state[self.params[i]]
                record.update(first[i])
                # so that nothing keeps the first tensors alive
                records[i] = record
        return records

    def present_records(self, state: Mapping[Tensor, Record]) -> list[Record]:
        """The state of all parameters in the graph, empty where there is none."""
        others = len(self.graph.parameters) - len(self.params)
        return [state.get(p) or {} for p in self.params] + [{}] * others

    def first_records(
        self, rule: UpdateRule, values: Mapping[int, Tensor] | None = None
    ) -> list[Record]:
        """State as a rule begins it, without memory but of parameters whose values are
        given.

        values: by their positions.
        """
        known = values or {}
        shapes = [spec.shape for spec in self.graph.parameters]
        for i, p in enumerate(self.params):
            if is_dtensor(p):
                shapes[i] = local(p).shape
        params = [
            known[i] if i in known else torch.empty(shape, device="meta")
            for i, shape in enumerate(shapes)
        ]
        return rule.init(params)


def is_lazy(p: Tensor) -> bool:
    """As torch's own function, which `torch.compile` cannot follow."""
    return isinstance(p, UninitializedParameter)


def _zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=state_dtype(like), device=like.device)
    return zero.expand(shape)


def _shape(p: Tensor) -> torch.Size | None:
    return None if is_lazy(p) else p.shape


def _scalar(lr: float | Tensor) -> float | Tensor:
    """A tensor of one number without axes, which would broadcast."""
    return lr.reshape(()) if isinstance(lr, Tensor) else lr
