"""Places that data pick, as the tokens of an expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.attention import MAX_ENTRIES
from ngopt.graph.rules.linear import embedding
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.rules.reshaping import move
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Elements,
    Neurons,
    Unknown,
    Value,
    has_one_value,
    not_none,
)

aten = torch.ops.aten

Index = Sequence[Value | None]
"""A tensor for each dimension that is indexed, or for several a mask; None for the
others."""


@register_rule(aten.index)
def index(tracer: Tracer, call: Node, x: Value, places: Index) -> Value:
    """x[places]."""
    if not is_unknown(places):
        return move(tracer, call, (x, places), {})
    dims = indexed_dims(call)
    return _picked(tracer, call, x, dims)


@register_rule(aten.index_select)
def index_select(
    tracer: Tracer, call: Node, x: Value, dim: int, places: Value
) -> Value:
    """Rows of x along one dimension."""
    if not is_unknown([places]):
        return move(tracer, call, (x, dim, places), {})
    dim = dim % len(x.shape)
    return _picked(tracer, call, x, [dim])


def is_unknown(places: Index) -> bool:
    """Whether some places are not constant: neurons may be places, as in
    `x[scores > 0]`."""
    return any(isinstance(place, (Neurons, Unknown)) for place in places)


def indexed_dims(call: Node) -> list[int]:
    """The dimensions of the first operand that are indexed; a mask is of several."""
    places: Any = call.args[1]
    dims: list[int] = []
    first = 0
    for place in places:
        if place is None:
            first += 1
            continue
        behind = first + _indexed(place.meta["val"])
        dims += range(first, behind)
        first = behind
    return dims


def _indexed(place: Tensor) -> int:
    """How many dimensions a tensor of places indexes."""
    return place.dim() if place.dtype == torch.bool else 1


def are_together(dims: list[int]) -> bool:
    """Whether dimensions lie side by side."""
    first = dims[0]
    behind = first + len(dims)
    return dims == list(range(first, behind))


def _picked(tracer: Tracer, call: Node, x: Value, dims: list[int]) -> Value:
    """Places of x along some dimensions; which, nobody knows.

    Neurons that are the same at all places are so here. Where they differ, as those of
    several experts, any may come: then each is a node behind all that it may be.
    """
    shape = tracer.shape_of(call)
    if isinstance(x, Tensor) and has_one_value(x):
        # of the input it takes the shape alone: zeros stay 0
        tracer.input_dependent.discard(call)
        return x.flatten()[0].expand(shape).clone()
    if isinstance(x, Elements) and len(x.shape) == 2 and dims == [0]:
        return embedding(tracer, call, x, None)
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    others = [d for d in range(len(x.shape)) if d not in dims]
    nodes = tracer.unify_places(x.labels, others) if others else None
    if nodes is None:
        nodes = _any_of(tracer, call, x.labels, dims)
    if nodes is None:
        return tracer.unknown(call)
    # as in torch, indices that are not side by side come first
    first = dims[0] if are_together(dims) else 0
    sizes = [x.shape[d] for d in others]
    new = [1] * (len(shape) - len(others))
    labels = nodes.reshape(*sizes[:first], *new, *sizes[first:])
    return Neurons(labels.expand(shape))


def _any_of(
    tracer: Tracer, call: Node, labels: Tensor, dims: list[int]
) -> Tensor | None:
    """Nodes (n,) behind the neurons of all places along some dimensions.

    None where these are too many, or any entry is no neuron.
    """
    count = len(dims)
    labels = tracer.nodes.find(labels)
    moved = labels.movedim(dims, list(range(count)))
    places = moved.shape[:count].numel()
    rows = moved.reshape(places, -1).unique(dim=0)
    if len(rows) == 1 and (rows > 0).all():
        return rows[0]
    if (rows <= 0).any() or rows.numel() > MAX_ENTRIES:
        return None
    # which place is taken is not in the graph
    tracer.pin(rows)
    nodes = tracer.nodes.new(call.name, rows.shape[1], "pool", rows)
    tracer.edges(None, rows, nodes, "pool")
    return nodes


@register_rule(aten._grouped_mm, "transformers.grouped_mm_fallback")
def grouped_matmul(
    tracer: Tracer, call: Node, x: Value, weight: Value, *_: Any, **__: Any
) -> Value:
    """Rows of x (rows, n_in), group after group, each times its group's W (groups,
    n_in, n_out).

    Data say how many rows a group has; here it is as many for each.
    """
    if not isinstance(x, Neurons) or not isinstance(weight, Elements):
        return tracer.unknown(call)
    # of other shapes groups are in the summed dimension, or in the result
    if (len(x.shape), len(weight.shape)) != (2, 3):
        return tracer.unknown(call)
    rows = len(x.labels)
    groups = weight.shape[0]
    n_out = weight.shape[2]
    group = torch.arange(rows) * groups // rows
    sources = _of_groups(tracer, x.labels, group, groups)
    if sources is None:
        return tracer.unknown(call)
    targets = tracer.new_layer(weight, groups * n_out)
    targets = targets.reshape(groups, n_out)
    tracer.edges(weight, sources[:, :, None], targets[:, None], call=call)
    return Neurons(targets[group])


def _of_groups(
    tracer: Tracer, labels: Tensor, group: Tensor, groups: int
) -> Tensor | None:
    """The neurons (groups, n) that the rows (rows, n) of each group have; None where
    one has none.

    group: of every row, (rows,).
    """
    found = []
    for k in range(groups):
        own = labels[group == k]
        nodes = tracer.unify_places(own, -1) if len(own) else None
        found += not_none(nodes)
    return torch.stack(found) if len(found) == groups else None
