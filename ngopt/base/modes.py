"""The axes of a matrix that have preconditioners: its rows, its channels, its kernel positions.

Values are (groups, rows, kernel, channels). Each axis has Kronecker factors: running means of X X^T,
where X is the matrix unfolded along that axis, a row of X for each index of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The outputs of a matrix; `parts` of them (heads, gates) have factors of their own.

    Factors are (groups, parts, size, size).
    """

    parts: int
    size: int
    name = "rows"

    def factor_shape(self, groups: int) -> tuple[int, ...]:
        return groups, self.parts, self.size, self.size

    def factor(self, x: Tensor) -> Tensor:
        """X X^T of values."""
        unfolded = self._unfolded(x).flatten(0, 1)
        found = torch.bmm(unfolded, unfolded.mT)
        return found.view(self.factor_shape(len(x)))

    def rotate(self, x: Tensor, basis: Tensor) -> Tensor:
        """Multiplies the axis by Q^T, or, given Q^T, by Q."""
        unfolded = self._unfolded(x).flatten(0, 1)
        return torch.bmm(basis.flatten(0, 1).mT, unfolded).view(x.shape)

    def permute(self, x: Tensor, order: Tensor) -> Tensor:
        """Values in another order along the axis: (groups, parts, size)."""
        unfolded = self._unfolded(x)
        return unfolded.gather(2, order.unsqueeze(-1).expand_as(unfolded)).view(x.shape)

    def _unfolded(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.parts, self.size, -1)


@dataclass(frozen=True)
class Kernel:
    """The positions of a kernel, where they have factors apart from the channels'.

    Factors are (groups, size, size).
    """

    size: int
    name = "kernel"

    def factor_shape(self, groups: int) -> tuple[int, ...]:
        return groups, self.size, self.size

    def factor(self, x: Tensor) -> Tensor:
        unfolded = x.transpose(1, 2).reshape(len(x), self.size, -1)
        return unfolded @ unfolded.mT

    def rotate(self, x: Tensor, basis: Tensor) -> Tensor:
        return basis.mT.unsqueeze(1) @ x

    def permute(self, x: Tensor, order: Tensor) -> Tensor:
        return x.gather(2, order[:, None, :, None].expand_as(x))


@dataclass(frozen=True)
class Channels:
    """The inputs of a matrix, or its inputs times kernel positions, in `parts` of equal size.

    Factors are (groups, parts, size, size).
    """

    parts: int
    size: int
    name = "channels"

    def factor_shape(self, groups: int) -> tuple[int, ...]:
        return groups, self.parts, self.size, self.size

    def factor(self, x: Tensor) -> Tensor:
        unfolded = self._unfolded(x).flatten(0, 1)
        found = torch.bmm(unfolded.mT, unfolded)
        return found.view(self.factor_shape(len(x)))

    def rotate(self, x: Tensor, basis: Tensor) -> Tensor:
        if self.parts == 1:
            unfolded = x.reshape(len(x), -1, self.size)
            return torch.bmm(unfolded, basis.squeeze(1)).view(x.shape)
        return (self._unfolded(x) @ basis).transpose(1, 2).reshape(x.shape)

    def permute(self, x: Tensor, order: Tensor) -> Tensor:
        unfolded = self._unfolded(x)
        permuted = unfolded.gather(3, order.unsqueeze(2).expand_as(unfolded))
        return permuted.transpose(1, 2).reshape(x.shape)

    def _unfolded(self, x: Tensor) -> Tensor:
        """(groups, parts, rows and kernel, size)."""
        return x.reshape(len(x), -1, self.parts, self.size).transpose(1, 2)


Mode = Rows | Kernel | Channels


def rotate(x: Tensor, modes: tuple[Mode, ...], bases: dict[str, Tensor]) -> Tensor:
    """Values in the eigenbases of all modes."""
    for mode in modes:
        x = mode.rotate(x, bases[mode.name])
    return x


def rotate_back(x: Tensor, modes: tuple[Mode, ...], bases: dict[str, Tensor]) -> Tensor:
    """The inverse of `rotate`."""
    for mode in modes:
        x = mode.rotate(x, bases[mode.name].mT)
    return x
