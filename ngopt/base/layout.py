"""How a parameter is cut into matrices, and which of their sides have preconditioners.

A matrix (rows, columns) maps columns (inputs x kernel positions) to rows (outputs). A side has one
Kronecker factor or, where it is made of parts (heads, gates) or is too long for one, a factor for
every part. Matrices of one parameter that read the same neurons share the factors of their columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ngopt.graph.core import View, contiguous_strides
from ngopt.graph.matrices import MatrixBlock
from ngopt.roles import ParameterRole


@dataclass(frozen=True)
class Side:
    """Factors of one side: `parts` of them, each (size, size)."""

    parts: int
    size: int


@dataclass(frozen=True)
class MatrixLayout:
    """Matrices of one shape in a parameter: (groups, rows, columns).

    left, right: the factors of rows and of columns; None where a side has none.
    view: which elements of the parameter they are; None for all of them in their own order.
    """

    shape: tuple[int, int, int]
    left: Side | None = None
    right: Side | None = None
    view: View | None = None

    def sides(self) -> dict[str, Side]:
        """The sides that have factors, by name."""
        both = {"left": self.left, "right": self.right}
        return {name: side for name, side in both.items() if side is not None}

    def read(self, values: Tensor) -> Tensor:
        """Values of the parameter's shape -> (groups, rows, columns)."""
        place = values if self.view is None else self._place(values.reshape(-1))
        return place.reshape(self.shape)

    def write(self, out: Tensor, values: Tensor) -> Tensor:
        """Puts (groups, rows, columns) into values of the parameter's shape.

        In place, into the contiguous tensor `out`, where these are not all of the parameter.
        """
        if self.view is None:
            return values.view(out.shape)
        self._place(out.view(-1)).copy_(values.view(self.view.shape))
        return out

    def _place(self, flat: Tensor) -> Tensor:
        assert self.view is not None
        offset = flat.storage_offset() + self.view.offset
        return flat.as_strided(self.view.shape, self.view.strides, offset)


def layouts_of(
    role: ParameterRole, shape: tuple[int, ...], longest: int, budget: float
) -> tuple[MatrixLayout, ...]:
    """The matrices of a parameter with their factors; one row of numbers if it is no matrix.

    shape: of the parameter, complex numbers as pairs. longest: rows and columns that one factor
        spans at most. budget: factors and bases of one side, in numbers per element of the matrix.
    """
    numel = prod(shape)
    if not role.blocks or numel == 0:
        return (MatrixLayout((1, 1, numel)),)
    is_table = role.role == "embedding"
    return tuple(_layout(block, shape, longest, budget, is_table) for block in role.blocks)


def _layout(
    block: MatrixBlock, shape: tuple[int, ...], longest: int, budget: float, is_table: bool
) -> MatrixLayout:
    k, rows, *kernel = block.view.shape
    columns = prod(kernel)
    shares_inputs = len(set(block.columns)) == 1 and k > 1
    groups, parts = (1, k) if shares_inputs else (k, 1)
    is_whole = block.view.strides == View(0, block.view.shape, contiguous_strides(block.view.shape)).strides
    is_whole = is_whole and block.view.numel == prod(shape)
    return MatrixLayout(
        (groups, parts * rows, columns),
        _side(rows, parts, columns, longest, budget),
        None if is_table else _side(columns, 1, parts * rows, longest, budget),
        None if is_whole else block.view,
    )


def _side(size: int, parts: int, other: int, longest: int, budget: float) -> Side | None:
    """Factors of a side of `parts` times `size` neurons, cut further until they fit; None if it is one neuron.

    A factor and its basis are 2 size^2 numbers for size x other elements.
    """
    most = min(longest, max(_ALWAYS, int(budget * other / 2)))
    cuts = next(c for c in range(-(-size // most), size + 1) if size % c == 0)
    size //= cuts
    return Side(parts * cuts, size) if size > 1 else None


# A factor of this many rows is small whatever it belongs to.
_ALWAYS = 64


def rotate(x: Tensor, left: Tensor | None, right: Tensor | None, layout: MatrixLayout) -> Tensor:
    """Q_L^T X Q_R of every matrix: x (groups, rows, columns), bases (groups, parts, size, size)."""
    if left is not None:
        x = (left.mT @ by_rows(x, layout)).view(layout.shape)
    if right is not None:
        x = _from_columns(by_columns(x, layout) @ right, layout)
    return x


def rotate_back(
    x: Tensor, left: Tensor | None, right: Tensor | None, layout: MatrixLayout
) -> Tensor:
    """Q_L X Q_R^T: the inverse of `rotate`."""
    if left is not None:
        x = (left @ by_rows(x, layout)).view(layout.shape)
    if right is not None:
        x = _from_columns(by_columns(x, layout) @ right.mT, layout)
    return x


def by_rows(x: Tensor, layout: MatrixLayout) -> Tensor:
    """(groups, rows, columns) -> (groups, parts, rows of a part, columns)."""
    assert layout.left is not None
    groups, _, columns = layout.shape
    return x.view(groups, layout.left.parts, layout.left.size, columns)


def by_columns(x: Tensor, layout: MatrixLayout) -> Tensor:
    """(groups, rows, columns) -> (groups, parts, rows, columns of a part)."""
    assert layout.right is not None
    groups, rows, _ = layout.shape
    return x.view(groups, rows, layout.right.parts, layout.right.size).transpose(1, 2)


def _from_columns(x: Tensor, layout: MatrixLayout) -> Tensor:
    """The inverse of `by_columns`."""
    return x.transpose(1, 2).reshape(layout.shape)
