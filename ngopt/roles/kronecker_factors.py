"""The layout of a parameter's matrices, and which of their axes have Kronecker factors.

Kronecker factors belong to neurons, so that permuting neurons permutes the updates in
the same way. Two exceptions: the network's own inputs, which are not exchangeable, and
rows of matrices whose axes are all too long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import ParameterSpec, View
from ngopt.roles.from_graph import ParameterRole
from ngopt.roles.matrices import MatrixBlock

# Parameters with fewer elements are measured: see `is_measured`.
MEASURED_ELEMENTS = 1 << 16
# A factor of this many rows, 0.7 MB with its basis, is affordable in any matrix.
FREE_ROWS = 300
MIN_ROWS = 24  # rows of the factors of consecutive inputs


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
        return self._split(x) if self.name == "rows" else self._split(x).mT

    def rotate(
        self, x: Tensor, basis: Tensor, back: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """Q^T times the axis or, on the way back, Q times it.

        out: where to write it, for values without kernel and parts.
        """
        y = self._split(x)
        if self.name == "rows":
            y = torch.bmm(basis if back else basis.mT, y, out=out)
        else:
            y = torch.bmm(y, basis.mT if back else basis, out=out)
        if x.dim() == 3:
            return y
        if self.name != "channels":
            return y.view(x.shape)
        groups, rows, channels, kernel = x.shape
        y = y.unflatten(0, (groups, self.parts)).transpose(1, 2)
        return y.reshape(groups, rows, kernel, channels).transpose(2, 3)

    def _split(self, x: Tensor) -> Tensor:
        """Rows: (groups * parts, size, rest); others: (groups * parts, rest, size)."""
        if x.dim() == 3:
            return x
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
    def has_parts(self) -> bool:
        """Whether an axis has several parts."""
        return any(axis.parts > 1 for axis in self.axes)

    def select(self, values: Tensor) -> Tensor:
        """Their elements of a parameter's values, a view if these are contiguous."""
        if self.view is None:
            return values
        flat = values.reshape(-1)
        start = flat.storage_offset() + self.view.offset
        return flat.as_strided(self.view.shape, self.view.strides, start)


Layouts = Sequence[MatrixLayout]
"""The layouts of one parameter."""


def layouts_of(
    role: ParameterRole, spec: ParameterSpec, longest: int, budget: float
) -> tuple[MatrixLayout, ...]:
    """The layouts of a parameter; of a vector, one row without factors.

    longest: largest size of a factor. budget: largest number of elements of the factors
    and bases of one axis, divided by the elements of the matrices.
    """
    if not role.blocks or spec.numel == 0:
        return (MatrixLayout((1, 1, spec.numel, 1), part=spec.shape),)
    limits = _Limits(longest, budget)
    layouts = []
    for block in role.blocks:
        if role.role == "embedding":
            layout = _table(block, limits)
        else:
            layout = _matrices(block, limits, role)
        layout = _in_memory_order(layout)
        assert layout.view is not None
        if layout.view.is_whole(spec):
            layout = replace(layout, view=None, part=spec.shape)
        else:
            layout = replace(layout, part=layout.view.shape)
        layouts.append(layout)
    return tuple(layouts)


def is_measured(layouts: Layouts) -> bool:
    """Whether the distance of a parameter from its initial value is measured."""
    if len(layouts) != 1:
        return False
    layout = layouts[0]
    return not layout.axes or prod(layout.shape) < MEASURED_ELEMENTS


class _Limits(NamedTuple):
    longest: int
    budget: float

    def allow(self, size: int, factors: int, numel: int) -> bool:
        """Whether factors of a size are within the limits; numel: of the matrices."""
        is_small = size <= FREE_ROWS or 2 * factors * size**2 <= self.budget * numel
        return 1 < size <= self.longest and is_small


def _table(block: MatrixBlock, limits: _Limits) -> MatrixLayout:
    """A table, (1, dimension, tokens, 1), with one factor."""
    _, dimension, *tokens = block.view.shape
    has_factor = 1 < dimension <= limits.longest
    axes = (Axis("rows", 1, dimension, prod(tokens)),) if has_factor else ()
    return MatrixLayout((1, dimension, prod(tokens), 1), axes, block.view)


def _matrices(block: MatrixBlock, limits: _Limits, role: ParameterRole) -> MatrixLayout:
    k, rows, *columns = block.view.shape
    share_inputs = k > 1 and len(set(block.columns)) == 1
    groups, parts = (1, k) if share_inputs else (k, 1)
    numel = block.view.numel
    channels = columns[0] if columns else 1
    kernel = prod(columns[1:])
    if channels * kernel <= FREE_ROWS:
        channels, kernel = channels * kernel, 1
    axes: list[Axis] = []
    if limits.allow(rows, groups * parts, numel):
        axes.append(Axis("rows", parts, rows, channels * kernel))
    if limits.allow(kernel, groups, numel):
        axes.append(Axis("kernel", 1, kernel, parts * rows * channels))
    # The network's inputs are not exchangeable: consecutive ones can share a factor.
    cuts = 1
    if role.reads_input and not limits.allow(channels, groups, numel):
        # half the budget, so that momentum and second moments fit in the other half
        longest = int(limits.budget * numel / (4 * groups * channels))
        longest = max(min(longest, FREE_ROWS), 1)
        cuts = _divisor(channels, -(-channels // longest))
    size = channels // cuts
    is_affordable = size >= MIN_ROWS if cuts > 1 else limits.allow(size, groups, numel)
    if is_affordable:
        axes.append(Axis("channels", cuts, size, parts * rows * kernel))
    if not axes:  # factors of pieces of the rows
        pieces = _divisor(rows, -(-rows // limits.longest))
        piece_rows = Axis("rows", parts * pieces, rows // pieces, channels * kernel)
        axes = [piece_rows] * (rows > pieces)
    shape = (groups, parts * rows, channels, kernel)
    return MatrixLayout(shape, tuple(axes), block.view)


def _in_memory_order(layout: MatrixLayout) -> MatrixLayout:
    """Transposes matrices whose inputs come first in memory, to avoid copies."""
    view, (groups, rows, channels, kernel) = layout.view, layout.shape
    is_split = kernel > 1 or layout.has_parts
    if view is None or is_split or view.shape[:2] != (groups, rows):
        return layout
    first, down, *across = view.strides
    if not 1 == down < min(filter(None, across), default=0):
        return layout
    other = {"rows": "channels", "channels": "rows"}
    axes = tuple(replace(axis, name=other[axis.name]) for axis in layout.axes)
    shape = (groups, *view.shape[2:], rows)
    strides = (first, *across, 1)
    view = replace(view, shape=shape, strides=strides)
    return MatrixLayout((groups, channels, rows, 1), axes, view)


def _divisor(n: int, least: int) -> int:
    """The smallest divisor that is at least `least`."""
    divisor = least
    while n % divisor:
        divisor += 1
    return divisor
