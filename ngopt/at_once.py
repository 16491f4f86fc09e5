"""How much is worked on at once, so that it stays in caches or takes little memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

import torch
from torch import Tensor

# Elements of parameters whose momenta move in one call, for which their gradients are copied; of a
# parameter whose updates are in memory at once.
MOVED = 1 << 22
# Edges, and elements of parameters, that are worked on at once, on the CPU by a thread: what the
# caches of a core hold, of elements more, as a few calls for many cost less than the larger caches;
# but fewer where each has many hidden values.
EDGES = {"cpu": 1 << 13, "cuda": 1 << 17}
ROWS = {"cpu": 1 << 15, "cuda": 1 << 20}
HIDDEN = {"cpu": 1 << 14, "cuda": 1 << 20}


def limit(sizes: Mapping[str, int], like: Tensor) -> int:
    """Of `EDGES`, `ROWS` or `HIDDEN`, where a tensor lies."""
    kind = like.device.type
    workers = torch.get_num_threads() if kind == "cpu" else 1
    return workers * sizes.get(kind, sizes["cuda"])


def together(sizes: Mapping[int, int], limit: int) -> Iterator[list[int]]:
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


def in_rows(x: Tensor, count: int) -> Sequence[Tensor]:
    """Pieces of a tensor along its first axis."""
    return (x,) if count == 1 else x.tensor_split(count)
