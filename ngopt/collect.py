"""What an optimizer's groups give to a rule, for every parameter in the graph."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ngopt.functional import Hyper, Record, UpdateRule, state_dtype
from ngopt.graph import NeuralGraph
from ngopt.wiring import Wiring

Group = dict[str, Any]


def collect_params(owners: Mapping[int, Tensor], graph: NeuralGraph) -> list[Tensor]:
    """Real values of all parameters; zeros, which take no memory, of those not optimized.

    owners: the optimizer's parameters by their positions in the graph.
    """
    some = next(iter(owners.values()))
    zero = torch.zeros((), dtype=state_dtype(real(some)), device=some.device)
    found = []
    for i, spec in enumerate(graph.parameters):
        found.append(real(owners[i]) if i in owners else zero.expand(spec.shape))
    return found


def collect_grads(
    groups: Sequence[Group],
    wiring: Wiring,
) -> tuple[list[Tensor | None], Hyper]:
    """Gradients, None of parameters that are absent from the step, and settings.

    Raises ValueError if a gradient is sparse.
    """
    specs = wiring.graph.parameters
    grads: list[Tensor | None] = [None] * len(specs)
    lr: list[float | Tensor] = [0.0] * len(specs)
    weight_decay = [0.0] * len(specs)
    positions = iter(wiring.positions)
    for group in groups:
        for p in group["params"]:
            i, grad = next(positions), p.grad
            if grad is not None and p.numel():
                grads[i] = _gradient(grad, specs[i].name, group["maximize"])
                lr[i], weight_decay[i] = _scalar(group["lr"]), group["weight_decay"]
    # torch's schedulers leave this mark
    scheduled = any("initial_lr" in group for group in groups)
    return grads, Hyper(lr, weight_decay, scheduled)


def collect_records(
    state: MutableMapping[Tensor, Record],
    owners: Mapping[int, Tensor],
    rule: UpdateRule,
    graph: NeuralGraph,
    grads: Sequence[Tensor | None],
) -> list[Record]:
    """The state of all parameters, begun where there is a gradient and none yet.

    state: of the optimizer. owners: its parameters by their positions in the graph.
    """
    records: list[Record] = [{}] * len(grads)
    new: dict[int, Tensor] = {}
    for i, p in owners.items():
        records[i] = state.get(p) or {}
        if grads[i] is not None and not records[i]:
            new[i] = real(p)
    if new:
        first = rule.init(stand_ins(graph, new))
        for i in new:
            state[owners[i]].update(first[i])
            records[i] = state[owners[i]]  # so that nothing keeps the first tensors alive
    return records


def real(x: Tensor) -> Tensor:
    """A view of complex numbers as real pairs on a last axis; other tensors as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def stand_ins(graph: NeuralGraph, real_ones: Mapping[int, Tensor]) -> list[Tensor]:
    """For every parameter in the graph a tensor without memory, but for some at their positions."""
    found = []
    for i, spec in enumerate(graph.parameters):
        found.append(real_ones[i] if i in real_ones else torch.empty(spec.shape, device="meta"))
    return found


def _gradient(grad: Tensor, name: str, maximize: bool) -> Tensor:
    """A parameter's gradient as the rule takes it."""
    if grad.is_sparse:
        raise ValueError(
            f"NGOptimizer: '{name}': expected a dense gradient; got a sparse gradient: make the "
            "layer without sparse=True, or give this parameter to torch.optim.SparseAdam"
        )
    return -real(grad) if maximize else real(grad)


def _scalar(lr: float | Tensor) -> float | Tensor:
    """A tensor of one number without axes, which would broadcast."""
    return lr.reshape(()) if isinstance(lr, Tensor) else lr
