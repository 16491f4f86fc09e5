"""Kernels cut into tiles of the largest size that a metanet reads on one edge."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple


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
