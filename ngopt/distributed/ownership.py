"""Which process owns which parameter: the one that updates it and has its state."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from ngopt.base.partition import MatrixLayout


class Cost(NamedTuple):
    """Of one step of a parameter."""

    work: float  # multiplications
    memory: float  # elements of state


def cost_of(layouts: Sequence[MatrixLayout], every: int) -> Cost:
    """every: steps in which a basis is renewed once."""
    work = memory = 0.0
    for layout in layouts:
        numel = prod(layout.shape)
        memory += 2 * numel
        work += 20 * numel  # elementwise: bound by memory, not by multiplications
        for axis in layout.axes:
            count = layout.shape[0] * axis.parts
            memory += 2 * count * axis.size**2
            work += 4 * numel * axis.size + 7 * count * axis.size**3 / every
    return Cost(work, memory)


def owners_of(
    costs: Sequence[Cost], size: int, known: Sequence[int | None]
) -> list[int]:
    """The rank that owns each parameter: dear ones first, to whoever has least.

    size: number of ranks. known: owners that have the state already.
    """
    totals = [sum(values) or 1.0 for values in zip(*costs, strict=True)]
    shares = [
        [x / total for x, total in zip(cost, totals, strict=True)] for cost in costs
    ]
    loads = [[0.0, 0.0] for _ in range(size)]
    owners = [-1 if rank is None else rank for rank in known]

    def give(i: int, rank: int) -> None:
        owners[i] = rank
        loads[rank] = [a + b for a, b in zip(loads[rank], shares[i], strict=True)]

    for i, rank in enumerate(owners):
        if rank >= 0:
            give(i, rank)
    free = [i for i, rank in enumerate(owners) if rank < 0]
    for i in sorted(free, key=lambda i: (-max(shares[i]), i)):
        after = [
            (max(a + b for a, b in zip(load, shares[i], strict=True)), sum(load), rank)
            for rank, load in enumerate(loads)
        ]
        give(i, min(after)[-1])
    return owners
