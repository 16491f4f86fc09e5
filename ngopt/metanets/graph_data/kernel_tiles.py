"""Kernels cut into tiles of the largest size that a metanet reads on one edge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple


class Tile(NamedTuple):
    """Slots of an edge: slots[k] is position positions[k] in a metanet's kernel."""

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
    shape = slot_shape or (1, 1)
    space = (prod(kernel),) if len(shape) == 1 else kernel
    sizes = (1,) * (len(shape) - len(space)) + space
    ranges_of_axes = []
    for length, size in zip(shape, sizes, strict=True):
        starts = range(0, length, size)
        ranges_of_axes.append([range(i, min(i + size, length)) for i in starts])
    tiles = []
    for box in product(*ranges_of_axes):
        centre = []
        for length, own in zip(space, box[-len(space) :], strict=True):
            start = (length - len(own)) // 2
            centre.append(range(start, start + len(own)))
        tiles.append(Tile(_flat_indices(shape, box), _flat_indices(space, centre)))
    return tuple(tiles)


def _flat_indices(shape: Sequence[int], box: Sequence[range]) -> tuple[int, ...]:
    """Indices of a box in a flattened array; compiled steps allow no numpy here."""
    found = [0]
    for length, numbers in zip(shape, box, strict=True):
        found = [i * length + number for i in found for number in numbers]
    return tuple(found)
