"""Chunk sizes: how much is computed at once, to fit into caches or limit memory.

Sizes are by kind of device. CPU caches limit them there; on accelerators memory does,
as every call costs a kernel launch.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from operator import itemgetter

import torch
from torch import Tensor

# Elements whose momenta are updated in one call, with a copy of their gradients; also
# of the updates of one parameter that are in memory at once.
UPDATED_ELEMENTS = {"cpu": 1 << 22, "accelerator": 1 << 26}
# Messages and hidden values of a neuron are 17 times as wide as its state.
NEURONS = {"cpu": 1 << 13, "accelerator": 1 << 18}
# Edges, and elements of parameters, by thread on CPUs. Edges fit into the caches of a
# core. There are more elements, as fewer calls outweigh a smaller cache, but fewer if
# each has many hidden values.
EDGES = {"cpu": 1 << 13, "accelerator": 1 << 22}
ELEMENTS = {"cpu": 1 << 15, "accelerator": 1 << 20}
HIDDEN_ELEMENTS = {"cpu": 1 << 14, "accelerator": 1 << 21}
# Of small parameters that are concatenated for one call.
CONCATENATED_ELEMENTS = {"cpu": 1 << 17, "accelerator": 1 << 20}
# Of edge states that are cached between the layers of a graph network.
CACHED_BYTES = {"cpu": 1 << 27, "accelerator": 1 << 29}


def chunk_size(sizes: Mapping[str, int], device: torch.device) -> int:
    """The size for a device. sizes: by kind of device, such as `UPDATED_ELEMENTS`."""
    return sizes["cpu" if device.type == "cpu" else "accelerator"]


def total_chunk_size(sizes: Mapping[str, int], like: Tensor) -> int:
    """The chunk size of all threads on the device of a tensor.

    sizes: of one thread: `EDGES`, `ELEMENTS`, `HIDDEN_ELEMENTS` or
    `CONCATENATED_ELEMENTS`.
    """
    threads = torch.get_num_threads() if like.device.type == "cpu" else 1
    return threads * chunk_size(sizes, like.device)


def batches_up_to(sizes: Mapping[int, int], limit: int) -> Iterator[list[int]]:
    """Batches of the keys with a total size up to `limit`, or of one larger key."""
    batch: list[int] = []
    total = 0
    for key, size in sorted(sizes.items(), key=itemgetter(1)):
        if batch and total + size > limit:
            yield batch
            batch, total = [], 0
        batch.append(key)
        total += size
    yield batch


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
    if limit is None or groups * targets * sources <= limit:
        yield slice(0, groups), slice(0, targets), slice(0, sources)
        return
    rows = min(targets, max(isqrt(limit), limit // sources))
    columns = max(1, limit // rows)
    for group in even_slices(groups, max(1, limit // (targets * sources))):
        for target in even_slices(targets, rows):
            for source in even_slices(sources, columns):
                yield group, target, source


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def concatenated(values: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Without a copy if there is only one tensor."""
    return values[0] if len(values) == 1 else torch.cat(list(values), axis)
