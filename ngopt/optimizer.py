"""NGOptimizer: the learned optimizer as a `torch.optim.Optimizer`.

The class holds parameters and state; what a step computes is the `update` of an `UpdateRule`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ngopt.functional import Hyper, Record, UpdateRule, state_dtype
from ngopt.graph import NeuralGraph, ParameterSpec, build_graph
from ngopt.graph.infer import infer_graph
from ngopt.graph.topology import join_graphs, unconnected
from ngopt.learned import LearnedOptimizer
from ngopt.models import Metanet
from ngopt.pretrained import load_pretrained, weights_hash

logger = logging.getLogger("ngopt")


class NGOptimizer(Optimizer):
    """A learned optimizer that sees the network as a graph; it needs no learning rate.

    Args:
        params: tensors, (name, tensor) pairs or parameter groups, as for every torch optimizer.
        lr: multiplies the learned update, so that every scheduler works. Per group.
        weight_decay: decoupled, in AdamW's units: each step multiplies the weights by
            1 - lr * s * weight_decay, where s = 1e-3 is the nominal step of the weights. Per group.
        model: the module that the parameters belong to; its graph is traced. Parameters of it that
            are not optimized stay in the graph, as edges without features and update.
        graph: a graph made by `build_graph` for these parameters, instead of `model`. Named
            parameters are found in it by name, others by their order.
        weights: the name of bundled weights, a weights file, a `LearnedOptimizer` or a metanet.
        total_steps: the number of steps that will be made, where it is known. The metanets of the
            paper do not use it.

    A parameter without a gradient is left out of a step: no update, its state stands still. State
    is, per parameter, the record of the rule that the weights stand for, in float32, or float64 for
    float64 parameters; of the paper's metanets `step` and one momentum for each of five decays
    (`exp_avg_0` to `exp_avg_4`). The metanet runs in that precision. A complex parameter is
    optimized, and its state kept, as pairs of real numbers.

    Raises ValueError if there are no parameters, an argument is out of range, the weights cannot be
    loaded, or the graph does not fit.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        *,
        model: nn.Module | None = None,
        graph: NeuralGraph | None = None,
        weights: str | os.PathLike | Metanet | LearnedOptimizer = "default",
        total_steps: int | None = None,
    ):
        if model is not None and graph is not None:
            raise ValueError("NGOptimizer: expected model or graph; got both")
        self.learned = _learned(weights)
        self._rule: tuple[Any, UpdateRule] | None = None  # the latest, and what it was bound for
        self._given_graph = graph if model is None else build_graph(model)
        self._given_ids = None if model is None else {id(p): i for i, p in enumerate(model.parameters())}
        self.graph = NeuralGraph((), (), (), ())
        self._positions: list[int] = []  # of the parameters in the graph; empty before it is built
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "total_steps": total_steps,
            "weights": weights_hash(self.learned),
        }
        _check_hyper(defaults)
        super().__init__(params, defaults)
        self._connect()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters and extends the graph by them; what was there keeps its state."""
        _check_hyper({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if self._positions:
            self._connect()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Makes one step; a closure re-evaluates the model first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = self._members()
        if all(p.grad is None for p, _ in members):
            return loss
        rule = self._bound(members)
        params, grads, state, hyper = self._collect(rule, members)
        owners = dict(zip(self._positions, (p for p, _ in members), strict=True))
        for position, delta, record in rule.update(grads, state, params, hyper):
            p = owners[position]
            real(p).add_(delta)
            self.state[p].update(record)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned; state keeps its dtypes whatever the parameters' dtype.

        Raises ValueError, and changes nothing, if it was made with other weights, or if a
        parameter's state lacks something or has another shape.
        """
        loaded: dict[str, Any] = {}

        def check(_: Optimizer, given: dict[str, Any]) -> None:
            self._check_state_dict(given)
            loaded.update(given)

        def restore(_: Optimizer) -> None:
            self._restore_dtypes(loaded)

        # between the user's hooks and what they are about
        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(_checked_mapping(state_dict))
        finally:
            before.remove()
            after.remove()

    def __getstate__(self) -> dict[str, Any]:
        derived = ("learned", "graph", "_positions", "_given_graph")
        # Identities of tensors do not survive a copy: parameters added to it later become components.
        own = {key: self.__dict__[key] for key in derived}
        return {**super().__getstate__(), **own, "_given_ids": None, "_rule": None}

    def _members(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """All parameters with their groups, in order."""
        return [(p, group) for group in self.param_groups for p in group["params"]]

    def _connect(self) -> None:
        """Builds `graph` for the present parameters, and `_positions`, where each of them is in it."""
        specs, ids = [], []
        for group in self.param_groups:
            names = group.get("param_names") or [f"parameter {len(specs) + i}" for i in range(len(group["params"]))]
            specs += [ParameterSpec.of(n, p) for n, p in zip(names, group["params"], strict=True)]
            ids += [id(p) for p in group["params"]]
        if self._given_graph is None:
            named = all("param_names" in group for group in self.param_groups)
            self.graph, self._positions = infer_graph(specs, named), list(range(len(specs)))
            self._report()
            return
        places = self._find(self._given_graph.parameters, specs, ids)
        extra = [spec for spec, place in zip(specs, places, strict=True) if place is None]
        self.graph = join_graphs(self._given_graph, infer_graph(extra)) if extra else self._given_graph
        numbers = iter(range(len(self._given_graph.parameters), len(self.graph.parameters)))
        self._positions = [next(numbers) if place is None else place for place in places]

    def _report(self) -> None:
        """Says what could not be connected, once for each graph."""
        loose = unconnected(self.graph)
        if loose:
            logger.info(
                "NGOptimizer: %d of %d parameters stay apart from the rest of the graph: %s. They are optimized all "
                "the same; with model= or graph= the optimizer sees how they are connected.",
                len(loose),
                len(self.graph.parameters),
                ", ".join(loose),
            )

    def _find(self, given: tuple[ParameterSpec, ...], specs: list[ParameterSpec], ids: list[int]) -> list[int | None]:
        """Positions of the parameters in the given graph; None for those that are not in it."""
        known = self._positions
        if self._given_ids is not None:
            return [self._given_ids.get(i) for i in ids]
        if known:  # parameters that were added later
            return [known[i] if i < len(known) and known[i] < len(given) else None for i in range(len(specs))]
        by_name = {spec.name: i for i, spec in enumerate(given)}
        if all(spec.name in by_name for spec in specs):
            found = [by_name[spec.name] for spec in specs]
        elif len(specs) == len(given):
            found = list(range(len(given)))
        else:
            raise ValueError(
                f"NGOptimizer: graph has {len(given)} parameters; got {len(specs)} parameters whose names are not in it"
            )
        for spec, i in zip(specs, found, strict=True):
            if spec.paired.shape != given[i].shape:
                raise ValueError(
                    f"NGOptimizer: '{spec.name}': graph expects shape {given[i].shape}; got {spec.paired.shape}"
                )
        return list(found)

    def _bound(self, members: list[tuple[Tensor, dict[str, Any]]]) -> UpdateRule:
        """The rule on the graph, in the precision and on the device of the parameters."""
        dtype = max((state_dtype(real(p)) for p, _ in members), key=lambda d: d.itemsize)
        wanted = (self.graph, members[0][1]["total_steps"], members[0][0].device, dtype)
        if self._rule is None or self._rule[0] != wanted:
            graph, total_steps, device, dtype = wanted
            rule = self.learned.bind(graph, total_steps, device=device, dtype=dtype)
            self._rule = wanted, rule
        return self._rule[1]

    def _collect(
        self, rule: UpdateRule, members: list[tuple[Tensor, dict[str, Any]]]
    ) -> tuple[list[Tensor], list[Tensor | None], list[Record], Hyper]:
        """Arguments of `update`, for every parameter in the graph; those not optimized are absent."""
        size = len(self.graph.parameters)
        zero = torch.zeros((), dtype=state_dtype(real(members[0][0])), device=members[0][0].device)
        params = [zero.expand(spec.shape) for spec in self.graph.parameters]
        grads: list[Tensor | None] = [None] * size
        state: list[Record] = [{}] * size
        lr, weight_decay = [0.0] * size, [0.0] * size
        new: dict[int, Tensor] = {}
        for position, (p, group) in zip(self._positions, members, strict=True):
            params[position] = real(p)
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise ValueError(f"NGOptimizer: '{self.graph.parameters[position].name}': sparse gradient")
            grads[position] = real(p.grad)
            lr[position], weight_decay[position] = group["lr"], group["weight_decay"]
            if not self.state.get(p):
                new[position] = p
            else:
                state[position] = self.state[p]
        if new:
            first = rule.init(self._stand_ins({i: params[i] for i in new}))
            for i, p in new.items():
                self.state[p].update(first[i])
                state[i] = first[i]
        # torch's schedulers leave this mark
        scheduled = any("initial_lr" in group for group in self.param_groups)
        return params, grads, state, Hyper(lr, weight_decay, scheduled)

    def _stand_ins(self, real_ones: Mapping[int, Tensor]) -> list[Tensor]:
        """For every parameter in the graph a tensor without memory, but for some at their positions."""
        specs = self.graph.parameters
        return [
            real_ones[i] if i in real_ones else torch.empty(spec.shape, device="meta") for i, spec in enumerate(specs)
        ]

    def _check_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError if it was made with other weights, or a record does not fit."""
        missing = sorted({"state", "param_groups"} - _checked_mapping(state_dict).keys())
        if missing:
            raise ValueError(f"state_dict: expected 'state' and 'param_groups'; got no {missing}")
        for group in state_dict["param_groups"]:
            if group.get("weights") != self.defaults["weights"]:
                raise ValueError(
                    f"state_dict: made with weights {str(group.get('weights'))[:12]}; this optimizer has "
                    f"{self.defaults['weights'][:12]} (SHA-256)"
                )
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        members = self._members()
        expected = self._bound(members).init(self._stand_ins({}))
        for number, position in zip(numbers, self._positions, strict=False):
            record = state_dict["state"].get(number)
            if record:
                name = self.graph.parameters[position].name
                _check_record(name, record, expected[position])

    def _restore_dtypes(self, state_dict: dict[str, Any]) -> None:
        """Undoes that torch has cast floating state to the parameter's dtype."""
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, (p, _) in zip(numbers, self._members(), strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    device = self.state[p][key].device
                    self.state[p][key] = value.detach().to(device, copy=True)


def real(x: Tensor) -> Tensor:
    """A view of complex numbers as real pairs on a last axis; other tensors as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def _learned(weights: str | os.PathLike | Metanet | LearnedOptimizer) -> LearnedOptimizer:
    if isinstance(weights, Metanet):
        return LearnedOptimizer(metanet=weights)
    return weights if isinstance(weights, LearnedOptimizer) else load_pretrained(weights)


def _checked_mapping(state_dict: Any) -> dict[str, Any]:
    if not isinstance(state_dict, dict):
        raise ValueError(f"state_dict: expected a dict; got {type(state_dict).__name__}")
    return state_dict


def _check_record(name: str, record: Any, expected: Record) -> None:
    """Raises ValueError if the state of a parameter lacks a tensor or one has another shape."""
    for key, like in expected.items():
        value = record.get(key) if isinstance(record, dict) else None
        if not isinstance(value, Tensor):
            got = "nothing" if value is None else type(value).__name__
            raise ValueError(f"state_dict: '{key}' of '{name}': expected a tensor; got {got}")
        if value.shape != like.shape:
            raise ValueError(
                f"state_dict: '{key}' of '{name}': expected shape {tuple(like.shape)}; got {tuple(value.shape)}"
            )


def _check_hyper(group: dict[str, Any]) -> None:
    for key in ("lr", "weight_decay"):
        if not group[key] >= 0:
            raise ValueError(f"NGOptimizer: {key}: expected a number >= 0; got {group[key]}")
    steps = group["total_steps"]
    if steps is not None and not steps > 0:
        raise ValueError(f"NGOptimizer: total_steps: expected a number > 0 or None; got {steps}")
