"""NGOptimizer: the learned optimizer as a `torch.optim.Optimizer`.

The class holds parameters and state; what a step computes is `ngopt.functional.update`.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ngopt.features import DECAYS
from ngopt.functional import Hyper, State, init_parameter, state_dtype, update
from ngopt.graph import NeuralGraph, ParameterSpec, build_graph
from ngopt.graph.infer import infer_graph
from ngopt.graph.topology import join_graphs, unconnected
from ngopt.models import Metanet
from ngopt.pretrained import load_pretrained, weights_hash

logger = logging.getLogger("ngopt")

MOMENTA = tuple(f"exp_avg_{i}" for i in range(len(DECAYS)))


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
        weights: the name of bundled weights, a weights file, or a metanet.
        total_steps: the number of steps that will be made, where it is known. The metanets of the
            paper do not use it.

    A parameter without a gradient is left out of a step: no update, its state stands still. State
    is, per parameter, `step` and one momentum for each of five decays (`exp_avg_0` to `exp_avg_4`),
    float32, or float64 for float64 parameters. The metanet runs in that precision. A complex
    parameter is optimized as pairs of real numbers.

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
        weights: str | os.PathLike | Metanet = "default",
        total_steps: int | None = None,
    ):
        if model is not None and graph is not None:
            raise ValueError("NGOptimizer: expected model or graph; got both")
        self.metanet = weights if isinstance(weights, Metanet) else load_pretrained(weights)
        self._metanets: dict[tuple[torch.dtype, torch.device], Metanet] = {}
        self._given_graph = graph if model is None else build_graph(model)
        self._given_ids = None if model is None else {id(p): i for i, p in enumerate(model.parameters())}
        self.graph = NeuralGraph((), (), (), ())
        self._positions: list[int] = []  # of the parameters in the graph; empty before it is built
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "total_steps": total_steps,
            "weights": weights_hash(self.metanet),
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
        params, grads, state, hyper = self._collect(members)
        deltas, new = update(grads, state, params, self.graph, self._metanet_for(members), hyper)
        for position, (p, _) in zip(self._positions, members, strict=True):
            delta = deltas[position]
            if delta is not None:
                real(p).add_(delta)
                self._keep(p, new.step[position], new.exp_avgs[position])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned; momenta keep their precision whatever the parameters' dtype.

        Raises ValueError, and changes nothing, if it was made with other weights or shapes.
        """
        self._check_state_dict(state_dict)
        super().load_state_dict(state_dict)
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, (p, _) in zip(numbers, self._members(), strict=True):
            saved = state_dict["state"].get(number, {})
            for key in MOMENTA:  # torch has cast them to the parameter's dtype
                if key in saved:
                    value = real(saved[key].detach()).to(p.device, state_dtype(real(p)), copy=True)
                    self.state[p][key] = declared(value, p)
            if "step" in saved:
                self.state[p]["step"] = torch.as_tensor(saved["step"], dtype=torch.float32).clone()

    def __getstate__(self) -> dict[str, Any]:
        derived = ("metanet", "graph", "_positions", "_given_graph")
        # Identities of tensors do not survive a copy: parameters added to it later become components.
        own = {key: self.__dict__[key] for key in derived}
        return {**super().__getstate__(), **own, "_given_ids": None, "_metanets": {}}

    def _keep(self, p: Tensor, step: Tensor, momenta: list[Tensor]) -> None:
        """Writes a parameter's state."""
        self.state[p].update(step=step, **{key: declared(m, p) for key, m in zip(MOMENTA, momenta, strict=True)})

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

    def _collect(self, members: list) -> tuple[list[Tensor], list[Tensor | None], State, Hyper]:
        """Arguments of `update`, for every parameter in the graph; those not optimized are absent."""
        like = members[0][0]
        size = len(self.graph.parameters)
        params = [like.new_zeros(()).expand(spec.shape) for spec in self.graph.parameters]
        grads: list[Tensor | None] = [None] * size
        state, lr, weight_decay = State([like.new_zeros(())] * size, [[]] * size), [0.0] * size, [0.0] * size
        for position, (p, group) in zip(self._positions, members, strict=True):
            params[position] = real(p)
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise ValueError(f"NGOptimizer: '{self.graph.parameters[position].name}': sparse gradient")
            own = self.state[p]
            if not own:
                self._keep(p, *init_parameter(real(p)))
            grads[position] = real(p.grad)
            state.step[position] = own["step"]
            state.exp_avgs[position] = [real(own[key]) for key in MOMENTA]
            lr[position], weight_decay[position] = group["lr"], group["weight_decay"]
        return params, grads, state, Hyper(lr, weight_decay)

    def _metanet_for(self, members: list) -> Metanet:
        """The metanet in the precision and on the device of the parameters."""
        dtype = max((state_dtype(real(p)) for p, _ in members), key=lambda d: d.itemsize)
        key = (dtype, members[0][0].device)
        if key not in self._metanets:
            self._metanets[key] = copy.deepcopy(self.metanet).to(device=key[1], dtype=dtype).eval()
        return self._metanets[key]

    def _check_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group in state_dict["param_groups"]:
            if group.get("weights") != self.defaults["weights"]:
                raise ValueError(
                    f"state_dict: made with weights {str(group.get('weights'))[:12]}; this optimizer has "
                    f"{self.defaults['weights'][:12]} (SHA-256)"
                )
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, (p, _), position in zip(numbers, self._members(), self._positions, strict=False):
            for key, value in state_dict["state"].get(number, {}).items():
                if key in MOMENTA and value.shape != p.shape:
                    name = self.graph.parameters[position].name
                    raise ValueError(
                        f"state_dict: '{key}' of '{name}': expected shape {tuple(p.shape)}; got {tuple(value.shape)}"
                    )


def real(x: Tensor) -> Tensor:
    """A view of complex numbers as real pairs on a last axis; other tensors as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def declared(x: Tensor, parameter: Tensor) -> Tensor:
    """The reverse of `real`, for values of a parameter."""
    return torch.view_as_complex(x.contiguous()) if parameter.is_complex() else x


def _check_hyper(group: dict[str, Any]) -> None:
    for key in ("lr", "weight_decay"):
        if not group[key] >= 0:
            raise ValueError(f"NGOptimizer: {key}: expected a number >= 0; got {group[key]}")
    steps = group["total_steps"]
    if steps is not None and not steps > 0:
        raise ValueError(f"NGOptimizer: total_steps: expected a number > 0 or None; got {steps}")
