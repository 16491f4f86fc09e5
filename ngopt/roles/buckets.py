"""Memory layout of matrices: elementwise work is done on buckets, matrix products on
stacks.

`MatrixLayout` has the matrices of one parameter, and the axes that have Kronecker
factors (`ngopt.roles.kronecker_factors` chooses them).

A bucket is a matrix (rows, lanes) that holds matrices and vectors of several parameters
one after the other. A row belongs to one parameter, so that scalars of parameters
broadcast as (rows, 1). A stack is all matrices of one layout in a bucket.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from math import prod
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.chunking import chunk_size
from ngopt.graph.groups_and_blocks import View
from ngopt.packing import PaddedRows, Values

# Elements of a bucket, unless one entry has more; on CPUs what fits into caches.
BUCKET_ELEMENTS = {"cpu": 1 << 17, "accelerator": 1 << 25}
LANES = 128
FEW_LANES, FEW_ELEMENTS = 16, 1 << 16  # of a bucket with few elements
# Parameters with at most so many elements are measured: see `is_measured`.
MEASURED_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Axis:
    """An axis of matrices (groups, rows, channels, kernel) that has Kronecker factors.

    A factor is a running mean of X X^T, with X the matrix unfolded along the axis.
    Factors and bases are (groups * parts, size, size). Values without kernel and parts
    are (groups, rows, channels).
    """

    name: str  # "rows", "channels" (or channels times kernel positions) or "kernel"
    parts: int  # pieces with factors of their own: heads, gates
    size: int  # of a piece
    rest: int  # elements of a matrix that share an index of the axis, in a piece

    def unfold(self, x: Tensor) -> Tensor:
        """X of values: (groups * parts, size, rest), or pieces in a longer batch."""
        if self.name == "kernel" and not x.is_cpu:  # short: many small products
            return x.flatten(0, 1).mT
        pieces = x if x.dim() == 3 else self._split(x)
        return pieces if self.name == "rows" else pieces.mT

    def rotate(
        self, x: Tensor, basis: Tensor, back: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """Q^T times the axis or, on the way back, Q times it.

        out: where to write it, contiguous, in the shape of x.
        """
        is_split = x.dim() == 4
        is_moved = is_split and self.name == "channels"
        y, place = x, out
        if is_split:
            y = self._split(x)
            place = None if out is None or is_moved else out.view(y.shape)
        if self.name == "rows":
            y = torch.bmm(basis if back else basis.mT, y, out=place)
        else:
            y = torch.bmm(y, basis.mT if back else basis, out=place)
        if not is_moved:
            return y.view(x.shape) if is_split else y
        groups, rows, channels, kernel = x.shape
        y = y.view(groups, self.parts, rows, kernel, self.size).movedim(1, 3)
        if out is None:
            return y.reshape(groups, rows, kernel, channels).transpose(2, 3)
        place = out.view(groups, rows, self.parts, self.size, kernel)
        place.copy_(y.movedim(2, 4))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """Rows: (groups * parts, size, rest); others: (groups * parts, rest, size)."""
        if self.name == "rows":
            return x.reshape(-1, self.size, self.rest)
        if self.name == "kernel":
            return x.reshape(-1, self.rest, self.size)
        y = x.transpose(2, 3)
        y = y.reshape(x.shape[0], self.rest, self.parts, self.size)
        return y.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class MatrixLayout:
    """Matrices of one shape in a parameter.

    Attributes:
        shape: (groups, rows, channels, kernel), in memory order.
        axes: that have Kronecker factors.
        view: their elements, in this order; None: all elements of the parameter.
        part: shape of their elements in the parameter.
    """

    shape: tuple[int, int, int, int]
    axes: tuple[Axis, ...] = ()
    view: View | None = None
    part: tuple[int, ...] = ()

    @property
    def products(self) -> int:
        """Multiplications of a step: three rotations and X X^T, without renewals."""
        return 4 * prod(self.shape) * sum(axis.size for axis in self.axes)

    def select(self, values: Tensor) -> Tensor:
        """Their elements of a parameter's values, a view if these are contiguous."""
        if self.view is None:
            return values
        flat = values.reshape(-1)
        start = flat.storage_offset() + self.view.offset
        return flat.as_strided(self.view.shape, self.view.strides, start)


Layouts = Sequence[MatrixLayout]
"""The layouts of one parameter."""


def is_measured(layouts: Layouts) -> bool:
    """Whether the distance of a parameter from its initial value is measured."""
    if len(layouts) != 1:
        return False
    layout = layouts[0]
    return not layout.axes or prod(layout.shape) <= MEASURED_ELEMENTS


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
    indices: slice  # among all factors of the axis' size


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
        self.measured = [entry for entry in entries if entry.is_measured]
        numel = sum(entry.numel for entry in entries)
        lanes = LANES if numel > FEW_ELEMENTS else FEW_LANES
        shapes = [entry.layout.shape for entry in entries]
        parts = [entry.layout.part for entry in entries]
        self.pieces = PaddedRows(shapes, lanes)
        self.parts = PaddedRows(shapes, lanes, parts)
        self.first = sum(self.pieces.rows[: len(entries) - len(self.measured)])
        rows = torch.tensor(self.pieces.rows, device="cpu")
        parameters = torch.tensor([entry.parameter for entry in entries], device="cpu")
        self.owners = parameters.repeat_interleave(rows).to(device)
        stacks = []
        for stack in self.stacks:
            layout = stack[0].layout
            groups, *matrix = layout.shape
            has_parts = any(axis.parts > 1 for axis in layout.axes)
            if matrix[-1] == 1 and not has_parts:
                matrix.pop()  # without kernel, see `Axis`
            stacks.append((len(stack) * groups, *matrix))
        if not entries[-1].kind:  # all without factors are one long row
            rest = len(entries) - len(self.stacks[-1])
            stacks[-1] = (1, int(rows[rest:].sum()) * lanes)
        self.stacked = PaddedRows(stacks, lanes)
        # whether the last product of a stack reads what it would be written over
        self._reads_places = any(len(x[0].layout.axes) == 1 for x in self.stacks)

    def spread(self, scalars: Tensor) -> Sequence[Tensor]:
        """(k, parameters) -> k times (rows, 1)."""
        return scalars.index_select(1, self.owners).unsqueeze(2).unbind()

    def gather(self, values: Values) -> Tensor:
        """Values of parameters -> (rows, lanes) of the entries; may be a view."""
        matrices = [x.layout.select(values[x.parameter]) for x in self.entries]
        return self.pieces.join(matrices)

    def rotate(
        self,
        values: Tensor,
        stacks: list[Tensor],
        bases: Sequence[Tensor],
        back: bool,
        in_place: bool,
    ) -> Tensor:
        """Values (rows, lanes) in their eigenbases, or back.

        Args:
            stacks: their views by `stacked`; products replace them.
            bases: of `factors`.
            in_place: whether `out=` can write products to their places: neither
                autograd nor vmap is used. May overwrite `values`.
        """
        result, places = values, list(stacks)
        has_places = in_place and len(stacks) > 1 and not self.stacked.has_gaps
        if has_places and self._reads_places:
            result = torch.empty_like(values)
            places = self.stacked.split(result)
        last = {factors.stack: k for k, factors in enumerate(self.factors)}
        for k, ((i, axis, _), basis) in enumerate(
            zip(self.factors, bases, strict=True)
        ):
            out = places[i] if has_places and k == last[i] else None
            stacks[i] = axis.rotate(stacks[i], basis, back, out)
        if not has_places:
            return self.stacked.join(stacks)
        for place, x in zip(places, stacks, strict=True):
            if x is not place:
                place.copy_(x)
        return result


def arranged(
    entries: Sequence[BucketEntry], device: torch.device
) -> list[list[BucketEntry]]:
    """Entries of each bucket; those of one kind follow each other.

    Kinds with few elements share a bucket first, so that large kinds have their own.
    """
    kinds: dict[tuple, list[BucketEntry]] = defaultdict(list)
    for entry in entries:
        kinds[entry.kind].append(entry)
    in_order = sorted(kinds.values(), key=lambda kind: sum(x.numel for x in kind))
    largest = chunk_size(BUCKET_ELEMENTS, device)
    buckets: list[list[BucketEntry]] = []
    free = -1
    for entry in chain.from_iterable(in_order):
        if entry.numel > free:
            buckets.append([])
            free = largest
        buckets[-1].append(entry)
        free -= entry.numel
    for of_bucket in buckets:
        of_bucket.sort(key=lambda entry: (entry.is_measured, not entry.kind))
    return buckets


def entries_of(
    layouts: Sequence[Layouts], parameters: Sequence[int]
) -> list[BucketEntry]:
    """Entries of some parameters; layouts: of each parameter."""
    entries: list[BucketEntry] = []
    for i in sorted(parameters):
        for number, layout in enumerate(layouts[i]):
            entries.append(BucketEntry(i, number, layout, is_measured(layouts[i])))
    return entries


def stacks_of(entries: Sequence[BucketEntry]) -> list[Stack]:
    """Entries that follow each other, divided by kind."""
    return [list(stack) for _, stack in groupby(entries, attrgetter("kind"))]
