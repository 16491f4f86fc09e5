"""How a parameter is cut into matrices, and which of their axes have preconditioners.

Factors belong to neurons, never to a stretch of a longer axis, so that permuting neurons permutes
the updates in the same way.
"""

from __future__ import annotations

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

    def read(self, values: Tensor) -> Tensor:
        """Values of the parameter's shape -> (groups, rows, kernel, channels)."""
        groups, rows, kernel, channels = self.shape
        place = values if self.view is None else _place(self.view, values.reshape(-1))
        return place.reshape(groups, rows, channels, kernel).transpose(2, 3).contiguous()

    def write(self, out: Tensor, values: Tensor) -> Tensor:
        """Puts (groups, rows, kernel, channels) into values of the parameter's shape.

        In place, into the contiguous tensor `out`, where these are not all of the parameter.
        """
        values = values.transpose(2, 3)
        if self.view is None:
            return values.reshape(out.shape)
        _place(self.view, out.view(-1)).copy_(values.reshape(self.view.shape))
        return out


def _place(view: View, flat: Tensor) -> Tensor:
    return flat.as_strided(view.shape, view.strides, flat.storage_offset() + view.offset)


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
    is_table = role.role == "embedding"
    return tuple(_layout(block, numel, longest, budget, is_table) for block in role.blocks)


def _layout(
    block: MatrixBlock, numel: int, longest: int, budget: float, is_table: bool
) -> MatrixLayout:
    k, rows, *columns = block.view.shape
    share_inputs = k > 1 and len(set(block.columns)) == 1
    groups, parts = (1, k) if share_inputs else (k, 1)
    size = block.view.numel

    def affordable(length: int, count: int = 1) -> bool:
        needed = 2 * groups * count * length**2
        return 1 < length <= longest and (length <= SMALL or needed <= budget * size)

    modes: list[Mode] = []
    if affordable(rows, parts):
        modes.append(Rows(parts, rows))
    channels, kernel = (columns[0] if columns else 1), prod(columns[1:])
    if is_table:
        channels, kernel = prod(columns), 1
    elif kernel == 1 or prod(columns) <= SMALL:
        channels, kernel = channels * kernel, 1
        if affordable(channels):
            modes.append(Channels(channels))
    else:
        modes += [Kernel(kernel)] * affordable(kernel) + [Channels(channels)] * affordable(channels)
    shape = (groups, parts * rows, kernel, channels)
    is_whole = block.view.numel == numel and block.view.strides == _plain(block.view).strides
    return MatrixLayout(shape, tuple(modes), None if is_whole else block.view)


def _plain(view: View) -> View:
    return View(view.parameter, view.shape, contiguous_strides(view.shape))

