"""What the metanets share at their ends: slots of an edge to one vector and back,
and node positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import pi, prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ngopt.chunking import concatenated
from ngopt.graph.groups_and_blocks import EdgeBlock
from ngopt.graph.kinds import BIAS_KINDS, kind_code
from ngopt.graph.neural_graph import NeuralGraph

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


class Tile(NamedTuple):
    """A piece of a kernel that fits a metanet's kernel:
    slots[k] of the edge is position positions[k] there."""

    slots: tuple[int, ...]
    positions: tuple[int, ...]


@lru_cache(maxsize=4096)
def kernel_tiles(
    slot_shape: tuple[int, ...], kernel: tuple[int, int]
) -> tuple[Tile, ...]:
    """Cuts the slots of an edge into tiles, from the first corner on;
    each becomes an edge of its own.

    slot_shape: spatial shape of the edge's slots. kernel: largest (height, width) of
    the metanet. Tiles that are smaller than the kernel lie in its centre (Kofinas et
    al. 2024, section 2.2). A one-dimensional kernel is cut into runs of height * width
    slots, a three-dimensional one into planes.
    """
    sizes = {0: (), 1: (prod(kernel),), 2: kernel}.get(
        len(slot_shape), (1,) * (len(slot_shape) - 2) + kernel
    )
    space = (prod(kernel),) if len(slot_shape) == 1 else kernel
    strides = [prod(slot_shape[i + 1 :]) for i in range(len(slot_shape))]
    tiles = []
    for corner in product(
        *(range(0, n, size) for n, size in zip(slot_shape, sizes, strict=True))
    ):
        extent = [
            min(size, n - c)
            for n, size, c in zip(slot_shape, sizes, corner, strict=True)
        ]
        offsets = list(product(*(range(n) for n in extent)))
        slots = tuple(
            sum((c + o) * s for c, o, s in zip(corner, offset, strides, strict=True))
            for offset in offsets
        )
        tiles.append(Tile(slots, _centred(extent, offsets, space)))
    return tuple(tiles)


def _centred(
    extent: list[int], offsets: list[tuple[int, ...]], space: tuple[int, ...]
) -> tuple[int, ...]:
    """Flat positions of a tile's offsets when the tile lies in the centre of `space`."""
    extent = (
        [1] * (len(space) - len(extent)) + extent[-len(space) :]
        if extent
        else [1] * len(space)
    )
    start = [(n - e) // 2 for n, e in zip(space, extent, strict=True)]
    positions = []
    for offset in offsets:
        local = [0] * (len(space) - len(offset)) + list(offset[-len(space) :])
        flat = 0
        for n, s, o in zip(space, start, local, strict=True):
            flat = flat * n + s + o
        positions.append(flat)
    return tuple(positions)


class KindFiLM(nn.Module):
    """A learned scale and shift for every kind of thing,
    so that one linear map does for all of them.

    kinds: names of the kinds; the last stands for any other. Shapes: scale and shift,
    (width,) each.
    """

    def __init__(self, kinds: Sequence[str], width: int):
        super().__init__()
        self.kinds = tuple(kinds)
        self.scales = nn.Parameter(1 + 0.1 * torch.randn(len(kinds), width))
        self.shifts = nn.Parameter(torch.randn(len(kinds), width))

    def forward(self, kind: str) -> tuple[Tensor, Tensor]:
        code = kind_code(kind, self.kinds)
        return self.scales[code], self.shifts[code]


def taken(x: Tensor, places: Sequence[int], axis: int) -> Tensor:
    """Elements at places along an axis; no index is copied to an accelerator."""
    if x.is_cpu:
        return x[(*[slice(None)] * (axis % x.dim()), list(places))]
    starts = [i for i, n in enumerate(places) if not i or n != places[i - 1] + 1]
    ends = [*starts[1:], len(places)]
    runs = zip(starts, ends, strict=True)
    pieces = [x.narrow(axis, places[a], b - a) for a, b in runs]
    return concatenated(pieces, axis)


class SlotMap(NamedTuple):
    """The linear map of one tile: slots that it takes or gives, None for all in order."""

    slots: list[int] | None
    weight: Tensor
    bias: Tensor


class SlotEncoder(nn.Module):
    """A linear map of the features of all slots of an edge or node,
    zero-padded to the largest kernel and flattened.

    The padding is not materialised: the matrix is sliced to the slots that exist. What
    it gives is scaled and shifted by the kind of the edge or node.

    Shapes: (*, slots, d_in) -> (*, tiles, width).
    """

    def __init__(
        self,
        d_in: int,
        width: int,
        kernel: tuple[int, int],
        kinds: Sequence[str],
    ):
        super().__init__()
        self.kernel, self.film = kernel, KindFiLM(kinds, width)
        linear = nn.Linear(d_in * prod(kernel), width)
        self.weight = nn.Parameter(
            linear.weight.detach().reshape(width, prod(kernel), d_in).clone()
        )
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def maps(self, slot_shape: tuple[int, ...], kind: str) -> list[SlotMap]:
        """One for every tile; scale and shift are in them,
        as they are smaller than what they give."""
        tiles = kernel_tiles(slot_shape, self.kernel)
        scale, shift = self.film(kind)
        weight = scale[:, None, None] * self.weight
        bias = scale * self.bias + shift
        found = []
        for tile in tiles:
            live = taken(weight, tile.positions, 1).flatten(1)
            found.append(SlotMap(_slots(tile, tiles), live, bias))
        return found

    def forward(self, values: Tensor, maps: Sequence[SlotMap]) -> Tensor:
        encoded = []
        for slots, weight, bias in maps:
            own = values if slots is None else taken(values, slots, -2)
            encoded.append(_linear(own.flatten(-2), weight, bias))
        return (
            encoded[0].unsqueeze(-2)
            if len(encoded) == 1
            else torch.stack(encoded, dim=-2)
        )


class SlotDecoder(nn.Module):
    """One vector of every tile to features of each of its slots; the reverse of
    `SlotEncoder`.

    The vector is first scaled and shifted by the kind of the edge or node.

    Shapes: (*, tiles, width) -> (*, slots, d_out).
    """

    def __init__(
        self,
        width: int,
        d_out: int,
        kernel: tuple[int, int],
        kinds: Sequence[str],
    ):
        super().__init__()
        self.kernel, self.d_out, self.film = (
            kernel,
            d_out,
            KindFiLM(kinds, width),
        )
        linear = nn.Linear(width, d_out * prod(kernel))
        self.weight = nn.Parameter(
            linear.weight.detach().reshape(prod(kernel), d_out, width).clone()
        )
        self.bias = nn.Parameter(
            linear.bias.detach().reshape(prod(kernel), d_out).clone()
        )

    def maps(self, slot_shape: tuple[int, ...], kind: str) -> list[SlotMap]:
        """One for every tile."""
        tiles = kernel_tiles(slot_shape, self.kernel)
        scale, shift = self.film(kind)
        found = []
        for tile in tiles:
            weight = taken(self.weight, tile.positions, 0).flatten(0, 1)
            bias = taken(self.bias, tile.positions, 0).flatten() + weight @ shift
            found.append(SlotMap(_slots(tile, tiles), weight * scale, bias))
        return found

    def forward(self, states: Tensor, maps: Sequence[SlotMap]) -> Tensor:
        pieces = []
        for k, (_, weight, bias) in enumerate(maps):
            out = nn.functional.linear(states[..., k, :], weight, bias)
            pieces.append(out.unflatten(-1, (-1, self.d_out)))
        if len(pieces) == 1:
            return pieces[0]
        order = [slot for one in maps if one.slots for slot in one.slots]
        back = sorted(range(len(order)), key=order.__getitem__)
        return taken(torch.cat(pieces, dim=-2), back, -2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map; on accelerators in one kernel, which adds the bias."""
    if x.is_cpu:
        return nn.functional.linear(x, weight, bias)
    rows = nn.functional.linear(x.flatten(0, -2), weight, bias)
    return rows.unflatten(0, x.shape[:-1])


def _slots(tile: Tile, tiles: Sequence[Tile]) -> list[int] | None:
    return None if len(tiles) == 1 else list(tile.slots)


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
