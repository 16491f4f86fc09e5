"""Several tensors as one, so that many small parameters cost no more calls than one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor

from ngopt.base.arrays import are_on_host

Number = float | Tensor
"""One number for all of some parameters, or one for each, (n,)."""


class Flat:
    """The places of tensors of these shapes in one tensor (total,).

    owners: to which of some parameters each tensor belongs; by default each is one of its own.
    device: where numbers are spread.
    """

    def __init__(
        self,
        shapes: Sequence[Size | tuple[int, ...]],
        owners: Sequence[int] | None = None,
        device: torch.device | None = None,
    ):
        self.shapes = [Size(shape) for shape in shapes]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.owners = list(range(len(shapes)) if owners is None else owners)
        self._owners = np.array(self.owners, dtype=int)
        self._counts = np.array(self.sizes, dtype=int)
        if device is not None and len(shapes) > 1:
            elements = torch.from_numpy(self._owners.repeat(self._counts))
            self._elements = elements.to(device)

    def join(
        self, values: Sequence[Tensor], out: Tensor | None = None
    ) -> Tensor:
        """Tensors of as many elements as the shapes have, one after the other."""
        rows = [value.reshape(-1) for value in values]
        return concatenated(rows) if out is None else torch.cat(rows, out=out)

    def split(self, flat: Tensor) -> list[Tensor]:
        """What `join` was given, in these shapes."""
        pieces = torch.split_with_sizes(flat, self.sizes)
        return [
            piece.view(shape)
            for piece, shape in zip(pieces, self.shapes, strict=True)
        ]

    def spread(self, number: Number | None) -> Any:
        """Numbers of the parameters -> of the elements, (total,); one for all as it is."""
        if not isinstance(number, Tensor) or not number.dim():
            return number
        if are_on_host([number]):  # several times as fast
            return torch.from_numpy(
                number.numpy()[self._owners].repeat(self._counts)
            )
        return number.index_select(0, self._elements)


def concatenated(values: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Along an axis; no copy of a single one."""
    return values[0] if len(values) == 1 else torch.cat(list(values), axis)
