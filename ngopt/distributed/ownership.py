"""Which process owns what of every parameter: it updates this, and has its state.

Most parameters have one owner, chosen by cost. Those whose rows do not need each other
have many: vectors that are divided already, so that nothing of them travels, and tables
that would be too much for one owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

from ngopt.roles.kronecker_factors import MatrixLayout
from ngopt.shard_layout import Piece, whole


class Cost(NamedTuple):
    """Of one step of a parameter."""

    work: float  # multiplications
    memory: float  # elements of state


class Ownership(NamedTuple):
    """Of a parameter.

    first: the first of its owners, by rank. domains: what each rank owns; disjoint, and
    together the parameter.
    """

    first: int
    domains: tuple[Piece, ...]

    @property
    def is_divided(self) -> bool:
        """Whether it has several owners."""
        return sum(domain.numel > 0 for domain in self.domains) > 1


def by_one(rank: int, size: int, shape: tuple[int, ...]) -> Ownership:
    """Of a parameter with a single owner; size: number of ranks."""
    nothing = Piece((0,) * len(shape), (0,) * len(shape))
    domains = [nothing] * size
    domains[rank] = whole(shape)
    return Ownership(rank, tuple(domains))


def by_rows(pieces: Sequence[Piece]) -> Ownership:
    """Of a parameter whose rows have many owners, each some of those that it holds;
    ranks that hold the same have equal parts.

    pieces: what each rank holds.
    """
    holders: dict[Piece, list[int]] = {}
    for rank, piece in enumerate(pieces):
        holders.setdefault(piece, []).append(rank)
    domains = list(pieces)
    for piece, ranks in holders.items():
        for part, rank in enumerate(ranks):
            domains[rank] = piece.chunk(0, part, len(ranks))
    first = next(rank for rank, domain in enumerate(domains) if domain.numel)
    return Ownership(first, tuple(domains))


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


def has_free_rows(layouts: Sequence[MatrixLayout]) -> bool:
    """Whether rows of a parameter need nothing of each other but one factor, if any."""
    if len(layouts) != 1 or layouts[0].view is not None or not layouts[0].part:
        return False
    (layout,) = layouts
    if not layout.axes:
        return True
    groups, rows, _, kernel = layout.shape
    is_one = len(layout.axes) == 1 and layout.axes[0].name == "channels"
    return (
        is_one
        and layout.axes[0].parts == groups == kernel == 1
        and layout.part[0] == rows
    )


def layout_of_rows(layout: MatrixLayout, rows: Piece) -> MatrixLayout:
    """Of some rows of a parameter with `has_free_rows`."""
    axes = tuple(replace(axis, rest=rows.shape[0]) for axis in layout.axes)
    shape = place_of_rows(layout, rows).shape
    return replace(layout, shape=shape, axes=axes, part=rows.shape)  # type: ignore[arg-type]


def place_of_rows(layout: MatrixLayout, rows: Piece) -> Piece:
    """Where rows of a parameter are in values (groups, rows, channels, kernel)."""
    start, count = rows.offset[0], rows.shape[0]
    if layout.axes:
        return Piece((0, start, 0, 0), (1, count, *layout.shape[2:]))
    rest = prod(layout.part[1:])
    return Piece((0, 0, start * rest, 0), (1, 1, count * rest, 1))


def owners_of(
    costs: Sequence[Cost], size: int, known: Sequence[int | None]
) -> list[int]:
    """The rank that owns each parameter: dear ones first, to whoever has least.

    size: number of ranks. known: owners that have the state already.
    """
    shares = shares_of(costs)
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


def shares_of(costs: Sequence[Cost]) -> list[list[float]]:
    """Of each parameter in the work, and in the memory, of all."""
    totals = [sum(values) or 1.0 for values in zip(*costs, strict=True)]
    return [
        [x / total for x, total in zip(cost, totals, strict=True)] for cost in costs
    ]
