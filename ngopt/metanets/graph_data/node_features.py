"""Features of nodes and edges that depend on the graph alone: positions, kinds,
activations."""

from collections import defaultdict
from math import pi

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import EdgeBlock
from ngopt.graph.kinds import BIAS_KINDS, NODE_KINDS, kind_code
from ngopt.graph.neural_graph import NeuralGraph

# Functions that a network may apply to its neurons; the first stands for none or
# unknown, the last for any other.
ACTIVATIONS = """
    none relu gelu silu tanh sigmoid leaky_relu elu softmax sin other
""".split()

ROLES = ("input", "hidden", "output")

FREQUENCIES = 4

POSITION_FEATURES = len(ROLES) + 2 * 2 * FREQUENCIES

# Axes of kernels that have positions, the last ones.
SLOT_AXES = 3

SLOT_PERIOD = 16
"""Positions in the period of the longest wave."""

SLOT_FEATURES = SLOT_AXES * 2 * FREQUENCIES


def node_positions(graph: NeuralGraph, like: Tensor) -> list[Tensor]:
    """Position features of the nodes of every group. They differ only between neurons
    that cannot be exchanged.

    They are the role of the group, sines and cosines of its relative depth, and for
    inputs, outputs and pinned nodes sines and cosines of the relative place among all
    of them. Nodes of shared elements have no place: they are exchanged together with
    the neurons that share them. A departure from the paper's learned vectors per layer
    and per input and output neuron, so that other depths and input sizes work.

    Returns one (n, POSITION_FEATURES) a group, or (1, POSITION_FEATURES) where all its
    nodes are alike, in the dtype and on the device of `like`; computed in float32 at
    least.
    """
    precise = torch.promote_types(like.dtype, torch.float32)
    exact = torch.empty((), dtype=precise, device=like.device)
    positions = []
    all_places = _places(graph, exact)
    for group, places in zip(graph.groups, all_places, strict=True):
        role = exact.new_tensor([[float(group.role == role) for role in ROLES]])
        depth = _waves(exact.new_tensor([group.depth]))
        place = torch.zeros_like(depth) if places is None else _waves(places)
        n = len(place)
        columns = [role.expand(n, -1), depth.expand(n, -1), place]
        positions.append(torch.cat(columns, dim=-1).to(like.dtype))
    return positions


def _places(graph: NeuralGraph, like: Tensor) -> list[Tensor | None]:
    """Places of the nodes of every group among all of its role in its network, (n,)
    from 0 to 1; None for nodes without a place."""
    placed: dict[tuple[int, str], list[int]] = defaultdict(list)
    for i, group in enumerate(graph.groups):
        if group.is_fixed and group.kind not in ("parameter", *BIAS_KINDS):
            placed[graph.membership[i], group.role].append(i)
    places: list[Tensor | None] = [None] * len(graph.groups)
    for groups in placed.values():
        sizes = [graph.groups[i].size for i in groups]
        n = sum(sizes)
        together = torch.linspace(0, 1, n, dtype=like.dtype, device=like.device)
        for i, place in zip(groups, together.split(sizes), strict=True):
            places[i] = place
    return places


def node_codes(graph: NeuralGraph, device: torch.device) -> tuple[Tensor, ...]:
    """The kind and the activation of every group, (groups,) int64 each, as places in
    `NODE_KINDS` and `ACTIVATIONS` (Kofinas et al. 2024, section 2.3)."""
    kinds = [kind_code(group.kind, NODE_KINDS) for group in graph.groups]
    functions = [group.activation or "none" for group in graph.groups]
    activations = [kind_code(function, ACTIVATIONS) for function in functions]
    return torch.tensor((kinds, activations), device=device, dtype=torch.int64).unbind()


def slot_positions(block: EdgeBlock, like: Tensor) -> Tensor | None:
    """Sines and cosines of the position in its kernel that all edges of a block have,
    as those of a parameter graph (Lim et al. 2024, appendix A): (1, SLOT_FEATURES), or
    None without one."""
    if not block.position:
        return None
    position = ((0,) * SLOT_AXES + block.position)[-SLOT_AXES:]
    place = torch.tensor(position, dtype=like.dtype, device=like.device)
    return _waves(place * (2 / SLOT_PERIOD)).view(1, -1)


def _waves(x: Tensor) -> Tensor:
    """(n,) -> (n, 2 * FREQUENCIES), with periods of 2, 1, 1/2, ..."""
    frequencies = 2.0 ** torch.arange(FREQUENCIES, dtype=x.dtype, device=x.device)
    angles = x.unsqueeze(-1) * pi * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
