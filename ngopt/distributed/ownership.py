"""Which process owns what of every parameter: it updates this and stores its state.

Most parameters have one owner, chosen by cost. Parameters with independent rows can
have many: vectors that are divided already, so that nothing is sent, and tables that
would cost too much for one owner.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from math import prod
from typing import NamedTuple

from ngopt.roles.buckets import Layouts, MatrixLayout
from ngopt.shard_layout import Piece


class Cost(NamedTuple):
    """The cost of one step of a parameter, or its share in that of all parameters."""

    work: float = 0.0  # multiplications
    memory: float = 0.0  # elements of state

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.work + other.work, self.memory + other.memory)


class Ownership(NamedTuple):
    """The owners of a parameter.

    first: the first owner, by rank. domains: pieces that the ranks own, disjoint.
    """

    first: int
    domains: tuple[Piece, ...]

    @property
    def is_divided(self) -> bool:
        """Whether it has several owners."""
        return sum(domain.numel > 0 for domain in self.domains) > 1


def by_one(rank: int, size: int, shape: tuple[int, ...]) -> Ownership:
    """A parameter with a single owner; size: number of ranks."""
    zeros = (0,) * max(len(shape), 1)  # a scalar has one element
    domains = [Piece(zeros, zeros)] * size
    domains[rank] = Piece.full(shape)
    return Ownership(rank, tuple(domains))


def by_rows(pieces: Sequence[Piece]) -> Ownership:
    """A parameter of which each rank owns rows that it holds.

    Ranks that hold the same rows own equal parts of them. pieces: stored by each rank.
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


def cost_of(layouts: Layouts, every: int) -> Cost:
    """The cost of a step of a parameter. every: steps between renewals of a basis."""
    work = memory = 0.0
    for layout in layouts:
        numel = prod(layout.shape)
        memory += 2 * numel
        # elementwise functions are bound by memory, not by multiplications
        work += 20 * numel + layout.products
        for axis in layout.axes:
            count = layout.shape[0] * axis.parts
            memory += 2 * count * axis.size**2
            work += 7 * count * axis.size**3 / every  # of the renewal of the basis
    return Cost(work, memory)


def has_free_rows(layouts: Layouts) -> bool:
    """Whether rows of a parameter are independent, except for one Kronecker factor."""
    if len(layouts) != 1:
        return False
    (layout,) = layouts
    if layout.view is not None or not layout.part:
        return False
    if not layout.axes:
        return True
    axis = layout.axes[0]
    groups, rows, _, kernel = layout.shape
    if len(layout.axes) > 1 or axis.name != "channels":
        return False
    return axis.parts == groups == kernel == 1 and layout.part[0] == rows


def layout_of_rows(layout: MatrixLayout, rows: Piece) -> MatrixLayout:
    """The layout of some rows of a parameter with `has_free_rows`."""
    count = rows.shape[0]
    axes = tuple(replace(axis, rest=count) for axis in layout.axes)
    shape = place_of_rows(layout, rows).shape
    return replace(layout, shape=shape, axes=axes, part=rows.shape)  # type: ignore[arg-type]


def place_of_rows(layout: MatrixLayout, rows: Piece) -> Piece:
    """Rows of a parameter as a piece of values (groups, rows, channels, kernel)."""
    start, count = rows.offset[0], rows.shape[0]
    if layout.axes:
        return Piece((0, start, 0, 0), (1, count, *layout.shape[2:]))
    rest = prod(layout.part[1:])
    return Piece((0, 0, start * rest, 0), (1, 1, count * rest, 1))


def owners_of(
    costs: Sequence[Cost], size: int, known: Sequence[int | None]
) -> list[int]:
    """The rank that owns each parameter: expensive ones first, to the least loaded.

    size: number of ranks. known: owners that have the state already.
    """
    shares = shares_of(costs)
    loads = [Cost()] * size  # shares of the ranks
    owners = [-1] * len(costs)
    free = []
    for i, rank in enumerate(known):
        if rank is None:
            free.append((-max(shares[i]), i))
        else:
            owners[i] = rank
            loads[rank] = loads[rank].plus(shares[i])
    for _, i in sorted(free):
        choices = []
        for rank, load in enumerate(loads):
            choices.append((max(load.plus(shares[i])), sum(load), rank))
        owners[i] = min(choices)[2]
        loads[owners[i]] = loads[owners[i]].plus(shares[i])
    return owners


def shares_of(costs: Sequence[Cost]) -> list[Cost]:
    """The share of each parameter in the work and in the memory of all."""
    total = reduce(Cost.plus, costs, Cost())
    work, memory = total.work or 1.0, total.memory or 1.0
    return [Cost(cost.work / work, cost.memory / memory) for cost in costs]
