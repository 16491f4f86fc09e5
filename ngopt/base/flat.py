"""Several tensors as one, so that many small parameters cost no more calls than one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor


class Flat:
    """The places of tensors of these shapes in one tensor (total,).

    owners: to which of some parameters each tensor belongs; by default each is one of its own.
    Numbers of a single parameter are ().
    """

    def __init__(
        self,
        shapes: Sequence[Size | tuple[int, ...]],
        device: torch.device,
        owners: Sequence[int] | None = None,
    ):
        self.shapes = [Size(shape) for shape in shapes]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.owners = list(range(len(shapes)) if owners is None else owners)
        self._elements: Tensor | None = None  # owners of all; a single parameter needs none
        if len(set(self.owners)) > 1:
            counts = torch.tensor(self.sizes)
            self._elements = torch.tensor(self.owners).repeat_interleave(counts).to(device)

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Tensors of as many elements as the shapes have, one after the other."""
        pieces = [value.reshape(-1) for value in values]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def split(self, flat: Tensor) -> list[Tensor]:
        """What `join` was given, in these shapes."""
        pieces = torch.split_with_sizes(flat, self.sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def spread(self, numbers: Tensor) -> Tensor:
        """Numbers of the parameters (n,) -> of the elements (total,); () as it is."""
        if not numbers.dim() or self._elements is None:
            return numbers
        return numbers.index_select(0, self._elements)
