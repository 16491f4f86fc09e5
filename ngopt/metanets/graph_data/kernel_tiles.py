"""Kernels cut into tiles of the largest size that a metanet reads on one edge."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np


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
    slots = np.arange(prod(shape)).reshape(shape)
    positions = np.arange(prod(space)).reshape(space)
    cuts_of_axes = []
    for length, size in zip(shape, sizes, strict=True):
        cuts_of_axes.append([slice(i, i + size) for i in range(0, length, size)])
    tiles = []
    for cuts in product(*cuts_of_axes):
        own = slots[cuts]
        centre = []
        for length, size in zip(space, own.shape[-len(space) :], strict=True):
            start = (length - size) // 2
            centre.append(slice(start, start + size))
        own_positions = positions[tuple(centre)]
        tiles.append(Tile(_flat(own), _flat(own_positions)))
    return tuple(tiles)


def _flat(numbers: np.ndarray) -> tuple[int, ...]:
    return tuple(numbers.flatten().tolist())
