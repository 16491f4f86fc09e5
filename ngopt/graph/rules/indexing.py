"""x[places], read and written, also at places that data decide; copy and fill.

`Memory` in `ngopt.graph.tracing.interpreter` updates other tensors that share the
memory of a tensor that is written.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.attention import MAX_ENTRIES
from ngopt.graph.rules.conversions import as_neurons, labels_of
from ngopt.graph.rules.embeddings import table
from ngopt.graph.rules.neuron_pairs import product_of
from ngopt.graph.rules.pointwise import addition, note_function
from ngopt.graph.rules.registry import aten, functions, register_layer_rule
from ngopt.graph.rules.reshaping import rearrange
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    SAME_CONSTANT,
    Elements,
    Neurons,
    Unknown,
    Value,
    has_any,
    has_one_value,
    nodes_among,
    same_along,
    with_zero_strides,
)

SUMS = (aten.add, aten.add_)
FILLS = functions("fill fill_ zero_")
ADDITIONS = functions("index_add index_add_ scatter_add scatter_add_")
WRITES = functions(
    "scatter_reduce scatter_reduce_ index_reduce index_reduce_ index_copy index_copy_"
)
SCATTERS = aten.scatter.src, aten.scatter_.src  # others write a number
Index = Sequence[Value | None]
"""A tensor for each indexed dimension, or a mask for several; else None."""


@register_layer_rule(aten.index)
def index(tracer: Tracer, call: Node, x: Value, places: Index) -> Value:
    if not is_data_dependent(tracer, call, places):
        return rearrange(tracer, call, x, places)
    return _at_unknown_places(tracer, call, x, indexed_dims(call))


@register_layer_rule(aten.index_select)
def index_select(
    tracer: Tracer, call: Node, x: Value, dim: int, places: Value
) -> Value:
    if not is_data_dependent(tracer, call, [places]):
        return rearrange(tracer, call, x, dim, places)
    return _at_unknown_places(tracer, call, x, [dim % len(x.shape)])


def is_data_dependent(tracer: Tracer, call: Node, places: Index) -> bool:
    """Whether some places are not constant, as in `x[scores > 0]`."""
    # integer inputs are traced as zeros, so a mask of them has arbitrary values
    depends_on_input = not tracer.input_dependent.isdisjoint(call.all_input_nodes[1:])
    return depends_on_input or has_any(places, (Neurons, Unknown))


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
    return dims == list(range(dims[0], dims[0] + len(dims)))


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
    others = [d for d in range(len(x.shape)) if d not in dims]
    nodes = None
    if isinstance(x, Elements) and len(dims) == 1:
        # rows of several long axes are weights, such as those of experts
        if sum(x.shape[d] > 1 for d in others) < 2:
            count = prod(x.shape[d] for d in others)
            rows = x.apply(lambda w: w.movedim(dims, [0]).reshape(-1, count))
            nodes = table(tracer, call, rows)
    elif isinstance(x, Neurons):
        nodes = tracer.unify_places(x.labels, others) if others else None
        if nodes is None:
            nodes = _nodes_at_any_place(tracer, call, x, dims)
    if nodes is None:
        return tracer.unknown(call)
    # as in torch, dimensions of indices come first if they are not adjacent
    first = dims[0] if are_adjacent(dims) else 0
    sizes = [x.shape[d] for d in others]
    sizes[first:first] = [1] * (len(shape) - len(sizes))
    return Neurons(nodes.reshape(sizes).expand(shape))


def _nodes_at_any_place(
    tracer: Tracer, call: Node, x: Neurons, dims: list[int]
) -> Tensor | None:
    """The nodes (n,) of all places along some dimensions, or new nodes behind these.
    None if these are too many, or any entry is no neuron."""
    moved = tracer.nodes.find(x.labels).movedim(dims, list(range(len(dims))))
    rows = moved.reshape(moved.shape[: len(dims)].numel(), -1).unique(dim=0)
    if len(rows) == 1 and (rows > 0).all():
        return rows[0]
    if (rows <= 0).any() or rows.numel() > MAX_ENTRIES:
        return None
    # the graph does not contain which place is selected
    tracer.pin(rows)
    nodes = tracer.nodes.new(call.name, rows.shape[1], "pool", rows)
    tracer.edges(None, rows, nodes, "pool")
    return nodes


@register_layer_rule(aten.copy, aten.copy_)
def copy(tracer: Tracer, call: Node, x: Value, new: Value, *_) -> Value:
    """All entries of x become those of another tensor."""
    if isinstance(new, Unknown):
        return tracer.unknown(call)
    return Neurons(labels_of(tracer, new).expand(x.shape))


@register_layer_rule(*FILLS)
def fill(tracer: Tracer, call: Node, x: Value, *_) -> Value:
    """All entries of x become one number."""
    if isinstance(x, Elements):
        # erased elements stay with the rest of the parameter: biases of keys in Swin V2
        tracer.pinned_parameters.add(x.parameter)
        return x
    return Neurons(torch.tensor(SAME_CONSTANT).expand(x.shape))


@register_layer_rule(aten.index_put, aten.index_put_)
def index_put(
    tracer: Tracer, call: Node, x: Value, places: Index, new: Value, *_
) -> Value:
    """x with new entries at some places."""
    if isinstance(new, Tensor) and not new.numel():
        return x
    if isinstance(x, (Unknown, Elements)) or isinstance(new, Unknown):
        return tracer.unknown(call)
    if is_data_dependent(tracer, call, places):
        return _put_at_unknown_places(tracer, call, x, new)
    if tracer.argument(call, "accumulate"):
        return tracer.unknown(call)
    where: Any = tuple(slice(None) if place is None else place for place in places)
    labels = labels_of(tracer, x).clone()
    labels[where] = labels_of(tracer, new)
    return Neurons(with_zero_strides(labels))


def _put_at_unknown_places(
    tracer: Tracer, call: Node, x: Neurons | Tensor, new: Value
) -> Value:
    """x with the same new entries at some places, which data decide."""
    dims = indexed_dims(call)
    if isinstance(new, Tensor):
        if not isinstance(x, Neurons):
            return tracer.unknown(call)
        note_function(tracer, call, x.labels)
        return x
    neurons = as_neurons(tracer, new)
    written = _at_all_places(neurons, dims, x.shape) if are_adjacent(dims) else None
    if written is None:
        return tracer.unknown(call)
    if tracer.argument(call, "accumulate"):
        return addition(tracer, call, x, written)
    # the sums represent also the places that stay as they are
    if isinstance(x, Tensor) or _is_sum_with_old(call):
        return written
    return product_of(tracer, call, x, written)


def _is_sum_with_old(call: Node) -> bool:
    """Whether x[places] + something is written to x[places]."""
    new: Any = call.args[2]
    if not isinstance(new, Node) or packet_of(new) not in SUMS:
        return False
    terms = [term for term in new.args if isinstance(term, Node)]
    read = [term for term in terms if packet_of(term) is aten.index]
    return any(term.args[:2] == call.args[:2] for term in read)


def _at_all_places(new: Neurons, dims: list[int], shape: torch.Size) -> Neurons | None:
    """The neurons of some places at all places; None if they differ between places.

    shape: of all places. dims: those of the places in it, adjacent; the new entries
    have one dimension for these.
    """
    first = dims[0]
    before, behind = shape[:first], shape[dims[-1] + 1 :]
    # new entries may lack dimensions
    axis = -1 - len(behind)
    length = new.shape[axis] if len(new.shape) >= -axis else 1
    rows = new.labels.expand(*before, length, *behind)
    if not same_along(rows, first):
        return None
    row = rows.narrow(first, 0, 1).reshape(*before, *[1] * len(dims), *behind)
    return replace(new, labels=row.expand(shape))


@register_layer_rule(*ADDITIONS, *WRITES, *SCATTERS)
def scatter(
    tracer: Tracer, call: Node, x: Value, dim: int, places: Value, new: Value, *_, **__
) -> Value:
    """New rows (..., rows, ...) at some places along a dimension of x, or a sum or
    maximum of both."""
    if isinstance(x, Unknown) or not isinstance(new, Neurons):
        return tracer.unknown(call)
    if not same_along(new.labels, dim):
        return tracer.unknown(call)
    rows = Neurons(new.labels.narrow(dim, 0, 1).expand(x.shape))
    if packet_of(call) in ADDITIONS:
        return addition(tracer, call, x, rows)
    # the largest neurons of each row, at the places where they were
    if dim % len(x.shape) and len(nodes_among(new.labels)) == 1:
        return tracer.unknown(call)
    note_function(tracer, call, rows.labels)
    return product_of(tracer, call, as_neurons(tracer, x), rows)
