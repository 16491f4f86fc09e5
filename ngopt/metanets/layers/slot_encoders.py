"""What the metanets share at their ends: slots of an edge to one vector and back,
and node positions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ngopt.chunking import concatenated
from ngopt.graph.core import kind_code
from ngopt.metanets.graph_data.kernel_tiles import Tile, kernel_tiles


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
