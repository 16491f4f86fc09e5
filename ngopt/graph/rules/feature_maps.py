"""Feature maps: pooling and resampling, and channels as one neuron at all places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from re import search

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.pointwise import note_function
from ngopt.graph.rules.registry import functions, register_rule
from ngopt.graph.tracing.edges import Edges
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
    has_duplicates,
    without_repeats,
)


def unify_channel_places(tracer: Tracer, labels: Tensor, channel: int) -> None:
    """Each channel of a map (*batch, channels, *space) becomes one neuron.

    A linear layer that makes a map, or a pixel shuffle, has a neuron for every place of
    a channel. A function that works alike on all places distinguishes them only by
    their place, so they become slots.
    """
    channel = channel % labels.dim()
    (labels,) = without_repeats([labels], keep=[channel])
    batch = labels.shape[:channel].numel()
    n = labels.shape[channel]
    rows = tracer.nodes.find(labels).movedim(channel, -1)
    maps = rows.reshape(batch, -1, n)
    # batch entries may be maps of different neurons
    for places in maps.unique(dim=0):
        # earlier maps may have unified neurons of this one
        rows = tracer.nodes.find(places).unique(dim=0)
        are_neurons = len(rows) > 1 and (rows > 0).all()
        # a neuron of two channels would unify these
        if are_neurons and not has_duplicates(rows):
            first = rows[:1].expand_as(rows)
            tracer.nodes.unify(first, rows)
            # the linear layer before a norm has channels, too: edges from one to one
            # connect unified nodes to partners, which are unified
            pairs = list(_one_to_one(tracer.all_edges))
            changed = [True]
            while any(changed):
                changed = [_unify_each(tracer, *pair) for pair in pairs]


def _one_to_one(all_edges: Sequence[Edges]) -> Iterator[tuple[Tensor, Tensor]]:
    """Sources and targets of edges from one to one, and targets and sources."""
    for edges in all_edges:
        sources, targets = edges.sources, edges.targets
        if sources is None or sources.shape != targets.shape or not sources.numel():
            continue
        if has_duplicates(sources) or has_duplicates(targets):
            continue
        sources = sources.flatten()
        targets = targets.flatten()
        yield sources, targets
        yield targets, sources


def _unify_each(tracer: Tracer, ends: Tensor, partners: Tensor) -> bool:
    """Unifies partners[i] whose ends[i] are one node; returns whether any changed."""
    ends = tracer.nodes.find(ends)
    partners = tracer.nodes.find(partners)
    nodes, which = ends.unique(return_inverse=True)
    # the initial values are the maximum, so that they change no minimum
    oldest = torch.full_like(nodes, int(partners.max()))
    oldest.scatter_reduce_(0, which, partners, "amin")
    unified = oldest[which]
    if torch.equal(unified, partners):
        return False
    tracer.nodes.unify(unified, partners)
    return True


POOLS = functions("""
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d
max_pool2d max_pool3d max_pool2d_with_indices upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_bilinear2d upsample_bicubic2d lp_pool2d _adaptive_avg_pool2d
upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa
""")


@register_rule(*POOLS)
def pool(tracer: Tracer, call: Node, x: Value, *_, **__) -> Value:
    """The channels stay."""
    values = call.meta["val"]
    if isinstance(values, Tensor):
        return _pooled(tracer, call, x, values.shape)
    first, *others = (value.shape for value in values)
    return (_pooled(tracer, call, x, first), *map(Unknown, others))


def _pooled(tracer: Tracer, call: Node, x: Value, shape: torch.Size) -> Value:
    if not isinstance(x, Neurons):
        return Unknown(shape)
    # a single map (channels, *space) has no batch, but the function of its space
    found = search(r"(\d)d", str(call.target))  # 2 for `max_pool2d`
    assert found is not None
    channel = x.labels.dim() - int(found[1]) - 1
    # behind a pixel shuffle a window contains several neurons of a channel
    unify_channel_places(tracer, x.labels, channel)
    channels = tracer.unify_places(x.labels, channel)
    if channels is None:
        return Unknown(shape)
    # other channels may have another pool, or none
    note_function(tracer, call, channels)
    space = [1] * (len(shape) - channel - 1)
    labels = channels.reshape(-1, *space)
    return Neurons(labels.expand(shape))
