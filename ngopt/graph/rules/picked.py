"""Places that are read and written where data say, as tokens by the expert that they go to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.entries import labels_of, move
from ngopt.graph.rules.layers import embedding
from ngopt.graph.rules.products import PRODUCTS, addition
from ngopt.graph.rules.registry import packet_of, register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Neurons, Unknown, Value, folded, same_along

aten = torch.ops.aten

Index = Sequence[Value | None]
SUMS = (aten.add, aten.add_)


@register_rule(aten.index)
def index(tracer: Tracer, call: Node, x: Value, places: Index) -> Value:
    """x[places]."""
    if not _is_unknown(places):
        return move(tracer, call, (x, places), {})
    return _picked(tracer, call, x, _indexed_dims(call))


@register_rule(aten.index_select)
def index_select(tracer: Tracer, call: Node, x: Value, dim: int, places: Value) -> Value:
    if not isinstance(places, Unknown):
        return move(tracer, call, (x, dim, places), {})
    return _picked(tracer, call, x, [dim % len(x.shape)])


def _is_unknown(places: Index) -> bool:
    return any(isinstance(place, Unknown) for place in places)


def _indexed_dims(call: Node) -> list[int]:
    """The dimensions of the first operand that are indexed; a mask is of several."""
    places: Any = call.args[1]
    dims = []
    d = 0
    for place in places:
        mask = place is not None and place.meta["val"].dtype == torch.bool
        length = place.meta["val"].dim() if mask else 1
        if place is not None:
            dims += range(d, d + length)
        d += length
    return dims


def _picked(tracer: Tracer, call: Node, x: Value, dims: list[int]) -> Value:
    """Places of x along some dimensions; which, nobody knows.

    Neurons that are the same at all places are so here. Where they differ, as those of several
    experts, any may come: then each is a node behind all that it may be.
    """
    shape = tracer.shape_of(call)
    if isinstance(x, Tensor) and x.numel() and same_along(x.flatten(), 0):
        # of the input it takes the shape alone: zeros stay 0
        tracer.data.discard(call)
        return x.flatten()[0].expand(shape).clone()
    if isinstance(x, Elements) and len(x.shape) == 2 and dims == [0]:
        return embedding(tracer, call, x, None)
    others = [d for d in range(len(x.shape)) if d not in dims]
    if not isinstance(x, Neurons) or not others:
        return tracer.unknown(call)
    nodes = tracer.unify_places(x.labels, others)
    if nodes is None:
        nodes = _any_of(tracer, call, x.labels, dims)
    if nodes is None:
        return tracer.unknown(call)
    # as in torch, indices that are not side by side come first
    are_together = dims == list(range(dims[0], dims[-1] + 1))
    first = dims[0] if are_together else 0
    sizes = [x.shape[d] for d in others]
    new = [1] * (len(shape) - len(others))
    labels = nodes.reshape(*sizes[:first], *new, *sizes[first:])
    return Neurons(labels.expand(shape))


def _any_of(tracer: Tracer, call: Node, labels: Tensor, dims: list[int]) -> Tensor | None:
    """Nodes (n,) behind the neurons of all places along some dimensions.

    None where these are too many, or any entry is no neuron.
    """
    labels = tracer.nodes.find(folded(labels)).movedim(dims, list(range(len(dims))))
    rows = labels.flatten(0, len(dims) - 1).flatten(1).unique(dim=0)
    if (rows <= 0).any() or rows.numel() > PRODUCTS:
        return None
    # which place is taken is not in the graph
    tracer.pin(rows)
    nodes = tracer.nodes.new(call.name, rows.shape[1], "pool", rows)
    tracer.edges(None, rows, nodes, "pool")
    return nodes


@register_rule(aten.index_put, aten.index_put_)
def index_put(
    tracer: Tracer,
    call: Node,
    x: Value,
    places: Index,
    new: Value,
    accumulate: bool = False,
) -> Value:
    """x with new entries at some places."""
    if isinstance(x, (Unknown, Elements)) or isinstance(new, Unknown):
        return tracer.unknown(call)
    if _is_unknown(places):
        return _put_somewhere(tracer, call, x, new, accumulate)
    if accumulate:
        return tracer.unknown(call)
    labels = labels_of(tracer, call, x).clone()
    labels[tuple(slice(None) if p is None else p for p in places)] = labels_of(tracer, call, new)
    return Neurons(folded(labels))


def _put_somewhere(
    tracer: Tracer,
    call: Node,
    x: Value,
    new: Value,
    is_added: bool,
) -> Value:
    dims = _indexed_dims(call)
    if len(dims) > 1 and dims != list(range(dims[-1] + 1)):
        return tracer.unknown(call)
    written = _along_all(new, dims[0], len(dims), x.shape)
    if written is None:
        return tracer.unknown(call)
    if is_added:
        return addition(tracer, call, x, written)
    # rows to which something was added stand for those to which nothing was
    is_blank = isinstance(x, Tensor) and same_along(x.flatten(), 0)
    return written if is_blank or _is_sum_with_old(call) else tracer.unknown(call)


def _is_sum_with_old(call: Node) -> bool:
    """Whether x[places] + something is written to x[places]."""
    new: Any = call.args[2]
    if not isinstance(new, Node) or packet_of(new) not in SUMS:
        return False
    terms = [term for term in new.args if isinstance(term, Node)]
    old = [term for term in terms if packet_of(term) is aten.index]
    return any(term.args[:2] == call.args[:2] for term in old)


def _along_all(new: Value, first: int, count: int, shape: torch.Size) -> Neurons | None:
    """Neurons of some places as those of all; None where they differ from place to place.

    first, count: the dimensions of places, in the shape of all.
    """
    if not isinstance(new, Neurons):
        return None
    behind = len(shape) - first - count
    # new entries may lack dimensions along which they are the same
    rows = new.labels.broadcast_to(
        torch.broadcast_shapes(new.shape, (1,) * (first + 1) + tuple(shape[first + count :]))
    )
    dim = rows.dim() - behind - 1
    if not same_along(rows, dim):
        return None
    row = rows.narrow(dim, 0, 1)
    ones = [1] * (count - 1)
    labels = row.reshape(*row.shape[:dim], *ones, *row.shape[dim:])
    return replace(new, labels=labels.expand(shape))


@register_rule(aten.index_add, aten.index_add_, aten.scatter_add, aten.scatter_add_)
def index_add(
    tracer: Tracer,
    call: Node,
    x: Value,
    dim: int,
    places: Value,
    source: Value,
    **_: Any,
) -> Value:
    """Adds rows of a source, (..., rows, ...), to some places of x along a dimension."""
    dim = dim % len(x.shape)
    if not isinstance(source, Neurons) or isinstance(x, Unknown):
        return tracer.unknown(call)
    if not same_along(source.labels, dim):
        return tracer.unknown(call)
    row = source.labels.narrow(dim, 0, 1)
    return addition(tracer, call, x, Neurons(row.expand(x.shape)))


@register_rule(aten._grouped_mm, "transformers.grouped_mm_fallback")
def grouped_matmul(
    tracer: Tracer,
    call: Node,
    x: Value,
    weight: Value,
    *_: Any,
    **__: Any,
) -> Value:
    """Rows of x (rows, n_in), one group after the other, times W (groups, n_in, n_out) of theirs.

    Data say how many rows are of which group; here it is as many of each.
    """
    shape = tracer.shape_of(call)
    is_known = isinstance(x, Neurons) and isinstance(weight, Elements)
    if not is_known or [len(x.shape), len(weight.shape)] != [2, 3] or len(x.shape) > len(shape):
        return tracer.unknown(call)
    groups, _, n_out = weight.shape
    if len(x.labels) < groups:
        return tracer.unknown(call)
    group = torch.arange(len(x.labels)) * groups // len(x.labels)
    sources = []
    for k in range(groups):
        own = tracer.unify_places(x.labels[group == k], -1)
        if own is None:
            return tracer.unknown(call)
        sources.append(own)
    targets = tracer.new_layer(weight, groups * n_out).reshape(groups, 1, n_out)
    tracer.edges(weight, torch.stack(sources)[:, :, None], targets, call=call)
    labels = targets[:, 0][group]
    return Neurons(labels.expand(shape))
