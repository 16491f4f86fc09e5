"""Where what a metanet says belongs, and how it gets to the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ngopt.graph.core import View
from ngopt.metanets.graph_data.graph_tensors import (
    BlockTensors,
    EdgeChunk,
    GraphTensors,
)

Place = int | tuple[BlockTensors, EdgeChunk]
"""Where values belong: a bias, by its number, or a part of a weight."""


class ContextWriter:
    """Puts what a graph network says of places where the parameters are.

    An element that has several places gets the mean. out: where to put it, (numel, d)
    of every parameter, of any dtype; without it, in tensors of its own, (*batch, numel,
    d).
    """

    def __init__(
        self,
        parts: GraphTensors,
        batch: torch.Size,
        out: Sequence[Tensor] | None = None,
    ):
        self.parts, self.batch = parts, batch
        self._has_out = out is not None
        self._found: list[Tensor | None] = [None] * len(parts.graph.parameters)
        for i, values in enumerate(out or ()):
            self._found[i] = values.unsqueeze(0)
            if not isinstance(parts.uses[i], int):
                values.zero_()

    def put(self, place: Place, values: Tensor) -> None:
        view, is_whole = self._place(place)
        i, spec = view.parameter, self.parts.graph.parameters[view.parameter]
        uses = self.parts.uses[i]
        count = prod(self.batch)
        d = values.shape[-1]
        if isinstance(uses, int) and is_whole and not self._has_out:
            self._found[i] = values.reshape(count, spec.numel, d)
            return
        values = values.reshape(count, *view.shape, d)
        old = self._found[i]
        if old is None:
            old = values.new_zeros(count, spec.numel, d)
        if not isinstance(uses, int):
            own_uses = view.read(uses.unsqueeze(0)).to(values)
            values = view.read(old) + values / own_uses
        view.write(old, values)
        self._found[i] = old

    def _place(self, place: Place) -> tuple[View, bool]:
        """The view of a place, and whether it is all of its parameter."""
        if not isinstance(place, int):
            _, part = place
            assert part.view is not None
            return part.view, part.is_whole
        graph = self.parts.graph
        view = graph.biases[place].view
        return view, view.is_whole(graph.parameters[view.parameter])

    def all(self) -> list[Tensor]:
        """Of every parameter, (*batch, numel, d)."""
        found = [values for values in self._found if values is not None]
        return [values.reshape(*self.batch, *values.shape[1:]) for values in found]
