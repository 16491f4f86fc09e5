"""The axes of a matrix that have preconditioners: its rows, its channels, its kernel positions.

Values are (groups, rows, kernel, channels); several of them are rotated at once as (groups, rows, n,
kernel, channels). Each axis has Kronecker factors: running means of X X^T, where X is the matrix
unfolded along that axis, a row of X for each index of it. `parts` of an axis have factors of their
own; factors and their bases are (groups * parts, size, size).
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

    def factor(self, x: Tensor) -> Tensor:
        """X X^T of values."""
        unfolded = x.reshape(len(x) * self.parts, self.size, -1)
        return torch.bmm(unfolded, unfolded.mT)

    def rotate(self, x: Tensor, basis: Tensor, shape: torch.Size) -> Tensor:
        """Multiplies the axis by Q^T, or, given Q^T, by Q.

        x: values of a shape, contiguous, in whatever shape the mode before has left them. Returns
        the same.
        """
        return torch.bmm(basis.mT, x.reshape(len(basis), self.size, -1))

    def permute(self, x: Tensor, order: Tensor) -> Tensor:
        """Values in another order along the axis: (groups * parts, size)."""
        unfolded = x.reshape(len(order), self.size, -1)
        return unfolded.gather(1, order.unsqueeze(-1).expand_as(unfolded)).view(x.shape)


@dataclass(frozen=True)
class Kernel:
    """The positions of a kernel, where they have factors apart from the channels'."""

    size: int
    name = "kernel"
    parts = 1

    def factor(self, x: Tensor) -> Tensor:
        unfolded = x.transpose(1, 2).reshape(len(x), self.size, -1)
        return torch.bmm(unfolded, unfolded.mT)

    def rotate(self, x: Tensor, basis: Tensor, shape: torch.Size) -> Tensor:
        unfolded = x.reshape(len(basis), -1, self.size, shape[-1])
        return basis.mT.unsqueeze(1) @ unfolded

    def permute(self, x: Tensor, order: Tensor) -> Tensor:
        return x.gather(2, order[:, None, :, None].expand_as(x))


@dataclass(frozen=True)
class Channels:
    """The inputs of a matrix, or its inputs times kernel positions, in `parts` of equal size."""

    parts: int
    size: int
    name = "channels"

    def factor(self, x: Tensor) -> Tensor:
        unfolded = self._unfolded(x, len(x))
        return torch.bmm(unfolded.mT, unfolded)

    def rotate(self, x: Tensor, basis: Tensor, shape: torch.Size) -> Tensor:
        groups = len(basis) // self.parts
        return self._folded(torch.bmm(self._unfolded(x, groups), basis), groups)

    def permute(self, x: Tensor, order: Tensor) -> Tensor:
        unfolded = self._unfolded(x, len(x))
        permuted = unfolded.gather(2, order.unsqueeze(1).expand_as(unfolded))
        return self._folded(permuted, len(x)).reshape(x.shape)

    def _unfolded(self, x: Tensor, groups: int) -> Tensor:
        """(groups * parts, rows and kernel, size)."""
        if self.parts == 1:
            return x.reshape(groups, -1, self.size)
        return x.reshape(groups, -1, self.parts, self.size).transpose(1, 2).flatten(0, 1)

    def _folded(self, unfolded: Tensor, groups: int) -> Tensor:
        """The inverse, (groups, rows and kernel, channels)."""
        if self.parts == 1:
            return unfolded
        return unfolded.unflatten(0, (groups, self.parts)).transpose(1, 2).flatten(2)


Mode = Rows | Kernel | Channels


def factor_shape(mode: Mode, groups: int) -> tuple[int, int, int]:
    return groups * mode.parts, mode.size, mode.size
