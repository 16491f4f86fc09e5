"""Writes features of graph places to the parameters that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import View
from ngopt.metanets.graph_data.graph_tensors import EdgeChunk, GraphTensors

ContextPlace = int | EdgeChunk
"""A bias, by its number, or a chunk of a weight."""


class ContextWriter:
    """Collects features of places as features of parameters, (*batch, numel, d) each.

    An element in several places gets their mean. out: where to write, (numel, d) of any
    dtype; new tensors without it.
    """

    def __init__(
        self,
        tensors: GraphTensors,
        batch: torch.Size,
        out: Sequence[Tensor] | None = None,
    ):
        self.tensors = tensors
        self.batch = batch
        self._has_out = out is not None
        self._found: list[Tensor | None] = [None] * len(tensors.graph.parameters)
        for i, values in enumerate(out or ()):
            self._found[i] = values.unsqueeze(0)
            if not isinstance(tensors.uses[i], int):
                values.zero_()

    def write(self, place: ContextPlace, values: Tensor) -> None:
        view, is_whole = self._view(place)
        i = view.parameter
        numel = self.tensors.graph.parameters[i].numel
        uses = self.tensors.uses[i]
        count = prod(self.batch)
        d = values.shape[-1]
        if isinstance(uses, int) and is_whole and not self._has_out:
            self._found[i] = values.reshape(count, numel, d)
            return
        values = values.reshape(count, *view.shape, d)
        old = self._found[i]
        if old is None:
            old = values.new_zeros(count, numel, d)
        if not isinstance(uses, int):
            own_uses = view.read(uses.unsqueeze(0)).to(values)
            values = view.read(old) + values / own_uses
        view.write(old, values)
        self._found[i] = old

    def context(self) -> list[Tensor]:
        """Of every parameter, (*batch, numel, d)."""
        found = [values for values in self._found if values is not None]
        return [values.reshape(*self.batch, *values.shape[1:]) for values in found]

    def _view(self, place: ContextPlace) -> tuple[View, bool]:
        """The view of a place, and whether it is all of its parameter."""
        if not isinstance(place, int):
            assert place.view is not None
            return place.view, place.is_whole
        graph = self.tensors.graph
        view = graph.biases[place].view
        return view, view.is_whole(graph.parameters[view.parameter])
