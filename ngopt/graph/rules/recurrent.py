"""Recurrent layers and cells: gates are slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.core import View
from ngopt.graph.rules.edges import connect, edges_between
from ngopt.graph.rules.entries import as_neurons
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
)

aten = torch.ops.aten

REVERSE = torch.tensor([[-1.0]])
"""What the node stands for that has edges to all cells which read from the end: they are no twins of the others."""


@register_rule(aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
def recurrent(tracer: Tracer, node: Node, x: Value, *args: Any) -> Value:
    """Gates are slots: W_ih (gates * n, n_in), W_hh (gates * n, n), and two biases, layer by layer and way by way.

    Gives the outputs of the last layer and the last states (layers * ways, b, n), an LSTM's also of its cells.
    """
    packed = getattr(node.target, "_overloadname", "") == "data"  # then batch sizes follow x
    states, weights, has_biases, layers, _, _, both_ways = args[packed : packed + 7]
    current = _features(tracer, node, x)
    if current is None or not all(isinstance(w, Elements) for w in weights):
        return tracer.unknown(node)
    states = states if isinstance(states, (list, tuple)) else [states]
    ways = 2 if both_ways else 1
    per_way = len(weights) // (layers * ways)
    last = []
    for layer in range(layers):
        ends = []
        for k in range(layer * ways, (layer + 1) * ways):
            nodes = _recurrent_layer(tracer, current, weights[k * per_way : (k + 1) * per_way], has_biases)
            for (held_by, kind), state in zip(_holders(nodes, len(states)), states, strict=True):
                _enter(tracer, _state_of(state, k), held_by, kind)
            if k % ways:
                edges_between(tracer, tracer.constant_nodes(REVERSE).expand(len(nodes[0])), nodes[0], "spread")
            ends.append(nodes[0])
            last.append(nodes)
        current = torch.cat(ends)
    outputs = node.meta["val"]
    ends = [torch.stack(nodes)[:, None] for nodes in zip(*last, strict=True)]  # hidden states, and cells
    return tuple(Neurons(n.expand(v.shape)) for n, v in zip((current, *ends), outputs, strict=False))


def _features(tracer: Tracer, node: Node, x: Value) -> Tensor | None:
    """The neurons that a step sees of an input (..., n), -1 for constants; None where they cannot be followed."""
    if isinstance(x, Elements):
        x = as_neurons(tracer, node, x)
    if isinstance(x, Tensor) or (isinstance(x, Neurons) and bool((x.labels < 0).all())):
        return torch.full(x.shape[-1:], -1)
    return tracer.vector(x.labels, -1) if isinstance(x, Neurons) else None


def _recurrent_layer(
    tracer: Tracer, sources: Tensor, weights: Sequence[Elements], has_biases: bool
) -> tuple[Tensor, Tensor]:
    """Adds a layer; the nodes of its hidden state and of its cells, which are the same without a projection."""
    w_ih, w_hh = weights[:2]
    biases, projection = (weights[2:4], weights[4:]) if has_biases else ((), weights[2:])
    hidden, name = w_hh.shape[1], _name(tracer, w_ih)
    cells = tracer.nodes.new(name, projection[0].shape[1] if projection else hidden)
    fed_back = tracer.nodes.new(f"{name}.projection", hidden) if projection else cells
    gates = _gated(tracer, w_ih, sources, cells, "weight")
    _gated(tracer, w_hh, fed_back, cells, "recurrent")
    # a GRU gates what its state adds, with its bias; elsewhere the two are only summed
    for bias, kind in zip(biases, ("bias", "recurrent" if gates == 3 else "bias"), strict=False):
        tracer.add_bias(bias.move(lambda b: b.view(gates, len(cells)).T, (bias,), {}), cells, kind)
    if projection:
        connect(tracer, projection[0], cells, fed_back)
    return fed_back, cells


def _name(tracer: Tracer, w_ih: Elements) -> str:
    return tracer.parameters[w_ih.parameter].name.replace("weight_ih_", "").removesuffix(".weight_ih")


def _gated(tracer: Tracer, weight: Elements, sources: Tensor, cells: Tensor, kind: str) -> int:
    """Edges (n, n_source, gates) of a weight (gates * n, n_source); returns the number of gates."""
    gates, view = weight.shape[0] // len(cells), weight.view()
    if view is not None:
        sources = tracer.source_nodes(sources, _name(tracer, weight))
        row, column = view.strides
        shape = (1, len(cells), len(sources))
        piece = View(weight.parameter, (*shape, gates), (0, row, column, row * len(cells)), view.offset)
        tracer.add_block(piece, sources, cells, shape, (gates,), kind)
    return gates


def _holders(nodes: tuple[Tensor, Tensor], states: int) -> list[tuple[Tensor, str]]:
    """The nodes that hold each of a layer's states, and the kind of the edges through which a given one enters.

    The hidden state of an LSTM reaches its cells only through W_hh; other states are added to.
    """
    hidden, cells = nodes
    return [(hidden, "recurrent"), (cells, "residual")] if states == 2 else [(hidden, "residual")]


def _state_of(state: Value, k: int) -> Value:
    """The state (b, n) of one layer and way, of those of all (layers * ways, b, n)."""
    if isinstance(state, Neurons):
        return Neurons(state.labels[k])
    if isinstance(state, Elements):
        return Elements(state.parameter, state.numbers[k])
    return Unknown(state.shape[1:]) if isinstance(state, Unknown) else state[k]


def _enter(tracer: Tracer, state: Value, nodes: Tensor, kind: str) -> None:
    """Edges of value 1 from a given state (b, n) to the nodes that hold it; a learned one is a feature of these.

    Constants that treat all neurons alike, such as zeros, are nothing; others, and what could not be
    followed, have nodes of their own, one for each neuron.
    """
    if isinstance(state, Elements):
        rows = state.numbers
        own = rows[0] if (rows == rows[:1]).all() else rows.T
        tracer.add_bias(Elements(state.parameter, own), nodes, "value" if kind == "residual" else kind)
        return
    if isinstance(state, Tensor) and (state == state[..., :1]).all():
        return
    sources = None
    if isinstance(state, Neurons):
        if (state.labels < 0).all():
            return
        sources = tracer.vector(state.labels, -1)
    if sources is None:
        sources = tracer.source_nodes(torch.full_like(nodes, -1), "state")
    present = sources >= 0
    edges_between(tracer, sources[present], nodes[present], kind)


@dataclass
class Cell:
    """A cell that takes step after step: the nodes of all its states, and what reaches them.

    inputs: what W_ih sees in the steps, (n_in,) each. states: nodes from elsewhere and the kind of their edges.
    """

    nodes: tuple[Tensor, Tensor]
    inputs: list[Tensor] = field(default_factory=list)
    states: list[tuple[str, Tensor]] = field(default_factory=list)


@register_rule(aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
def recurrent_cell(tracer: Tracer, node: Node, x: Value, states: Any, *parameters: Value) -> Value:
    """A step of a recurrent layer, which has the same nodes as the step before where it takes up the state of that.

    Where no state is one of the same weights, a new recurrence begins.
    """
    weights = [w for w in parameters if isinstance(w, Elements)]
    features = _features(tracer, node, x)
    if features is None or any(w is not None and not isinstance(w, Elements) for w in parameters):
        return tracer.unknown(node)
    states = states if isinstance(states, (list, tuple)) else [states]
    given = [tracer.vector(s.labels, -1) if isinstance(s, Neurons) else None for s in states]
    known = tracer.cells.setdefault(tuple(w.view() for w in weights), [])
    cell = next((c for c in known if any(_same(tracer, c.nodes[0], nodes) for nodes in given)), None)
    if cell is None:
        cell = Cell(_recurrent_layer(tracer, features, weights, len(weights) > 2), [features])
        known.append(cell)
    elif not any(_same_input(tracer, old, features) for old in cell.inputs):
        _gated(tracer, weights[0], features, cell.nodes[1], "weight")
        cell.inputs.append(features)
    for (held_by, kind), state, nodes in zip(_holders(cell.nodes, len(states)), states, given, strict=True):
        entered = [held_by, *(old for k, old in cell.states if k == kind)]
        if nodes is None or not any(_same(tracer, old, nodes) for old in entered):
            _enter(tracer, state, held_by, kind)
            cell.states += [(kind, nodes)] if nodes is not None else []
    new = [Neurons(nodes.expand(s.shape)) for nodes, s in zip(cell.nodes, states, strict=False)]
    return tuple(new) if len(new) > 1 else new[0]


def _same(tracer: Tracer, a: Tensor, b: Tensor | None) -> bool:
    return b is not None and torch.equal(tracer.nodes.find(a), tracer.nodes.find(b))


def _same_input(tracer: Tracer, old: Tensor, new: Tensor) -> bool:
    """Whether the inputs of two steps are the same neurons, or entries of the network's input, which then become so."""
    old, new = tracer.nodes.find(old), tracer.nodes.find(new)
    differ = old != new
    if not differ.any():
        return True
    ends = torch.cat([old[differ], new[differ]])
    return bool((ends >= 0).all()) and tracer.nodes.are_free(ends) and tracer.nodes.can_unify(torch.stack([old, new]))


@register_rule(aten._pack_padded_sequence, aten._pad_packed_sequence)
def packing(tracer: Tracer, node: Node, x: Value, *_: Any) -> Value:
    """Sequences (b, t, n) become entries (entries, n), and these sequences: neurons stay, lengths are not followed."""
    features, (sequences, lengths) = _features(tracer, node, x), node.meta["val"]
    if features is None:
        return tracer.unknown(node)
    return Neurons(features.expand(sequences.shape)), Unknown(lengths.shape)
