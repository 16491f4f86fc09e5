"""The parameters of an optimizer in the order of a graph, for an update rule."""

from collections.abc import Mapping, Sequence
from operator import is_

import torch
from torch import Tensor

from ngopt import functional
from ngopt.functional import Gradients, Hyper, Record, State, UpdateRule
from ngopt.graph.transforms import reordered
from ngopt.optimizer.graph_source import OrderedGraph
from ngopt.optimizer.param_groups import OWN_DECAY, Group, is_lazy, is_scheduled
from ngopt.shard_layout import is_dtensor, local, local_gradient, real


class GraphParameters:
    """An optimizer's parameters with their graph.

    params: in the order of the groups. network: the graph, its parameters in the
    network's order. graph: the same with `params` first, as rules need it; parameters
    after these are not optimized.
    """

    def __init__(self, ordered: OrderedGraph, params: Sequence[Tensor]):
        self.network, self._order = ordered
        self.graph = reordered(self.network, self._order)
        self.params = params
        self._shapes = list(map(_shape, params))
        # whether gradients and values of all parameters are what a rule reads
        self._is_plain = all(map(_is_plain, params))

    def are(self, params: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors in the same shapes."""
        are_equal = all(map(is_, params, self.params))
        if len(params) != len(self.params) or not are_equal:
            return False
        if None in self._shapes:
            return list(map(_shape, params)) == self._shapes
        return [p.shape for p in params] == self._shapes

    def names(self) -> list[str]:
        return [spec.name for spec in self.graph.parameters[: len(self.params)]]

    def check_shapes(self, before: "GraphParameters", state: State) -> None:
        """Raises ValueError if the shape of a parameter with a state has changed."""
        shapes = dict(zip(map(id, before.params), before._shapes, strict=True))
        rows = zip(self.params, self._shapes, self.names(), strict=True)
        for p, shape, name in rows:
            old = shapes.get(id(p), shape)
            if old is not None and old != shape and state.get(p):
                raise ValueError(
                    f"NGOptimizer: '{name}': expected shape {tuple(old)}, as in "
                    f"earlier steps; got {tuple(p.shape)}. Delete its state, `del "
                    "optimizer.state[parameter]`, or make a new optimizer."
                )

    def values(self) -> list[Tensor]:
        """Real values of all parameters in the graph.

        Zeros, which take no memory, of those that are not optimized.
        """
        values = list(self.params)
        if not self._is_plain:
            values = [real(local(p)) for p in self.params]
        like = self.params[0]
        for spec in self.graph.parameters[len(values) :]:
            dtype = functional.state_dtype(like)
            zero = torch.zeros((), dtype=dtype, device=like.device)
            values.append(zero.expand(spec.shape))
        return values

    def gradients(
        self, groups: Sequence[Group], own_decay: float
    ) -> tuple[list[Tensor | None], Hyper]:
        """Gradients, None of parameters that are absent from the step, and settings.

        own_decay: the rule's own weight decay, in AdamW's units.

        Raises ValueError if a gradient is sparse.
        """
        count = len(self.graph.parameters)
        grads: list[Tensor | None] = [None] * count
        lr: list[float | Tensor] = [0.0] * count
        weight_decay: list[float | None] = [0.0] * count
        position = 0
        for group in groups:
            group_lr = group["lr"]
            if isinstance(group_lr, Tensor):
                group_lr = group_lr.reshape(())  # other shapes would broadcast
            group_decay = group["weight_decay"]
            if group.get(OWN_DECAY) and group_decay == own_decay:
                group_decay = None
            for p in group["params"]:
                grad = p.grad if self._is_plain else local_gradient(p)
                if grad is not None and (self._is_plain or p.numel()):
                    if grad.is_sparse or group["maximize"] or not self._is_plain:
                        grad = self._gradient(position, grad, group["maximize"])
                    grads[position] = grad
                    lr[position] = group_lr
                    weight_decay[position] = group_decay
                position += 1
        return grads, Hyper(lr, weight_decay, is_scheduled(groups))

    def _gradient(self, position: int, grad: Tensor, maximize: bool) -> Tensor:
        """A dense real gradient to descend along."""
        if grad.is_sparse:
            name = self.graph.parameters[position].name
            raise ValueError(
                f"NGOptimizer: '{name}': expected a dense gradient; got a sparse "
                "gradient. Make the layer without sparse=True, or pass this parameter "
                "to torch.optim.SparseAdam."
            )
        if grad.is_complex():
            grad = real(grad.resolve_conj())
        return -grad if maximize else grad

    def records(self, state: State) -> list[Record]:
        """The state of all parameters in the graph, empty where there is none."""
        records = [state.get(p) or {} for p in self.params]
        others = len(self.graph.parameters) - len(records)
        return records + [{}] * others

    def records_in_network(self, state: State) -> list[Record]:
        """The same in the order of `network.parameters`."""
        records = self.records(state)
        by_position = dict(zip(self._order, records, strict=True))
        return [by_position[i] for i in range(len(records))]

    def records_for_step(
        self, state: State, rule: UpdateRule, grads: Gradients
    ) -> list[Record]:
        """The same, initialized in `state` for parameters with a first gradient."""
        records = self.records(state)
        new: dict[int, Tensor] = {}
        for i, p in enumerate(self.params):
            if grads[i] is not None and not records[i]:
                new[i] = real(local(p))
        if new:
            initial = self.initial_records(rule, new)
            for i in new:
                record = state[self.params[i]]
                record.update(initial[i])
                # the initial dict is dropped, so that nothing else keeps its tensors
                records[i] = record
        return records

    def initial_records(
        self, rule: UpdateRule, values: Mapping[int, Tensor] | None = None
    ) -> list[Record]:
        """The initial state of all parameters, on the meta device by default.

        values: of parameters, by position, whose initial state takes memory.
        """
        params = []
        for i, spec in enumerate(self.graph.parameters):
            shape = spec.shape
            if i < len(self.params) and is_dtensor(self.params[i]):
                shape = local(self.params[i]).shape
            if values is not None and i in values:
                params.append(values[i])
            else:
                params.append(torch.empty(shape, device="meta"))
        return rule.init(params)

    def update(
        self, state: State, rule: UpdateRule, grads: Gradients, hyper: Hyper
    ) -> None:
        """One step, which changes parameters and state in place."""
        is_compiling = torch.compiler.is_compiling()
        if is_compiling and not rule.may_be_traced(grads, self.records(state)):
            self._update_uncompiled(state, rule, grads, hyper)
        else:
            self._update(state, rule, grads, hyper)

    def _update(
        self, state: State, rule: UpdateRule, grads: Gradients, hyper: Hyper
    ) -> None:
        records = self.records_for_step(state, rule, grads)
        params = self.values()
        for changes in rule.update(grads, records, params, hyper, in_place=True):
            functional.apply(changes, params)
            for position, record in [(c.position, c.record) for c in changes]:
                if records[position] is not record:
                    state[self.params[position]].update(record)
            changes.clear()  # frees their memory before the next ones are made

    _update_uncompiled = functional.uncompiled(_update)


def _is_plain(p: Tensor) -> bool:
    is_other = is_lazy(p) or is_dtensor(p) or p.is_complex()
    return not is_other and p.numel() > 0


def _shape(p: Tensor) -> torch.Size | None:
    return None if is_lazy(p) else p.shape
