"""x[places] and index_select, also of places that data decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.attention import MAX_ENTRIES
from ngopt.graph.rules.embeddings import embedding
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.rules.reshaping import rearrange
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Elements, Neurons, Unknown, Value, has_one_value

aten = torch.ops.aten

Index = Sequence[Value | None]
"""A tensor for each indexed dimension, or a mask for several; else None."""


@register_rule(aten.index)
def index(tracer: Tracer, call: Node, x: Value, places: Index) -> Value:
    """x[places]."""
    if not is_data_dependent(places):
        return rearrange(tracer, call, (x, places), {})
    dims = indexed_dims(call)
    return _at_unknown_places(tracer, call, x, dims)


@register_rule(aten.index_select)
def index_select(
    tracer: Tracer, call: Node, x: Value, dim: int, places: Value
) -> Value:
    """Rows of x along one dimension."""
    if not is_data_dependent([places]):
        return rearrange(tracer, call, (x, dim, places), {})
    dim = dim % len(x.shape)
    return _at_unknown_places(tracer, call, x, [dim])


def is_data_dependent(places: Index) -> bool:
    """Whether some places are not constant, as in `x[scores > 0]`."""
    return any(isinstance(place, (Neurons, Unknown)) for place in places)


def indexed_dims(call: Node) -> list[int]:
    """The dimensions of the first operand that are indexed; a mask indexes several."""
    places: Any = call.args[1]
    dims: list[int] = []
    first = 0
    for place in places:
        if place is None:
            first += 1
            continue
        tensor = place.meta["val"]
        count = tensor.dim() if tensor.dtype == torch.bool else 1
        dims += range(first, first + count)
        first += count
    return dims


def are_adjacent(dims: list[int]) -> bool:
    first = dims[0]
    return dims == list(range(first, first + len(dims)))


def _at_unknown_places(tracer: Tracer, call: Node, x: Value, dims: list[int]) -> Value:
    """x at some places along some dimensions, which data decide.

    Neurons that are the same at all places stay. If they differ, as those of several
    experts, each result is a node behind all neurons that it may be.
    """
    shape = tracer.shape_of(call)
    if isinstance(x, Tensor) and has_one_value(x):
        # the result depends on the shape of the input alone: zeros stay 0
        tracer.input_dependent.discard(call)
        return x.flatten()[0].expand(shape).clone()
    is_matrix = isinstance(x, Elements) and len(x.shape) == 2
    if is_matrix and dims == [0]:
        return embedding(tracer, call, x, None)
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    nodes = _nodes_at_any_place(tracer, call, x, dims)
    if nodes is None:
        return tracer.unknown(call)
    # as in torch, dimensions of indices come first if they are not adjacent
    first = dims[0] if are_adjacent(dims) else 0
    sizes = [x.shape[d] for d in _other_dims(x, dims)]
    new = [1] * (len(shape) - len(sizes))
    sizes[first:first] = new
    labels = nodes.reshape(sizes)
    return Neurons(labels.expand(shape))


def _other_dims(x: Neurons, dims: list[int]) -> list[int]:
    return [d for d in range(len(x.shape)) if d not in dims]


def _nodes_at_any_place(
    tracer: Tracer, call: Node, x: Neurons, dims: list[int]
) -> Tensor | None:
    """The nodes (n,) of all places along some dimensions, or new nodes behind these.

    None if these are too many, or any entry is no neuron.
    """
    others = _other_dims(x, dims)
    if others:
        nodes = tracer.unify_places(x.labels, others)
        if nodes is not None:
            return nodes
    count = len(dims)
    labels = tracer.nodes.find(x.labels)
    moved = labels.movedim(dims, list(range(count)))
    places = moved.shape[:count].numel()
    rows = moved.reshape(places, -1).unique(dim=0)
    if len(rows) == 1 and (rows > 0).all():
        return rows[0]
    if (rows <= 0).any() or rows.numel() > MAX_ENTRIES:
        return None
    # the graph does not contain which place is selected
    tracer.pin(rows)
    nodes = tracer.nodes.new(call.name, rows.shape[1], "pool", rows)
    tracer.edges(None, rows, nodes, "pool")
    return nodes
