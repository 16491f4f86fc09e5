"""Memory layout: elementwise work is done on buckets, matrix products on stacks.

A bucket is a matrix (rows, lanes) that holds matrices and vectors of several parameters
one after the other. A row belongs to one parameter, so that scalars of parameters
broadcast as (rows, 1). A stack is all matrices of one layout in a bucket.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from math import prod
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.chunking import chunk_size
from ngopt.devices import writes_out
from ngopt.packing import PaddedRows, Values
from ngopt.roles.kronecker_factors import Axis, MatrixLayout

# Elements of a bucket, unless one entry has more; on CPUs what fits into caches.
BUCKET_ELEMENTS = {"cpu": 1 << 20, "accelerator": 1 << 25}
LANES = 128
FEW_LANES, FEW_ELEMENTS = 16, 1 << 18  # of a bucket with few elements


class BucketEntry(NamedTuple):
    """The matrices of one layout of a parameter."""

    parameter: int
    number: int  # index among the layouts of the parameter
    layout: MatrixLayout
    is_measured: bool = False  # see `is_measured`

    @property
    def numel(self) -> int:
        return prod(self.layout.shape)

    @property
    def kind(self) -> tuple:
        """Equal for entries of one stack; () without Kronecker factors."""
        return self.layout.axes and (self.layout.shape, self.layout.axes)


Stack = list[BucketEntry]
"""Entries of one kind."""


class Factors(NamedTuple):
    """Kronecker factors of an axis of a stack."""

    stack: int  # index of the stack in its bucket
    axis: Axis
    some: slice  # their indices among all factors of the axis' size


class Bucket:
    """Entries of one dtype and device, those without Kronecker factors last.

    Attributes:
        owners: index of the parameter of each row, (rows,).
        pieces, parts, stacked: how (rows, lanes) splits into matrices of entries, into
            elements of parameters, and into stacks.
        stacks: entries with equal layouts. factors: of the axes of all stacks.
        measured: last entries, whose distance is measured. first: their first row.
    """

    def __init__(self, entries: Sequence[BucketEntry], device: torch.device):
        """entries: those of one kind follow each other."""
        self.entries = entries
        self.stacks = stacks_of(entries)
        self.factors: list[Factors] = []
        shapes, parts, owners = [], [], []
        self.measured: list[BucketEntry] = []
        numel = 0
        for entry in entries:
            shapes.append(entry.layout.shape)
            parts.append(entry.layout.part)
            owners.append(entry.parameter)
            numel += entry.numel
            if entry.is_measured:
                self.measured.append(entry)
        lanes = LANES if numel > FEW_ELEMENTS else FEW_LANES
        self.pieces = PaddedRows(shapes, lanes)
        self.parts = PaddedRows(shapes, lanes, parts)
        others = len(entries) - len(self.measured)
        self.first = sum(self.pieces.rows[:others])
        rows = torch.tensor(self.pieces.rows, device="cpu")
        owners = torch.tensor(owners, device="cpu")
        self.owners = owners.repeat_interleave(rows).to(device)
        self.stacked = PaddedRows(self._stack_shapes(rows, lanes), lanes)

    def _stack_shapes(self, rows: Tensor, lanes: int) -> list[tuple[int, ...]]:
        shapes = []
        for stack in self.stacks:
            layout = stack[0].layout
            groups, *matrix = layout.shape
            if matrix[-1] == 1 and not layout.has_parts:
                matrix.pop()  # without kernel, see `Axis`
            shapes.append((len(stack) * groups, *matrix))
        if not self.entries[-1].kind:  # all without factors are one long row
            rest = len(self.entries) - len(self.stacks[-1])
            length = int(rows[rest:].sum()) * lanes
            shapes[-1] = (1, length)
        return shapes

    def spread(self, scalars: Tensor) -> Sequence[Tensor]:
        """(k, parameters) -> k times (rows, 1)."""
        return scalars.index_select(1, self.owners).unsqueeze(2).unbind()

    def gather(self, values: Values) -> Tensor:
        """Values of parameters -> (rows, lanes) of the entries; may be a view."""
        own = [entry.layout.select(values[entry.parameter]) for entry in self.entries]
        return self.pieces.join(own)

    def rotate(self, stacks: list[Tensor], bases: list[Tensor], back: bool) -> Tensor:
        """Stacks -> (rows, lanes) in their eigenbases, or back.

        bases: of `factors`. Replaces entries of `stacks`.
        """
        rows, places = None, []
        has_gaps = any(self.stacked.gaps)
        if len(stacks) > 1 and not has_gaps and writes_out(stacks[0]):
            rows = stacks[0].new_empty(len(self.owners), self.stacked.lanes)
            places = self.stacked.split(rows)
        last = {own.stack: number for number, own in enumerate(self.factors)}
        pairs = zip(self.factors, bases, strict=True)
        for number, ((i, axis, _), basis) in enumerate(pairs):
            # the last product of a stack need not be copied
            has_place = places and number == last[i] and stacks[i].dim() == 3
            out = places[i] if has_place else None
            stacks[i] = axis.rotate(stacks[i], basis, back, out)
        if rows is None:
            return self.stacked.join(stacks)
        for place, x in zip(places, stacks, strict=True):
            if x is not place:
                place.copy_(x)
        return rows


def make_buckets(entries: Sequence[BucketEntry], device: torch.device) -> list[Bucket]:
    """Buckets of entries, as `arranged` divides them."""
    return [Bucket(some, device) for some in arranged(entries, device)]


def arranged(
    entries: Sequence[BucketEntry], device: torch.device
) -> list[list[BucketEntry]]:
    """Entries of each bucket; those of one kind follow each other.

    Kinds with few elements share a bucket first, so that large kinds have their own.
    """
    kinds: dict[tuple, list[BucketEntry]] = {}
    numels: Counter[tuple] = Counter()
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry)
        numels[entry.kind] += entry.numel
    largest = chunk_size(BUCKET_ELEMENTS, device)
    found: list[list[BucketEntry]] = []
    free = -1
    for kind in sorted(kinds, key=numels.__getitem__):
        for entry in kinds[kind]:
            if entry.numel > free:
                found.append([])
                free = largest
            found[-1].append(entry)
            free -= entry.numel
    for some in found:
        some.sort(key=lambda entry: (entry.is_measured, not entry.kind))
    return found


def stacks_of(entries: Sequence[BucketEntry]) -> list[Stack]:
    """Entries that follow each other, divided by kind."""
    alike = groupby(entries, attrgetter("kind"))
    return [list(stack) for _, stack in alike]
