"""How a parameter is cut into matrices, and which of their axes have preconditioners.

Factors belong to neurons, not to a stretch of a longer axis, so that permuting neurons permutes the
updates in the same way. Two exceptions: the network's own inputs, which are not exchangeable, and
rows of a matrix of which no axis is short enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

from ngopt.base.modes import Channels, Kernel, Mode, Rows
from ngopt.graph.core import View, contiguous_strides
from ngopt.graph.matrices import MatrixBlock
from ngopt.roles import ParameterRole

# A factor of this many rows, 0.7 MB with its basis, is small whatever it belongs to.
SMALL = 300


@dataclass(frozen=True)
class MatrixLayout:
    """Matrices of one shape in a parameter: (groups, rows, kernel, channels).

    view: which elements of the parameter they are, in the order (groups, rows, channels, kernel);
        None for all of them in their own order.
    """

    shape: tuple[int, int, int, int]
    modes: tuple[Mode, ...] = ()
    view: View | None = None

    def read(self, flat: Tensor) -> Tensor:
        """Flat values of the parameter (*n, numel) -> (*n, groups, rows, kernel, channels)."""
        groups, rows, kernel, channels = self.shape
        several = flat.shape[:-1]
        if self.view is None and kernel == 1:
            return flat.reshape(*several, *self.shape)
        place = flat if self.view is None else _place(self.view, flat)
        unfolded = place.reshape(*several, groups, rows, channels, kernel)
        return unfolded.transpose(-2, -1).contiguous()

    def write(self, out: Tensor | None, values: Tensor) -> Tensor:
        """Puts (groups, rows, kernel, channels) into flat values of the parameter, (numel,).

        In place, into `out`, where these are not all of the parameter in their own order; else
        `out` is not looked at.
        """
        if self.shape[2] > 1:
            values = values.transpose(2, 3)
        if self.view is None:
            return values.reshape(-1)
        assert out is not None
        _place(self.view, out).copy_(values.reshape(self.view.shape))
        return out

    def is_long(self, limit: int) -> bool:
        """Whether it has more numbers than a limit, and `pieces` can cut it."""
        return (
            self.view is None
            and prod(self.shape) > limit
            and self._free_axis() is not None
        )

    def pieces(self, values: Tensor, limit: int) -> Iterator[Tensor]:
        """Values of the parameter's or the layout's shape, cut along an axis without a mode."""
        axis = self._free_axis()
        assert axis is not None
        whole = self.shape[axis]
        length = max(1, limit * whole // prod(self.shape))
        values = values.reshape(self.shape)
        # one by one, as autograd allows no writing to views that were made before others were
        # written
        for i in range(0, whole, length):
            yield values.narrow(axis, i, min(length, whole - i))

    def _free_axis(self) -> int | None:
        """The rows or the channels, if no mode joins them."""
        joined = {type(mode) for mode in self.modes}
        if self.shape[2] > 1 or not joined < {Rows, Channels}:
            return None
        return 1 if Rows not in joined else 3


def _place(view: View, flat: Tensor) -> Tensor:
    """The elements of a view, of flat values (*n, numel): (*n, *view.shape)."""
    several = flat.shape[:-1]
    strides = (
        *flat.stride()[:-1],
        *(flat.stride(-1) * stride for stride in view.strides),
    )
    return flat.as_strided(
        (*several, *view.shape), strides, flat.storage_offset() + view.offset
    )


def layouts_of(
    role: ParameterRole, shape: tuple[int, ...], longest: int, budget: float
) -> tuple[MatrixLayout, ...]:
    """The matrices of a parameter with their modes; one row of numbers if it is no matrix.

    shape: of the parameter, complex numbers as pairs. longest: neurons that one factor spans at
        most. budget: size of one mode's factors with their bases, in numbers per element.
    """
    numel = prod(shape)
    if not role.blocks or numel == 0:
        return (MatrixLayout((1, 1, 1, numel)),)
    if role.role == "embedding":
        return tuple(_table(block, numel, longest) for block in role.blocks)
    limits = _Limits(longest, budget)
    return tuple(
        _matrices(block, numel, limits, role.reads_input)
        for block in role.blocks
    )


@dataclass(frozen=True)
class _Limits:
    longest: int
    budget: float

    def allow(self, length: int, factors: int, numel: int) -> bool:
        """Whether so many factors of a length are affordable for so many elements."""
        is_small = (
            length <= SMALL or 2 * factors * length**2 <= self.budget * numel
        )
        return 1 < length <= self.longest and is_small


def _table(block: MatrixBlock, numel: int, longest: int) -> MatrixLayout:
    """A table as its tokens have it, (1, tokens, 1, dimension), with factors of its dimension."""
    _, dimension, *tokens = block.view.shape
    _, first, *rest = block.view.strides
    view = View(
        block.view.parameter,
        (1, *tokens, dimension),
        (0, *rest, first),
        block.view.offset,
    )
    modes = (Channels(1, dimension),) if 1 < dimension <= longest else ()
    return MatrixLayout(
        (1, prod(tokens), 1, dimension), modes, _unless_whole(view, numel)
    )


def _matrices(
    block: MatrixBlock, numel: int, limits: _Limits, reads_input: bool
) -> MatrixLayout:
    k, rows, *columns = block.view.shape
    share_inputs = k > 1 and len(set(block.columns)) == 1
    groups, parts = (1, k) if share_inputs else (k, 1)
    size = block.view.numel
    channels = columns[0] if columns else 1
    kernel = prod(columns[1:])
    if channels * kernel <= SMALL:
        channels, kernel = channels * kernel, 1
    modes: list[Mode] = []
    if limits.allow(rows, groups * parts, size):
        modes.append(Rows(parts, rows))
    if limits.allow(kernel, groups, size):
        modes.append(Kernel(kernel))
    # The network's inputs are not exchangeable, so a stretch of them may have factors of its own.
    cuts = _cuts(channels, groups, size, limits) if reads_input else 1
    if limits.allow(channels // cuts, groups * cuts, size):
        modes.append(Channels(cuts, channels // cuts))
    if not modes:  # better in pieces than not at all
        pieces = next(
            n
            for n in range(-(-rows // limits.longest), rows + 1)
            if rows % n == 0
        )
        modes += [Rows(parts * pieces, rows // pieces)] * (rows > pieces)
    shape = (groups, parts * rows, kernel, channels)
    return MatrixLayout(shape, tuple(modes), _unless_whole(block.view, numel))


def _cuts(length: int, groups: int, numel: int, limits: _Limits) -> int:
    """Into how many equal parts a length is cut,
    where one factor for all of it is not affordable."""
    if limits.allow(length, groups, numel):
        return 1
    return next(
        n
        for n in range(1, length + 1)
        if length % n == 0 and length // n <= SMALL
    )


def _unless_whole(view: View, numel: int) -> View | None:
    plain = View(view.parameter, view.shape, contiguous_strides(view.shape))
    return None if view == plain and view.numel == numel else view
