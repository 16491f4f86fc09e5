"""Neurons that differ from place to place of a feature map, joined to channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ngopt.graph.tracing.edges import Edges
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import repeats_any, without_repeats


def join_places(
    tracer: Tracer,
    labels: Tensor,
    channel: int,
) -> None:
    """Neurons of a map (*batch, channels, *space) become one at all places of a channel.

    A linear layer that makes a map, or a pixel shuffle, has a neuron for every place of a channel.
    What works alike on all places tells these apart by nothing but where they are: they are slots.
    """
    channel = channel % labels.dim()
    (labels,) = without_repeats([labels], keep=[channel])
    batch = labels.shape[:channel].numel()
    n = labels.shape[channel]
    rows = tracer.nodes.find(labels).movedim(channel, -1)
    maps = rows.reshape(batch, -1, n)
    # batch entries may be maps of different neurons
    for places in maps.unique(dim=0):
        # those before may have joined neurons of these
        rows = tracer.nodes.find(places).unique(dim=0)
        are_neurons = len(rows) > 1 and (rows > 0).all()
        # a neuron in two channels would make these one
        if are_neurons and not repeats_any(rows):
            first = rows[:1].expand_as(rows)
            tracer.nodes.unify(first, rows)
            # a norm between a linear layer and its map: that layer has channels, too
            _join_partners(tracer)


def _join_partners(tracer: Tracer) -> None:
    """Joins what edges lead to one by one from joined neurons, and what they come from."""
    # finding partners adds no edges, so that one list does
    ways = list(_one_to_one(tracer.found))
    changed = True
    while changed:
        joined = [_join(tracer, here, there) for here, there in ways]
        changed = any(joined)


def _one_to_one(found: Sequence[Edges]) -> Iterator[tuple[Tensor, Tensor]]:
    """Sources and targets of edges from one to one, either way round."""
    for edges in found:
        sources, targets = edges.sources, edges.targets
        if sources is None or sources.shape != targets.shape or not sources.numel():
            continue
        if repeats_any(sources) or repeats_any(targets):
            continue
        sources = sources.flatten()
        targets = targets.flatten()
        yield sources, targets
        yield targets, sources


def _join(tracer: Tracer, here: Tensor, there: Tensor) -> bool:
    """Joins nodes there[i] whose here[i] are one node; whether that changes any."""
    here = tracer.nodes.find(here)
    there = tracer.nodes.find(there)
    nodes, which = here.unique(return_inverse=True)
    # the minimum counts these in: as the greatest they change nothing
    oldest = torch.full_like(nodes, int(there.max()))
    oldest.scatter_reduce_(0, which, there, "amin")
    joined = oldest[which]
    if torch.equal(joined, there):
        return False
    tracer.nodes.unify(joined, there)
    return True
