"""How much is worked on at once, so that it stays in caches or takes little memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from operator import itemgetter

import torch
from torch import Tensor

# By kind of device. On CPUs caches bound what is worked on at once; on accelerators
# memory does, as every call costs a launch.

# Elements of parameters whose momenta move in one call, for which their gradients are
# copied; of a parameter whose updates are in memory at once.
MOVED = {"cpu": 1 << 22, "accelerator": 1 << 26}
# Neurons whose new states are computed together: what they are made of is 17 times as
# wide.
NEURONS = {"cpu": 1 << 13, "accelerator": 1 << 18}
# Edges, and elements of parameters, that are worked on at once, on the CPU by a thread:
# what the caches of a core hold, of elements more, as a few calls for many cost less
# than the larger caches; but fewer where each has many hidden values.
EDGES = {"cpu": 1 << 13, "accelerator": 1 << 22}
ROWS = {"cpu": 1 << 15, "accelerator": 1 << 20}
HIDDEN = {"cpu": 1 << 14, "accelerator": 1 << 21}
# Elements of small parameters that are concatenated, to be worked on in one call.
JOINED = {"cpu": 1 << 17, "accelerator": 1 << 20}
# Bytes of states of edges that are kept between the layers of a graph network.
KEPT = {"cpu": 1 << 27, "accelerator": 1 << 29}


def amount(sizes: Mapping[str, int], device: torch.device) -> int:
    """Of sizes by kind of device, such as `MOVED`, that on a device."""
    return sizes["cpu" if device.type == "cpu" else "accelerator"]


def limit(sizes: Mapping[str, int], like: Tensor) -> int:
    """Of `EDGES`, `ROWS`, `HIDDEN` or `JOINED`, where a tensor lies."""
    workers = torch.get_num_threads() if like.device.type == "cpu" else 1
    return workers * amount(sizes, like.device)


def grouped(sizes: Mapping[int, int], limit: int) -> Iterator[list[int]]:
    """Keys in groups of a total size of at most `limit`; a larger one is alone."""
    group, total = [], 0
    for i, size in sorted(sizes.items(), key=itemgetter(1)):
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(i)
        total += size
    yield group


def pieces(tensors: Sequence[Tensor], count: int) -> Iterator[tuple[Tensor, ...]]:
    """Tensors in `count` pieces each along the first axis: all first pieces, all second
    ones, and so on."""
    if count <= 1:
        return iter([tuple(tensors)])
    return zip(*(x.tensor_split(count) for x in tensors), strict=True)


def even_slices(length: int, limit: int) -> Iterator[slice]:
    """Slices of at most `limit`, of nearly equal lengths."""
    count = ceil_div(length, limit)
    for i in range(count):
        yield slice(length * i // count, length * (i + 1) // count)


def block_slices(
    shape: tuple[int, int, int], limit: int | None
) -> Iterator[tuple[slice, slice, slice]]:
    """Pieces (groups, targets, sources) of at most so many edges, near to square.

    limit: None for the whole block.
    """
    groups, targets, sources = shape
    all_groups, all_targets, all_sources = (slice(0, n) for n in shape)
    if limit is None or groups * targets * sources <= limit:
        yield all_groups, all_targets, all_sources
        return
    if targets * sources <= limit:
        for group in even_slices(groups, limit // (targets * sources)):
            yield group, all_targets, all_sources
        return
    rows = min(targets, max(isqrt(limit), limit // sources))
    columns = max(1, limit // rows)
    for group in even_slices(groups, 1):
        for target in even_slices(targets, rows):
            for source in even_slices(sources, columns):
                yield group, target, source


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def concatenated(values: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Along an axis; no copy of a single one."""
    return values[0] if len(values) == 1 else torch.cat(list(values), axis)
