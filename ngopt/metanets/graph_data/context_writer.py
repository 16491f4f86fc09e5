"""Writes features of graph places to the parameters that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from ngopt.metanets.graph_data.graph_tensors import EdgeChunk, GraphTensors

ContextPlace = int | EdgeChunk
"""A bias, by its number, or a chunk of a weight."""


def written_context(
    pieces: Iterable[tuple[ContextPlace, Tensor]],
    tensors: GraphTensors,
    batch: torch.Size,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Features of places as features of parameters, (*batch, numel, d) each.

    An element in several places gets their mean. out: where to write, (numel, d) of any
    dtype; new tensors without it.
    """
    graph = tensors.graph
    found: list[Tensor | None] = [None] * len(graph.parameters)
    for i, values in enumerate(out or ()):
        found[i] = values.unsqueeze(0)
        if not isinstance(tensors.uses[i], int):
            values.zero_()
    count = prod(batch)
    for place, values in pieces:
        view = graph.biases[place].view if isinstance(place, int) else place.view
        assert view is not None
        i = view.parameter
        spec = graph.parameters[i]
        uses = tensors.uses[i]
        d = values.shape[-1]
        if out is None and isinstance(uses, int) and view.is_whole(spec):
            found[i] = values.reshape(count, spec.numel, d)
            continue
        values = values.reshape(count, *view.shape, d)
        old = found[i]
        if old is None:
            old = found[i] = values.new_zeros(count, spec.numel, d)
        if not isinstance(uses, int):
            own_uses = view.read(uses.unsqueeze(0)).to(values)
            values = view.read(old) + values / own_uses
        view.write(old, values)
    context = [values for values in found if values is not None]
    return [values.reshape(*batch, *values.shape[1:]) for values in context]
