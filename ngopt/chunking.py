"""How much is worked on at once, so that it stays in caches or takes little memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

import torch
from torch import Tensor

# By kind of device. On CPUs caches bound what is worked on at once; on accelerators
# memory does, as every call costs a launch.

# Elements of parameters whose momenta move in one call, for which their gradients are
# copied; of a parameter whose updates are in memory at once.
UPDATED_ELEMENTS = {"cpu": 1 << 22, "accelerator": 1 << 26}
# Neurons whose new states are computed together: what they are made of is 17 times as
# wide.
NEURONS = {"cpu": 1 << 13, "accelerator": 1 << 18}
# Edges, and elements of parameters, that are worked on at once, on the CPU by a thread:
# what the caches of a core hold, of elements more, as a few calls for many cost less
# than the larger caches; but fewer where each has many hidden values.
EDGES = {"cpu": 1 << 13, "accelerator": 1 << 22}
ELEMENTS = {"cpu": 1 << 15, "accelerator": 1 << 20}
HIDDEN_ELEMENTS = {"cpu": 1 << 14, "accelerator": 1 << 21}
# Elements of small parameters that are concatenated, to be worked on in one call.
CONCATENATED_ELEMENTS = {"cpu": 1 << 17, "accelerator": 1 << 20}
# Bytes of states of edges that are kept between the layers of a graph network.
CACHED_BYTES = {"cpu": 1 << 27, "accelerator": 1 << 29}


def chunk_size(sizes: Mapping[str, int], device: torch.device) -> int:
    """Of sizes by kind of device, such as `UPDATED_ELEMENTS`, that on a device."""
    return sizes["cpu" if device.type == "cpu" else "accelerator"]


def total_chunk_size(sizes: Mapping[str, int], like: Tensor) -> int:
    """Of `EDGES`, `ELEMENTS`, `HIDDEN_ELEMENTS` or `CONCATENATED_ELEMENTS`, where a tensor lies."""
    workers = torch.get_num_threads() if like.device.type == "cpu" else 1
    return workers * chunk_size(sizes, like.device)


def batches_up_to(sizes: Mapping[int, int], limit: int) -> Iterator[list[int]]:
    """Parameters, given with their sizes, that are worked on at once: short ones,
    or a long one alone."""
    some, total = [], 0
    for i, size in sorted(sizes.items(), key=itemgetter(1)):
        if some and total + size > limit:
            yield some
            some, total = [], 0
        some.append(i)
        total += size
    yield some


def split_rows(x: Tensor, count: int) -> Sequence[Tensor]:
    """Pieces of a tensor along its first axis."""
    return (x,) if count == 1 else x.tensor_split(count)


def concatenated(values: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Along an axis; no copy of a single one."""
    return values[0] if len(values) == 1 else torch.cat(list(values), axis)
