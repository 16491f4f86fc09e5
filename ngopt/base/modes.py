"""The axes of a matrix that have preconditioners: its rows, its channels, its kernel positions.

Values are (groups, rows, kernel, channels). Each axis has Kronecker factors: running means of X
X^T, where X is the matrix unfolded along that axis, a row of X for each index of it. `parts` of an
axis have factors of their own; factors and their bases are (groups * parts, size, size).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The outputs of a matrix, in `parts` (heads, gates) of equal size."""

    parts: int
    size: int
    name = "rows"

    def unfolded(self, x: Tensor) -> Tensor:
        """X of values: (groups * parts, size, length)."""
        return x.reshape(x.shape[0] * self.parts, self.size, -1)

    def rotate(self, x: Tensor, basis: Tensor) -> Tensor:
        """Multiplies the axis by Q^T, or, given Q^T, by Q."""
        unfolded = x.reshape(basis.shape[0], self.size, -1)
        return torch.bmm(basis.mT, unfolded).view(x.shape)

    def permute(self, x: Tensor, order: Tensor) -> Tensor:
        """Values in another order along the axis: (groups * parts, size)."""
        unfolded = x.reshape(len(order), self.size, -1)
        order = order.unsqueeze(-1).expand_as(unfolded)
        return unfolded.gather(1, order).view(x.shape)


@dataclass(frozen=True)
class Kernel:
    """The positions of a kernel, where they have factors apart from the channels'."""

    size: int
    parts: int = 1
    name = "kernel"

    def unfolded(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(len(x), self.size, -1)

    def rotate(self, x: Tensor, basis: Tensor) -> Tensor:
        return basis.mT.unsqueeze(1) @ x

    def permute(self, x: Tensor, order: Tensor) -> Tensor:
        return x.gather(2, order[:, None, :, None].expand_as(x))


@dataclass(frozen=True)
class Channels:
    """The inputs of a matrix, or its inputs times kernel positions, in `parts` of equal size."""

    parts: int
    size: int
    name = "channels"

    def unfolded(self, x: Tensor) -> Tensor:
        return self._rows(x).mT

    def rotate(self, x: Tensor, basis: Tensor) -> Tensor:
        return self._folded(torch.bmm(self._rows(x), basis), x.shape)

    def permute(self, x: Tensor, order: Tensor) -> Tensor:
        unfolded = self._rows(x)
        columns = order.unsqueeze(1).expand_as(unfolded)
        return self._folded(unfolded.gather(2, columns), x.shape)

    def _rows(self, x: Tensor) -> Tensor:
        """(groups * parts, rows and kernel, size)."""
        groups = x.shape[0]
        if self.parts == 1:
            return x.reshape(groups, -1, self.size)
        split = x.reshape(groups, -1, self.parts, self.size)
        return split.transpose(1, 2).flatten(0, 1)

    def _folded(self, unfolded: Tensor, shape: torch.Size) -> Tensor:
        """The inverse, in the shape of the values."""
        if self.parts == 1:
            return unfolded.view(shape)
        split = unfolded.unflatten(0, (shape[0], self.parts))
        return split.transpose(1, 2).reshape(shape)


Mode = Rows | Kernel | Channels
MODES = {mode.name: mode for mode in (Rows, Kernel, Channels)}


def factor_shape(mode: Mode, groups: int) -> tuple[int, int, int]:
    return groups * mode.parts, mode.size, mode.size
