"""Functions without weights that pool or reduce: of several entries they make one."""

from __future__ import annotations

from math import prod
from re import search
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.entries import is_whole
from ngopt.graph.rules.entrywise import applied
from ngopt.graph.rules.places import join_places
from ngopt.graph.rules.registry import functions, register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Neurons, Unknown, Value, same_along

POOLS = functions("""
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d
max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_bilinear2d upsample_bicubic2d lp_pool2d _adaptive_avg_pool2d upsample_linear1d
upsample_trilinear3d _upsample_bilinear2d_aa
""")


@register_rule(*POOLS)
def pool(
    tracer: Tracer,
    call: Node,
    x: Value,
    *_: Any,
    **__: Any,
) -> Value:
    """Pooling and resampling keep the channels."""
    values = call.meta["val"]
    if isinstance(values, Tensor):
        return _pooled(tracer, call, x, values.shape)
    first, *others = (value.shape for value in values)
    return (_pooled(tracer, call, x, first), *map(Unknown, others))


def _pooled(
    tracer: Tracer,
    call: Node,
    x: Value,
    shape: torch.Size,
) -> Value:
    if not isinstance(x, Neurons):
        return Unknown(shape)
    # a single map (channels, *space) has no batch, and comes to the function that its space has
    channel = x.labels.dim() - _spatial_dims(call) - 1
    # a window lies over several neurons of a channel behind a pixel shuffle
    join_places(tracer, x.labels, channel)
    channels = tracer.unify_places(x.labels, channel)
    if channels is None:
        return Unknown(shape)
    # channels that are pooled otherwise are no twins of these, nor those that are not
    applied(tracer, call, channels)
    space = [1] * (len(shape) - channel - 1)
    labels = channels.reshape(-1, *space)
    return Neurons(labels.expand(shape))


def _spatial_dims(call: Node) -> int:
    """2 of `max_pool2d`, as its name says."""
    found = search(r"(\d)d", str(call.target))
    assert found is not None
    return int(found[1])


REDUCTIONS = functions("""
mean sum nansum amax amin aminmax max min median var std var_mean std_mean norm linalg_norm
linalg_vector_norm logsumexp special_logsumexp prod
""")
ROWS = 4096
"""At most so many different sets of neurons in one reduction, each a node."""


@register_rule(*REDUCTIONS)
def reduction(
    tracer: Tracer,
    call: Node,
    x: Value,
    *_: Any,
    **__: Any,
) -> Value:
    values = call.meta["val"]
    if isinstance(values, Tensor):
        return _reduced(tracer, call, x, values.shape)
    result = _reduced(tracer, call, x, values[0].shape)
    # of the places of a maximum nothing is known
    return tuple(result if v.is_floating_point() else Unknown(v.shape) for v in values)


def _reduced(
    tracer: Tracer,
    call: Node,
    x: Value,
    shape: torch.Size,
) -> Value:
    """Over positions of the same neurons these stay; different neurons meet in a new node."""
    if not isinstance(x, Neurons):
        # one number of all elements says nothing of rows
        if isinstance(x, Elements) and shape.numel() > 1:
            tracer.rowwise.add(x.parameter)
        # statistics of rows are exchanged with them, as in normalised, unless rows were cut
        return Unknown(shape, equivariant=is_whole(tracer, x))
    dims = _reduced_dims(call, x.shape, shape)
    if dims is None:
        return Unknown(shape)
    labels = tracer.nodes.find(x.labels)
    last = list(range(-len(dims), 0))
    rows = labels.movedim(dims, last).reshape(shape.numel(), -1)
    if same_along(rows, 1):
        nodes = rows[:, 0]
        applied(tracer, call, nodes)
    else:
        nodes = _pool_nodes(tracer, call, rows)
    if nodes is None:
        return Unknown(shape)
    return Neurons(nodes.reshape(shape))


def _pool_nodes(tracer: Tracer, call: Node, rows: Tensor) -> Tensor | None:
    """A node for each set of neurons (n,) among rows (r, n), as (r,); None if they are too many."""
    # no reduction sees an order, so that rows of the same neurons have one node
    rows = rows.sort(dim=1).values
    sets, which = rows.unique(dim=0, return_inverse=True)
    if len(sets) > ROWS or (sets <= 0).any():
        return None
    count = len(sets)
    # (n, sets): pools of the inputs at several places may become one, as those are free
    nodes = tracer.nodes.new(call.name, count, "pool", sets.T)
    tracer.edges(None, sets, nodes[:, None], "pool")
    for row in sets:
        members, counts = row.unique(return_counts=True)
        # an edge of value 1 does not say how often a neuron is in the sum
        if (counts != counts[0]).any():
            tracer.pin(members)
    return nodes[which]


def _reduced_dims(
    call: Node,
    before: torch.Size,
    after: torch.Size,
) -> list[int] | None:
    """The dimensions that a function reduces, as its signature names them."""
    signature = call.target._schema.arguments  # type: ignore[union-attr]
    names = [argument.name for argument in signature]
    # torch.fx leaves out arguments that have their defaults
    given = dict(zip(names, call.args, strict=False)) | call.kwargs
    dims: Any = given.get("dim")
    count = len(before)
    # for torch an empty list means all dimensions; other results without dims are not known
    if dims is None or dims == []:
        return list(range(count)) if prod(after) == 1 else None
    dims = [dims] if isinstance(dims, int) else dims
    return sorted(d % count for d in dims)
