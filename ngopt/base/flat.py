"""Several tensors as one, so that many small parameters cost no more calls than one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor

Number = float | Tensor
"""One number for all of some parameters, or one for each, (n,)."""


class Flat:
    """The places of tensors of these shapes in one tensor (total,).

    owners: to which of some parameters each tensor belongs; by default each is one of its own.
    """

    def __init__(
        self,
        shapes: Sequence[Size | tuple[int, ...]],
        owners: Sequence[int] | None = None,
    ):
        self.shapes = [Size(shape) for shape in shapes]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.owners = list(range(len(shapes)) if owners is None else owners)
        self._elements: Tensor | None = None

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Tensors of as many elements as the shapes have, one after the other."""
        return concatenated([value.reshape(-1) for value in values])

    def split(self, flat: Tensor) -> list[Tensor]:
        """What `join` was given, in these shapes."""
        pieces = torch.split_with_sizes(flat, self.sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def spread(self, number: Number) -> Number:
        """Numbers of the parameters -> of the elements, (total,); one for all as it is."""
        if not isinstance(number, Tensor) or not number.dim():
            return number
        if self._elements is None:
            counts = torch.tensor(self.sizes)
            owners = torch.tensor(self.owners).repeat_interleave(counts)
            self._elements = owners.to(number.device)
        return number.index_select(0, self._elements)


def concatenated(values: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Along an axis; no copy of a single one."""
    return values[0] if len(values) == 1 else torch.cat(list(values), axis)
