"""Features of nodes and edges that depend on the graph alone: positions, kinds,
activations."""

from __future__ import annotations

from collections import Counter
from math import pi

import torch
from torch import Tensor

from ngopt.graph.core import BIAS_KINDS, NODE_KINDS, EdgeBlock, NeuralGraph, kind_code

# Functions that a network may apply to its neurons; 0 stands for none that is known,
# the last for any other.
ACTIVATIONS = (
    "none",
    "relu",
    "gelu",
    "silu",
    "tanh",
    "sigmoid",
    "leaky_relu",
    "elu",
    "softmax",
    "sin",
    "other",
)

ROLES = ("input", "hidden", "output")

FREQUENCIES = 4

POSITION_FEATURES = len(ROLES) + 2 * 2 * FREQUENCIES

# Of kernels, from the last on; earlier ones are not told apart.
SLOT_AXES = 3

SLOT_PERIOD = 16
"""Positions in the longest wave that tells them apart."""

SLOT_FEATURES = SLOT_AXES * 2 * FREQUENCIES


def node_positions(graph: NeuralGraph, like: Tensor) -> list[Tensor]:
    """Position features of the nodes of every group: what may tell neurons apart,
    and nothing that may not.

    They are the role of the group, sines and cosines of its relative depth, and for
    inputs, outputs and pinned nodes, which cannot be exchanged, sines and cosines of
    the relative place among all of them; the nodes of shared elements can be, together
    with the neurons that share them. A departure from the paper's learned vectors per
    layer and per input and output neuron, so that other depths and input sizes work.

    Returns one (n, POSITION_FEATURES) a group, or (1, POSITION_FEATURES) where all its
    nodes are alike, in the dtype and on the device of `like`; computed in float32 at
    least.
    """
    found, dtype = [], like.dtype
    precise = torch.promote_types(dtype, torch.float32)
    like = torch.empty((), dtype=precise, device=like.device)
    for group, places in zip(graph.groups, _places(graph, like), strict=True):
        role = like.new_tensor([[float(group.role == role) for role in ROLES]])
        depth = _waves(like.new_tensor([group.depth]))
        place = torch.zeros_like(depth) if places is None else _waves(places)
        n = len(place)
        own = torch.cat([role.expand(n, -1), depth.expand(n, -1), place], dim=-1)
        found.append(own.to(dtype))
    return found


def _places(graph: NeuralGraph, like: Tensor) -> list[Tensor | None]:
    """Where the nodes of every group are among all of its role in its network, (n,)
    from 0 to 1, or None."""
    members = graph.membership
    keys = list(zip(members, (group.role for group in graph.groups), strict=True))
    has_place = [
        g.is_fixed and g.kind not in ("parameter", *BIAS_KINDS) for g in graph.groups
    ]
    sizes: Counter = Counter()
    for key, group, fixed in zip(keys, graph.groups, has_place, strict=True):
        sizes[key] += group.size if fixed else 0
    lines = {
        key: torch.linspace(0, 1, n, dtype=like.dtype, device=like.device)
        for key, n in sizes.items()
    }
    found: list[Tensor | None] = []
    for key, group, fixed in zip(keys, graph.groups, has_place, strict=True):
        place = None
        if fixed:
            place, lines[key] = lines[key].tensor_split([group.size])
        found.append(place)
    return found


def kind_codes(graph: NeuralGraph, device: torch.device) -> Tensor:
    """The kind of every group, (groups,) int64, as its place in `NODE_KINDS`."""
    codes = [kind_code(group.kind, NODE_KINDS) for group in graph.groups]
    return torch.tensor(codes, device=device, dtype=torch.int64)


def activation_codes(graph: NeuralGraph, device: torch.device) -> Tensor:
    """The activation of every group, (groups,) int64,
    as its place in `ACTIVATIONS` (Kofinas et al. 2024, sec. 2.3)."""
    codes = [
        kind_code(group.activation or "none", ACTIVATIONS) for group in graph.groups
    ]
    return torch.tensor(codes, device=device)


def slot_positions(block: EdgeBlock, like: Tensor) -> Tensor | None:
    """Sines and cosines of the position in its kernel that all edges of a block have,
    as those of a parameter graph (Lim et al. 2024, appendix A): (1, SLOT_FEATURES), or
    None without one."""
    if not block.position:
        return None
    place = (0,) * SLOT_AXES + block.position
    own = torch.tensor(place[-SLOT_AXES:], dtype=like.dtype, device=like.device)
    relative = own * (2 / SLOT_PERIOD)
    return _waves(relative).flatten().unsqueeze(0)


def _waves(x: Tensor) -> Tensor:
    """(n,) -> (n, 2 * FREQUENCIES), with periods of 2, 1, 1/2, ..."""
    angles = (
        x.unsqueeze(-1)
        * pi
        * 2.0 ** torch.arange(FREQUENCIES, dtype=x.dtype, device=x.device)
    )
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
