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


class Rotation:
    """Rotates values of a layout into the eigenbases of its modes, and back.

    Plain matrices take the short way: two products, without another view between them.
    """

    def __init__(self, modes: tuple[Mode, ...], kernel: int, bases: dict[str, Tensor]):
        self.modes, self.bases = modes, bases
        plain = kernel == 1 and all(not isinstance(m, Kernel) and m.parts == 1 for m in modes)
        self.is_plain = plain
        if plain:
            self.left = bases["rows"].squeeze(1) if "rows" in bases else None
            self.right = bases["channels"].squeeze(1) if "channels" in bases else None

    def forward(self, x: Tensor) -> Tensor:
        """(groups, rows, kernel, channels), or (groups, rows, channels) of plain matrices."""
        if not self.is_plain:
            for mode in self.modes:
                x = mode.rotate(x, self.bases[mode.name])
            return x
        x = x if self.left is None else torch.bmm(self.left.mT, x)
        return x if self.right is None else torch.bmm(x, self.right)

    def back(self, x: Tensor) -> Tensor:
        """The inverse of `forward`."""
        if not self.is_plain:
            for mode in self.modes:
                x = mode.rotate(x, self.bases[mode.name].mT)
            return x
        x = x if self.left is None else torch.bmm(self.left, x)
        return x if self.right is None else torch.bmm(x, self.right.mT)
