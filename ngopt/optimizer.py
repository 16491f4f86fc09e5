"""NGOptimizer: the learned optimizer as a `torch.optim.Optimizer`.

The class holds parameters and state; what a step computes is the `update` of an `UpdateRule`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ngopt.checks import check_hyper, check_once, check_record, checked_mapping
from ngopt.functional import AVERAGE, Hyper, Record, UpdateRule, state_dtype
from ngopt.graph import NeuralGraph
from ngopt.graph.topology import unconnected
from ngopt.learned import LearnedOptimizer
from ngopt.models import Metanet
from ngopt.pretrained import load_pretrained, weights_hash
from ngopt.wiring import (
    Given,
    Inferred,
    Source,
    Traced,
    Wiring,
    describe,
    group_tensors,
    without_autocast,
)

logger = logging.getLogger("ngopt")

HABITUAL_LR = 0.01  # a smaller lr is likely meant as a step size
# What a group may have beside our own settings: names, and what schedulers keep there.
OTHER_GROUP_KEYS = {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr"}
ONE_FOR_ALL = ("total_steps", "weights", "differentiable")


class NGOptimizer(Optimizer):
    """A learned optimizer that sees the network as a graph; it needs no learning rate.

    Args:
        params: tensors, (name, tensor) pairs or parameter groups, as for every torch optimizer.
        lr: multiplies the update. A scheduler of torch that is attached replaces the schedule of
            the weights. Per group.
        weight_decay: decoupled, in AdamW's units: each step multiplies the weights by
            1 - lr * s * weight_decay, where s = 1e-3 is the nominal step of the weights. Per group.
        model: the module that the parameters belong to. Its first training forward shows the
            inputs, from which the graph is traced before the first step. Parameters of it that are
            not optimized stay in the graph, as edges without features and update.
        graph: a graph made by `build_graph` for these parameters, instead of `model`. Named
            parameters are found in it by name, others by their order.
        weights: the name of bundled weights, a weights file, a `LearnedOptimizer` or a metanet.
        total_steps: the number of steps that will be made, where it is known: the step size then
            comes down to zero. Without it, `averaged` and `load_average` have the same effect. The
            paper's metanets do not know it; weights of them may say how their updates cool down
            (`ngopt.metanet_rule.Cooldown`).
        maximize: go up instead of down. Per group.
        compute_dtype: what a metanet computes in, such as torch.bfloat16; by default the dtype of
            its state. State and logarithms stay float32, and the default weights, which have no
            metanet, stay as they are.

    `graph` is what the optimizer sees, and `repr` says in one line how much of it is connected.

    The default is SOAP with one setting (`ngopt.base.soap`): with total_steps the step size rises over
    8 % of the steps and then falls to zero, and every step is a share of the weights' size.

    A parameter without a gradient is left out of a step: no update, its state stands still. State
    is, per parameter, the record of the rule that the weights stand for, in float32 (of the default,
    preconditioners of more than 512 rows in bfloat16), or float64 for float64 parameters. A complex
    parameter is optimized, and its state kept, as pairs of real numbers.

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
        maximize: bool = False,
        compute_dtype: torch.dtype | None = None,
    ):
        if model is not None and graph is not None:
            raise ValueError("NGOptimizer: expected model or graph; got both")
        if compute_dtype is not None and not compute_dtype.is_floating_point:
            raise ValueError(f"compute_dtype: expected a floating point dtype or None; got {compute_dtype}")
        self.learned, self.compute_dtype = _learned(weights), compute_dtype
        self._rule: tuple[Any, UpdateRule] | None = None  # the latest, and what it was bound for
        self._wiring: Wiring | None = None
        self._wired: list[tuple[Tensor, torch.Size | None]] = []  # what the wiring was made for
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "total_steps": total_steps,
            "maximize": maximize,
            "weights": weights_hash(self.learned),
        }
        check_hyper(defaults)
        if 0 < lr < HABITUAL_LR:
            warnings.warn(
                f"NGOptimizer: lr = {float(lr)} multiplies the learned update, so that training is "
                f"{1 / float(lr):.0f} times slower; 1.0, the default, needs no tuning",
                stacklevel=2,
            )
        super().__init__(params, defaults)
        self._source: Source = Inferred()
        if model is not None:
            self._source = Traced(model, self.param_groups)
        elif graph is not None:
            self._source = Given(graph, self.param_groups)

    @property
    def graph(self) -> NeuralGraph:
        """What the optimizer sees.

        With `model` it is traced from the inputs of the first training forward, before which it
        shows what can be told without them.
        """
        return self._connected().graph

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters and extends the graph by them; what was there keeps its state."""
        if isinstance(param_group, dict):
            check_hyper({**self.defaults, **param_group})
            self._check_keys(param_group)
            check_once(param_group)
        super().add_param_group(param_group)

    def __repr__(self) -> str:
        early = "graph: known after the first forward"
        line = early if self._is_early() else describe(self.graph)
        return f"{super().__repr__()}\n{line}"

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
        wiring = self._connected()
        self._source.settle()
        rule = self._bound(wiring.graph)
        with without_autocast({p.device for p, _ in members}):
            params, grads, state, hyper = self._collect(rule, wiring)
            owners = dict(zip(wiring.positions, group_tensors(self.param_groups), strict=True))
            for position, delta, record in rule.update(grads, state, params, hyper, in_place=True):
                p = owners[position]
                real(p).add_(delta)
                self.state[p].update(record)
        return loss

    @torch.no_grad()
    def load_average(self) -> None:
        """Writes the average of the weights so far into the parameters, for good.

        Call it when training without `total_steps` has ended; with `total_steps` the weights come
        to rest by themselves, and nothing is changed. Weights that keep no average (those of the
        paper) change nothing either.
        """
        for p in group_tensors(self.param_groups):
            average = self.state.get(p, {}).get(AVERAGE)
            if average is not None:
                real(p).copy_(average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are what `load_average` makes them within, and what they were after.

        >>> with opt.averaged():
        ...     accuracy = evaluate(model)
        """
        params = group_tensors(self.param_groups)
        kept = [(p, p.detach().clone()) for p in params if AVERAGE in self.state.get(p, {})]
        self.load_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in kept:
                    p.copy_(value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned; state keeps its dtypes whatever the parameters' dtype.

        A group that has the same parameter names in another order is matched by name.

        Raises ValueError, and changes nothing, if it was made with other weights, or if a
        parameter's state lacks something or has another shape.
        """
        loaded: dict[str, Any] = {}

        def check(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            given = self._in_our_order(given)
            self._check_state_dict(given)
            loaded.update(given)
            return given

        def restore(_: Optimizer) -> None:
            self._restore_dtypes(loaded)

        # between the user's hooks and what they are about
        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(checked_mapping(state_dict))
        finally:
            before.remove()
            after.remove()

    def __getstate__(self) -> dict[str, Any]:
        derived = ("learned", "compute_dtype", "_source", "_wiring", "_wired")
        own = {key: self.__dict__[key] for key in derived}
        return {**super().__getstate__(), **own, "_rule": None}

    def _members(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """All parameters with their groups, in order."""
        return [(p, group) for group in self.param_groups for p in group["params"]]

    def _is_early(self) -> bool:
        """Whether the first forward pass is still to show inputs, or shapes of a lazy module."""
        return self._source.awaits_forward or any(map(is_lazy, group_tensors(self.param_groups)))

    def _connected(self) -> Wiring:
        """The wiring of the present parameters; made anew when a group or a shape has changed."""
        params = group_tensors(self.param_groups)
        present = [(p, None if is_lazy(p) else p.shape) for p in params]
        if self._wiring is None or self._source.has_news or not _same(present, self._wired):
            wiring = self._source.wire(self.param_groups)
            self._check_records(wiring, [self.state.get(p) for p, _ in present])
            self._wiring, self._wired = wiring, present
            if unconnected(wiring.graph):
                logger.warning(
                    "NGOptimizer: %s. They are optimized all the same%s.",
                    describe(wiring.graph),
                    "" if self._source.exact else "; with model= their connections are seen",
                )
        return self._wiring

    def _bound(self, graph: NeuralGraph) -> UpdateRule:
        """The rule on a graph, in the precision and on the device of the parameters."""
        params = group_tensors(self.param_groups)
        widest = max((state_dtype(real(p)) for p in params), key=lambda d: d.itemsize)
        dtype = self.compute_dtype or widest
        wanted = (graph, self.param_groups[0]["total_steps"], params[0].device, dtype)
        if self._rule is None or self._rule[0] != wanted:
            graph, total_steps, device, dtype = wanted
            rule = self.learned.bind(graph, total_steps, device=device, dtype=dtype)
            self._rule = wanted, rule
        return self._rule[1]

    def _collect(
        self, rule: UpdateRule, wiring: Wiring
    ) -> tuple[list[Tensor], list[Tensor | None], list[Record], Hyper]:
        """Arguments of `update`, for every parameter in the graph; those not optimized are absent."""
        members, specs = self._members(), wiring.graph.parameters
        first = members[0][0]
        zero = torch.zeros((), dtype=state_dtype(real(first)), device=first.device)
        own = {i: real(p) for i, (p, _) in zip(wiring.positions, members, strict=True)}
        params = [own[i] if i in own else zero.expand(s.shape) for i, s in enumerate(specs)]
        grads: list[Tensor | None] = [None] * len(specs)
        lr: list[float | Tensor] = [0.0] * len(specs)
        weight_decay = [0.0] * len(specs)
        for group in self.param_groups:
            check_hyper(group)
        for position, (p, group) in zip(wiring.positions, members, strict=True):
            if p.grad is not None:
                grads[position] = _gradient(p, specs[position].name, group["maximize"])
                lr[position], weight_decay[position] = _scalar(group["lr"]), group["weight_decay"]
        state = self._records(rule, wiring, params, grads)
        # torch's schedulers leave this mark
        scheduled = any("initial_lr" in group for group in self.param_groups)
        return params, grads, state, Hyper(lr, weight_decay, scheduled)

    def _records(
        self,
        rule: UpdateRule,
        wiring: Wiring,
        params: list[Tensor],
        grads: list[Tensor | None],
    ) -> list[Record]:
        """The state of all parameters, begun where there is a gradient and none yet."""
        records: list[Record] = [{}] * len(params)
        new: dict[int, Tensor] = {}
        for position, (p, _) in zip(wiring.positions, self._members(), strict=True):
            records[position] = self.state.get(p) or {}
            if grads[position] is not None and not records[position]:
                new[position] = p
        if new:
            first = rule.init(_stand_ins(wiring.graph, {i: params[i] for i in new}))
            for i, p in new.items():
                self.state[p].update(first[i])
                records[i] = self.state[p]  # so that nothing keeps the first tensors alive
        return records

    def _in_our_order(self, state_dict: Any) -> dict[str, Any]:
        """A state_dict whose groups list their parameters as ours do, where the names allow it."""
        groups = []
        given = checked_mapping(state_dict).get("param_groups", [])
        for group, own in zip_longest(given, self.param_groups):
            names, wanted = (group or {}).get("param_names"), (own or {}).get("param_names")
            if names and wanted and names != wanted and sorted(names) == sorted(wanted):
                numbers = dict(zip(names, group["params"], strict=True))
                params = [numbers[name] for name in wanted]
                group = {**group, "params": params, "param_names": wanted}
            groups.append(group)
        return {**state_dict, "param_groups": groups[: len(given)]} if given else state_dict

    def _check_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError if it was made with other weights, or a record does not fit."""
        missing = sorted({"state", "param_groups"} - checked_mapping(state_dict).keys())
        if missing:
            raise ValueError(f"state_dict: expected 'state' and 'param_groups'; got no {missing}")
        for group in state_dict["param_groups"]:
            if group.get("weights") != self.defaults["weights"]:
                raise ValueError(
                    f"state_dict: made with weights {str(group.get('weights'))[:12]}; this optimizer has "
                    f"{self.defaults['weights'][:12]} (SHA-256)"
                )
        for number, record in checked_mapping(state_dict["state"], "state").items():
            checked_mapping(record, f"state of {number}")
        if not self._is_early():  # else they are checked when the graph is known
            numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
            records = [state_dict["state"].get(number) for number in numbers]
            self._check_records(self._connected(), records)

    def _check_records(self, wiring: Wiring, records: Sequence[Any]) -> None:
        """Raises ValueError if a parameter's state is not what the rule has for it."""
        if not any(records):
            return
        expected = self._bound(wiring.graph).init(_stand_ins(wiring.graph, {}))
        for position, record in zip(wiring.positions, records, strict=False):
            if record:
                name = wiring.graph.parameters[position].name
                check_record(name, record, expected[position])

    def _check_keys(self, group: dict[str, Any]) -> None:
        """Raises ValueError for settings that groups do not have."""
        for key in group.keys() - OTHER_GROUP_KEYS:
            if key not in self.defaults:
                known = ", ".join(k for k in self.defaults if k not in ONE_FOR_ALL)
                raise ValueError(f"NGOptimizer: parameter group: expected {known}; got '{key}'")
            if key in ONE_FOR_ALL and group[key] != self.defaults[key]:
                raise ValueError(
                    f"NGOptimizer: parameter group: '{key}' is one for all groups, "
                    f"{self.defaults[key]}; got {group[key]}"
                )

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


def _stand_ins(graph: NeuralGraph, real_ones: Mapping[int, Tensor]) -> list[Tensor]:
    """For every parameter in the graph a tensor without memory, but for some at their positions."""
    return [
        real_ones[i] if i in real_ones else torch.empty(spec.shape, device="meta")
        for i, spec in enumerate(graph.parameters)
    ]


def _same(found: Sequence[tuple[Tensor, Any]], expected: Sequence[tuple[Tensor, Any]]) -> bool:
    """Whether these are the same tensors in the same shapes."""
    return len(found) == len(expected) and all(
        p is q and shape == other for (p, shape), (q, other) in zip(found, expected, strict=True)
    )


def _gradient(p: Tensor, name: str, maximize: bool) -> Tensor:
    """A parameter's gradient as the rule takes it."""
    assert p.grad is not None
    if p.grad.is_sparse:
        raise ValueError(
            f"NGOptimizer: '{name}': expected a dense gradient; got a sparse gradient: make the "
            "layer without sparse=True, or give this parameter to torch.optim.SparseAdam"
        )
    return -real(p.grad) if maximize else real(p.grad)


def _scalar(lr: float | Tensor) -> float | Tensor:
    """A tensor of one number without axes, which would broadcast."""
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def _learned(weights: Any) -> LearnedOptimizer:
    if isinstance(weights, LearnedOptimizer):
        return weights
    if isinstance(weights, Metanet):
        return LearnedOptimizer(metanet=weights)
    if not isinstance(weights, str | os.PathLike):
        raise ValueError(
            "NGOptimizer: weights: expected a name, a path, a LearnedOptimizer or a metanet; got "
            f"{type(weights).__name__}"
        )
    return load_pretrained(weights)
