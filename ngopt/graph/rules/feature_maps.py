"""Makes each channel of a feature map one neuron at all places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ngopt.graph.tracing.edges import Edges
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import has_duplicates, without_repeats


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
            # the linear layer before a norm has channels, too
            _unify_partners(tracer)


def _unify_partners(tracer: Tracer) -> None:
    """Unifies the nodes that edges from one to one connect to unified nodes."""
    # unifying adds no edges
    pairs = list(_one_to_one(tracer.all_edges))
    changed = True
    while changed:
        changed = False
        for ends, partners in pairs:
            if _unify_each(tracer, ends, partners):
                changed = True


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
