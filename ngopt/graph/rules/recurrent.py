"""Recurrent layers: gates are slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.core import View
from ngopt.graph.rules.edges import connect
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from ngopt.graph.tracing.tracer import Tracer

aten = torch.ops.aten


@register_rule(aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
def recurrent(tracer: Tracer, node: Node, x: Value, states: Any, weights: Any, *options: Any) -> Value:
    """Gates are slots: W_ih (gates * n, n_in), W_hh (gates * n, n), and two biases, layer by layer and way by way."""
    unknown = tracer.unknown(node)
    if not isinstance(x, Neurons) or not isinstance(weights, (list, tuple)):
        return unknown
    has_biases, layers, _, _, both_ways = options[:5]
    names = [w for w in weights if isinstance(w, Elements)]
    per_way = len(names) // (layers * (2 if both_ways else 1))
    current = tracer.vector(x.labels, -1)
    if current is None:
        return unknown
    for layer in range(layers):
        ends = []
        for way in range(2 if both_ways else 1):
            first = (layer * (2 if both_ways else 1) + way) * per_way
            ends.append(_recurrent_layer(tracer, current, names[first : first + per_way], has_biases))
        current = torch.cat(ends)
    outputs = list(node.meta["val"])
    result = [Neurons(current.expand(outputs[0].shape))]
    return (*result, *(Unknown(v.shape) for v in outputs[1:]))


def _recurrent_layer(tracer: Tracer, sources: Tensor, weights: Sequence[Elements], has_biases: bool) -> Tensor:
    w_ih, w_hh = weights[:2]
    biases, projection = (weights[2:4], weights[4:]) if has_biases else ((), weights[2:])
    hidden = w_hh.shape[1]
    name = tracer.parameters[w_ih.parameter].name.replace("weight_ih_", "")
    cells = projection[0].shape[1] if projection else hidden
    gates = w_ih.shape[0] // cells
    targets = tracer.nodes.new(name, cells)
    fed_back = tracer.nodes.new(f"{name}.projection", hidden) if projection else targets
    incoming = ((w_ih, tracer.source_nodes(sources, name), "weight"), (w_hh, fed_back, "recurrent"))
    for weight, nodes, kind in incoming:
        view = weight.view()
        if view is None:
            continue
        row, column = view.strides
        shape = (1, cells, len(nodes))
        piece = View(weight.parameter, (*shape, gates), (0, row, column, row * cells), view.offset)
        tracer.add_block(piece, nodes, targets, shape, (gates,), kind)
    # a GRU gates what its state adds, with its bias; elsewhere the two are only summed
    for bias, kind in zip(biases, ("bias", "recurrent" if gates == 3 else "bias"), strict=False):
        tracer.add_bias(bias.move(lambda b: b.view(gates, cells).T, (bias,), {}), targets, kind)
    if projection:
        connect(tracer, projection[0], targets, fed_back)
    return fed_back
