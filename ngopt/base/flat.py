"""Several tensors as one, so that many small parameters cost no more calls than one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor


class Flat:
    """The places of tensors of these shapes in one tensor (total,)."""

    def __init__(self, shapes: Sequence[Size], device: torch.device):
        self.shapes = shapes
        self.sizes = [shape.numel() for shape in shapes]
        numbers = torch.arange(len(shapes))
        self._owners: Tensor | None = None  # of elements; a single tensor needs none
        if len(shapes) != 1:
            self._owners = numbers.repeat_interleave(torch.tensor(self.sizes).long()).to(device)

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Tensors of as many elements as the shapes have, one after the other."""
        pieces = [value.reshape(-1) for value in values]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def split(self, flat: Tensor) -> list[Tensor]:
        """What `join` was given, in these shapes."""
        pieces = torch.split_with_sizes(flat, self.sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def spread(self, columns: Tensor) -> Tensor:
        """One number for each tensor (k, n) -> one for each element (k, total); (k,) for one tensor."""
        if self._owners is None:
            return columns[:, 0]
        return columns.index_select(1, self._owners)
