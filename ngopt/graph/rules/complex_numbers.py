"""view_as_complex and view_as_real."""

from __future__ import annotations

import torch
from torch.fx import Node

from ngopt.graph.rules.neuron_pairs import edges_per_use
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Neurons, Value

aten = torch.ops.aten


@register_rule(aten.view_as_complex)
def view_as_complex(tracer: Tracer, call: Node, x: Value) -> Value:
    """A node for each pair of real neurons, along the last axis."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    (labels,) = tracer.nodes.find_all(x.labels)
    rows = labels.reshape(-1, 2)
    rows, which = rows.unique(dim=0, return_inverse=True)
    if (rows <= 0).any():
        return tracer.unknown(call)
    pairs = rows.T
    left, right = pairs
    nodes = tracer.nodes.new(call.name, len(rows), "product", pairs)
    edges_per_use(tracer, left, nodes, "left")
    edges_per_use(tracer, right, nodes, "right")
    labels = nodes[which].reshape(labels.shape[:-1])
    return Neurons(labels.expand(tracer.shape_of(call)))


@register_rule(aten.view_as_real)
def view_as_real(tracer: Tracer, call: Node, x: Value) -> Value:
    """Two nodes for each complex neuron."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    (labels,) = tracer.nodes.find_all(x.labels)
    numbers, which = labels.unique(return_inverse=True)
    if (numbers <= 0).any():
        return tracer.unknown(call)
    parts = []
    for kind in ("left", "right"):
        name = f"{call.name}.{kind}"
        nodes = tracer.nodes.new(name, len(numbers), "product", numbers[None])
        tracer.edges(None, numbers, nodes, kind)
        parts.append(nodes)
    labels = torch.stack(parts, -1)[which]
    return Neurons(labels.expand(tracer.shape_of(call)))
