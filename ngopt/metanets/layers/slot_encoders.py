"""Linear maps between the slots of an edge (kernel positions) and one vector."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ngopt.chunking import concatenated
from ngopt.graph.groups_and_blocks import Bias, EdgeBlock
from ngopt.graph.kinds import kind_code
from ngopt.metanets.graph_data.graph_tensors import Kernel, kernel_tiles
from ngopt.metanets.layers.graph_layer import flat_linear


class KindFiLM(nn.Module):
    """A learned scale and shift, (width,) each, for every kind of edge or node.

    kinds: names of the kinds; the last stands for any other.
    """

    def __init__(self, kinds: Sequence[str], width: int):
        super().__init__()
        self.kinds = tuple(kinds)
        self.scales = nn.Parameter(1 + 0.1 * torch.randn(len(kinds), width))
        self.shifts = nn.Parameter(torch.randn(len(kinds), width))

    def forward(self, kind: str) -> tuple[Tensor, Tensor]:
        code = kind_code(kind, self.kinds)
        return self.scales[code], self.shifts[code]


class SlotMap(NamedTuple):
    """The linear map of one tile. slots: that it reads or writes; None for all in
    order."""

    slots: list[int] | None
    weight: Tensor
    bias: Tensor


class SlotEncoder(nn.Module):
    """A linear map of the features of all slots of an edge or node,
    zero-padded to the largest kernel and flattened.

    The padding is not materialised: the matrix is sliced to the slots that exist. The
    result is scaled and shifted by the kind of the edge or node.

    Shapes: (*, slots, d_in) -> (*, tiles, width).
    """

    def __init__(self, d_in: int, width: int, kernel: Kernel, kinds: Sequence[str]):
        super().__init__()
        self.kernel = kernel
        self.film = KindFiLM(kinds, width)
        layer = nn.Linear(d_in * prod(kernel), width)
        weight = layer.weight.detach().reshape(width, prod(kernel), d_in)
        self.weight = nn.Parameter(weight.clone())
        self.bias = layer.bias

    def maps(self, slot_shape: tuple[int, ...], kind: str) -> list[SlotMap]:
        """One for every tile. Scale and shift are in the weights, which are smaller
        than the results."""
        tiles = kernel_tiles(slot_shape, self.kernel)
        scale, shift = self.film(kind)
        weight = scale[:, None, None] * self.weight
        bias = scale * self.bias + shift
        maps = []
        for tile in tiles:
            of_tile = take(weight, tile.positions, 1).flatten(1)
            slots = None if len(tiles) == 1 else list(tile.slots)
            maps.append(SlotMap(slots, of_tile, bias))
        return maps

    def forward(self, values: Tensor, maps: Sequence[SlotMap]) -> Tensor:
        encoded = []
        for slots, weight, bias in maps:
            of_tile = values if slots is None else take(values, slots, -2)
            encoded.append(flat_linear(of_tile.flatten(-2), weight, bias))
        if len(encoded) == 1:
            return encoded[0].unsqueeze(-2)
        return torch.stack(encoded, dim=-2)


class SlotDecoder(nn.Module):
    """One vector of every tile to features of each of its slots; the reverse of
    `SlotEncoder`.

    The vector is first scaled and shifted by the kind of the edge or node.

    Shapes: (*, tiles, width) -> (*, slots, d_out).
    """

    def __init__(self, width: int, d_out: int, kernel: Kernel, kinds: Sequence[str]):
        super().__init__()
        self.kernel = kernel
        self.d_out = d_out
        self.film = KindFiLM(kinds, width)
        layer = nn.Linear(width, d_out * prod(kernel))
        weight = layer.weight.detach().reshape(prod(kernel), d_out, width)
        self.weight = nn.Parameter(weight.clone())
        bias = layer.bias.detach().reshape(prod(kernel), d_out)
        self.bias = nn.Parameter(bias.clone())

    def maps(self, slot_shape: tuple[int, ...], kind: str) -> list[SlotMap]:
        """One for every tile."""
        tiles = kernel_tiles(slot_shape, self.kernel)
        scale, shift = self.film(kind)
        maps = []
        for tile in tiles:
            weight = take(self.weight, tile.positions, 0).flatten(0, 1)
            bias = take(self.bias, tile.positions, 0).flatten()
            bias = bias + weight @ shift
            slots = None if len(tiles) == 1 else list(tile.slots)
            maps.append(SlotMap(slots, weight * scale, bias))
        return maps

    def forward(self, states: Tensor, maps: Sequence[SlotMap]) -> Tensor:
        pieces, order = [], []
        for k, (slots, weight, bias) in enumerate(maps):
            out = flat_linear(states[..., k, :], weight, bias)
            pieces.append(out.unflatten(-1, (len(weight) // self.d_out, self.d_out)))
            order += slots or ()
        if len(pieces) == 1:
            return pieces[0]
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return take(torch.cat(pieces, dim=-2), inverse, -2)


def maps_of(
    coder: SlotEncoder | SlotDecoder, parts: Sequence[Bias | EdgeBlock]
) -> list[list[SlotMap]]:
    """The maps of every part; those of equal kernels and kinds are made once."""
    keys = [(part.slot_shape, part.kind) for part in parts]
    maps = {key: coder.maps(*key) for key in dict.fromkeys(keys)}
    return [maps[key] for key in keys]


def take(x: Tensor, places: Sequence[int], axis: int) -> Tensor:
    """Elements at places along an axis; no index is copied to an accelerator."""
    if x.is_cpu or not places:
        before = [slice(None)] * (axis % x.dim())
        return x[(*before, list(places))]
    runs: list[list[int]] = []  # of consecutive places
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return concatenated([x.narrow(axis, run[0], len(run)) for run in runs], axis)
