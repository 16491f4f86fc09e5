"""Graphs, roles, and the operations of a step."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.shapes import NETWORKS as LARGE
from ngopt import NeuralGraph, NGOptimizer, build_graph, parameter_roles
from ngopt.graph.views.edge_list import to_edge_list
from tests.golden.networks import NETWORKS
from tests.golden.trajectories import SIX, digest
from tests.zoo import zoo_network

# Networks of `tests.zoo`, whose graphs are traced and inferred.
ZOO = (
    "gpt", "attention", "transformer", "tokens", "einsum", "windows", "perceiver",
    "residual", "grouped", "shuffled", "unet", "mbconv", "densenet", "film", "triplane",
    "gated", "tied autoencoder", "lora", "experts", "complex", "lstm", "gru", "cells",
    "bags", "mixture", "generator", "equilibrium",
)  # fmt: skip
GROUP = attrgetter(
    "name", "size", "kind", "role", "depth", "activation", "symmetry", "is_pinned"
)
VIEW = attrgetter("parameter", "shape", "strides", "offset")
BLOCK = attrgetter(
    "source", "target", "shape", "slot_shape", "kind", "source_index", "target_index"
)
BIAS = attrgetter("group", "slot_shape", "kind", "index")
ROLE = attrgetter("name", "role", "depth", "reads_input", "place", "fan_in")
# Views are left out below: operations that compute nothing, and allocations.
ALLOCATIONS = {
    "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty",
    "new_empty_strided", "_reshape_alias", "_unsafe_view",
}  # fmt: skip
LARGE_NAMES = "GPT-2 124M", "ResNet-50", "ViT-B/16"


def graphs() -> Iterator[tuple[str, dict[str, str]]]:
    """Hashes of groups, blocks, single edges, roles and summaries, by network."""
    for name in ZOO:
        model, example = zoo_network(name)
        yield f"{name}, traced", structure(build_graph(model, example), model, example)
        named = list(model.named_parameters())
        yield f"{name}, inferred", structure(build_graph(named), named)


def structure(graph: NeuralGraph, *source: Any) -> dict[str, str]:
    """source: what the graph was built of."""
    blocks = []
    for block in graph.blocks:
        view = None if block.view is None else VIEW(block.view)
        blocks.append((*BLOCK(block), view))
    biases = [(*BIAS(bias), VIEW(bias.view)) for bias in graph.biases]
    roles = []
    for role in parameter_roles(*source).values():
        matrices = [(VIEW(b.view), b.rows, b.columns) for b in role.blocks]
        roles.append((*ROLE(role), matrices))
    return {
        "groups": text_digest(list(map(GROUP, graph.groups))),
        "blocks": text_digest([blocks, biases, graph.unplaced]),
        "edges": digest(to_edge_list(graph)._asdict())[:16],
        "roles": text_digest(roles),
        "summary": text_digest(graph.summary()),
    }


def text_digest(values: Any) -> str:
    return hashlib.sha256(repr(_plain(values)).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Sequences as lists, so that names of classes do not matter."""
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


class Operations(TorchDispatchMode):
    """Counts the operations on the meta device by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        is_counted = not func.is_view and name not in ALLOCATIONS
        if is_counted and any(x.is_meta for x in tensors):
            self.counts[name] += 1
        return out


def operations(pattern: str) -> Iterator[tuple[str, dict[str, dict[str, int]]]]:
    """Numbers of operations by name: of steps 1 and 2, and of 10 late ones.

    pattern: part of the names of the cases.
    """
    for name in (*SIX, *LARGE_NAMES):
        for horizon in (1000, None):
            kind = "horizon" if horizon else "no horizon"
            case = f"operations, {name}, {kind}"
            if pattern in case:
                make = LARGE[name] if name in LARGE else NETWORKS[name].make
                with torch.device("meta"):
                    model = make()
                yield case, _operations(model, horizon)


def _operations(model: nn.Module, horizon: int | None) -> dict[str, dict[str, int]]:
    params = list(model.parameters())
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer = NGOptimizer(model.named_parameters(), total_steps=horizon)
    counts = {"step 1": _counted(optimizer, 1), "step 2": _counted(optimizer, 1)}
    for record in optimizer.state.values():
        record["step"].fill_(500)
    counts["late"] = _counted(optimizer, 10)
    return counts


def _counted(optimizer: NGOptimizer, steps: int) -> dict[str, int]:
    with Operations() as operations:
        for _ in range(steps):
            optimizer.step()
    return dict(sorted(operations.counts.items()))
