"""Neurons that differ from place to place of a feature map, joined to channels."""

from __future__ import annotations

from torch import Tensor, full_like

from ngopt.graph.tracing.edges import Edges
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import repeats_any, without_repeats


def join_places(tracer: Tracer, labels: Tensor, channel: int) -> None:
    """Neurons of a map (*batch, channels, *space) become one at all places of a channel.

    A linear layer that makes a map, or a pixel shuffle, has a neuron for every place of a channel.
    What works alike on all places tells these apart by nothing but where they are: they are slots.
    """
    channel = channel % labels.dim()
    (labels,) = without_repeats([labels], keep=[channel])
    n = labels.shape[channel]
    rows = tracer.nodes.find(labels).movedim(channel, -1)
    maps = rows.reshape(labels.shape[:channel].numel(), -1, n)
    for places in maps.unique(dim=0):
        rows = places.unique(dim=0)
        if len(rows) > 1 and (rows > 0).all() and not repeats_any(rows):
            tracer.nodes.unify(rows[:1].expand_as(rows), rows)
            _join_partners(tracer)


def _join_partners(tracer: Tracer) -> None:
    """Joins what edges lead to one by one from joined neurons, and what they come from."""
    pairs = [ends for edges in tracer.found if (ends := _one_to_one(edges))]
    changed = True
    while changed:
        changed = False
        for ends in pairs:
            sources, targets = (tracer.nodes.find(nodes) for nodes in ends)
            for here, there in ((sources, targets), (targets, sources)):
                nodes, which = here.unique(return_inverse=True)
                oldest = full_like(nodes, int(there.max()))
                oldest = oldest.scatter_reduce(0, which, there, "amin")[which]
                if not (oldest == there).all():
                    tracer.nodes.unify(oldest, there)
                    changed = True


def _one_to_one(edges: Edges) -> tuple[Tensor, Tensor] | None:
    """Sources and targets of edges from one to one; None for others."""
    sources, targets = edges.sources, edges.targets
    if sources is None or sources.shape != targets.shape:
        return None
    if repeats_any(sources) or repeats_any(targets):
        return None
    return sources.flatten(), targets.flatten()
