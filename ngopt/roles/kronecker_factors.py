"""Which axes of a parameter's matrices have Kronecker factors.

Kronecker factors belong to neurons, so that permuting neurons permutes the updates in
the same way. Exceptions: the network's own inputs, which are not exchangeable, rows of
matrices whose axes are all too long, and axes that are divided to make steps cheap,
those of inputs times kernel positions among them.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, prod
from operator import attrgetter
from typing import NamedTuple

from ngopt.graph.groups_and_blocks import ParameterSpec
from ngopt.roles.buckets import Axis, MatrixLayout
from ngopt.roles.from_graph import ParameterRole
from ngopt.roles.matrices import MatrixBlock

# A factor of this many rows, 0.7 MB with its basis, is affordable in any matrix.
FREE_ROWS = 300
MIN_ROWS = 24  # rows of the factors of a piece of an axis
# On CPUs: `FactorLimits.rows` of networks with more than CPU_PRODUCTS multiplications
# in a step, so that these cost about as much as the elementwise part; of other ones.
CPU_PRODUCTS, CPU_ROWS, CPU_ROWS_OF_FEW = 1e8, 256, 512


class FactorLimits(NamedTuple):
    """Limits of the Kronecker factors of a matrix.

    longest: largest size of a factor. memory: largest number of elements of the factors
    and bases of one axis, divided by the elements of the matrices. rows: largest sum of
    the sizes of factors, to which the multiplications of a step are proportional.
    Longer axes are divided, and those longer than half of it.
    """

    longest: int
    memory: float
    rows: float = inf

    def allow(self, size: int, factors: int, numel: int) -> bool:
        """Whether factors of a size are within the limits; numel: of the matrices."""
        is_small = size <= FREE_ROWS or 2 * factors * size**2 <= self.memory * numel
        return 1 < size <= self.longest and is_small

    def demand_pieces(self, axes: Sequence[Axis]) -> bool:
        sizes = [axis.size for axis in axes]
        return sum(sizes) > self.rows or max(sizes, default=0) > self.rows / 2


def layouts_of(
    role: ParameterRole, spec: ParameterSpec, limits: FactorLimits
) -> tuple[MatrixLayout, ...]:
    """The layouts of a parameter; of a vector, one row without factors."""
    if not role.blocks or spec.numel == 0:
        return (MatrixLayout((1, 1, spec.numel, 1), part=spec.shape),)
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


def _table(block: MatrixBlock, limits: FactorLimits) -> MatrixLayout:
    """A table, (1, dimension, tokens, 1), with one factor."""
    _, dimension, *tokens = block.view.shape
    has_factor = 1 < dimension <= limits.longest
    axes = [Axis("rows", 1, dimension, prod(tokens))] * has_factor
    axes = tuple(_divided(axes, limits))
    return MatrixLayout((1, dimension, prod(tokens), 1), axes, block.view)


def _matrices(
    block: MatrixBlock, limits: FactorLimits, role: ParameterRole
) -> MatrixLayout:
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
        longest = int(limits.memory * numel / (4 * groups * channels))
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
    if limits.demand_pieces(axes):
        channels, kernel = channels * kernel, 1
        axes = [Axis("rows", parts, rows, channels)] * (rows > 1)
        axes += [Axis("channels", 1, channels, parts * rows)] * (channels > 1)
        pieces = _divided(axes, limits)
        axes = [x for x in pieces if limits.allow(x.size, groups * x.parts, numel)]
    shape = (groups, parts * rows, channels, kernel)
    return MatrixLayout(shape, tuple(axes), block.view)


def _divided(axes: Sequence[Axis], limits: FactorLimits) -> list[Axis]:
    """Axes in equal pieces within `limits.rows`, the longest divided first.

    One whose pieces would have less than MIN_ROWS rows is not divided further. The
    limit is then that of the other one.
    """
    rest, kept = list(axes), []
    while limits.demand_pieces(rest):
        longest = max(rest, key=attrgetter("size"))
        place = rest.index(longest)
        pieces = _divisor(longest.size, 2)
        size = longest.size // pieces
        if size >= MIN_ROWS:
            rest[place] = replace(longest, parts=longest.parts * pieces, size=size)
        else:
            kept.append(rest.pop(place))
    return sorted(kept + rest, key=attrgetter("name"), reverse=True)  # rows first


def _in_memory_order(layout: MatrixLayout) -> MatrixLayout:
    """Transposes matrices whose inputs come first in memory, to avoid copies."""
    view, (groups, rows, channels, kernel) = layout.view, layout.shape
    if view is None or kernel > 1 or view.shape[:2] != (groups, rows):
        return layout
    first, down, *across = view.strides
    if not 1 == down < min(filter(None, across), default=0):
        return layout
    other = {"rows": "channels", "channels": "rows"}
    axes = tuple(replace(axis, name=other[axis.name]) for axis in layout.axes)
    shape = (groups, *view.shape[2:], rows)
    view = replace(view, shape=shape, strides=(first, *across, 1))
    return MatrixLayout((groups, channels, rows, 1), axes, view)


def _divisor(n: int, least: int) -> int:
    """The smallest divisor that is at least `least`."""
    divisor = least
    while n % divisor:
        divisor += 1
    return divisor
