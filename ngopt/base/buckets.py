"""Memory layout: elementwise work is done on buckets, products on stacks.

A bucket is a matrix (rows, lanes) that holds matrices and vectors of several parameters
one behind the other. A row belongs to one parameter, so that numbers of parameters
broadcast as (rows, 1). A stack is all matrices of one layout in a bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.chunking import amount
from ngopt.packing import Pieces
from ngopt.roles.kronecker_factors import Axis, MatrixLayout

# Elements of a bucket, unless a member has more; on CPUs what fits into caches.
LARGEST = {"cpu": 1 << 20, "accelerator": 1 << 25}
LANES, FEW_LANES, FEW = 128, 16, 1 << 18  # of a bucket, and of one with few elements


class Member(NamedTuple):
    """The matrices of one layout of a parameter."""

    parameter: int
    number: int  # of the layout, among the parameter's own
    layout: MatrixLayout
    is_measured: bool = False  # see `is_measured`

    @property
    def numel(self) -> int:
        return prod(self.layout.shape)

    @property
    def kind(self) -> tuple:
        """Equal for members of one stack; () without factors."""
        return self.layout.axes and (self.layout.shape, self.layout.axes)


class Factors(NamedTuple):
    """Of an axis of a stack."""

    stack: int  # number of the stack in its bucket
    axis: Axis
    some: slice  # which of all factors of the axis' size


class Bucket:
    """Members of one dtype and device, those without factors last.

    stacks: members with equal layouts. factors: of the axes of all stacks.
    """

    def __init__(self, members: Sequence[Member], device: torch.device):
        """members: those of one kind follow each other."""
        self.members = members
        self.stacks = stacks_of(members)
        self.factors: list[Factors] = []
        lanes = LANES if sum(m.numel for m in members) > FEW else FEW_LANES
        shapes = [m.layout.shape for m in members]
        self.pieces = Pieces(shapes, lanes)
        self.parts = Pieces(shapes, lanes, [m.layout.part for m in members])
        self.measured = [m for m in members if m.is_measured]  # the last of them
        self.first = sum(self.pieces.rows[: len(members) - len(self.measured)])
        rows = torch.tensor(self.pieces.rows, device="cpu")
        owners = torch.tensor([m.parameter for m in members], device="cpu")
        self.owners = owners.repeat_interleave(rows).to(device)  # of rows
        shapes = []
        for stack in self.stacks:
            groups, *matrix = stack[0].layout.shape
            if matrix[-1] == 1 and all(x.parts == 1 for x in stack[0].layout.axes):
                matrix.pop()  # no kernel, no parts: see `Axis`
            shapes.append((len(stack) * groups, *matrix))
        if not members[-1].kind:  # all without factors is one long row
            rest = len(members) - len(self.stacks[-1])
            shapes[-1] = (1, int(rows[rest:].sum()) * lanes)
        self.stacked = Pieces(shapes, lanes)

    def spread(self, numbers: Tensor) -> Sequence[Tensor]:
        """(k, parameters) -> k times (rows, 1)."""
        return numbers.index_select(1, self.owners).unsqueeze(2).unbind()

    def gather(self, values: Sequence[Any]) -> Tensor:
        """Values of all parameters -> (rows, lanes) of the members; may be a view."""
        values = [m.layout.of(values[m.parameter]) for m in self.members]
        return self.pieces.join(values)

    def rotate(self, found: list[Tensor], bases: list[Tensor], back: bool) -> Tensor:
        """Stacks -> (rows, lanes), in their eigenbases or back; bases: of `factors`."""
        for (i, axis, _), basis in zip(self.factors, bases, strict=True):
            found[i] = axis.rotate(found[i], basis, back)
        return self.stacked.join(found)


def make_buckets(members: Sequence[Member], device: torch.device) -> list[Bucket]:
    """Of members, as `arranged` puts them together."""
    return [Bucket(some, device) for some in arranged(members, device)]


def arranged(members: Sequence[Member], device: torch.device) -> list[list[Member]]:
    """Members of each bucket, those of one kind one behind the other.

    Kinds with few elements together first, so that what has many stays by itself.
    """
    kinds: dict[tuple, list[Member]] = {}
    for m in members:
        kinds.setdefault(m.kind, []).append(m)
    largest = amount(LARGEST, device)
    found: list[list[Member]] = []
    room = -1
    for same in sorted(kinds.values(), key=lambda same: sum(m.numel for m in same)):
        for m in same:
            if m.numel > room:
                found.append([])
                room = largest
            found[-1].append(m)
            room -= m.numel
    return [sorted(some, key=_order) for some in found]


def stacks_of(members: Sequence[Member]) -> list[list[Member]]:
    """Those of one kind, which follow each other."""
    return [list(same) for _, same in groupby(members, lambda m: m.kind)]


def _order(m: Member) -> tuple[bool, bool]:
    return m.is_measured, not m.kind
