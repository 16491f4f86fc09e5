"""Recurrent layers and cells: gates are slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.entries import as_neurons
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import NO_NEURON, Neurons, Unknown, Value

aten = torch.ops.aten

REVERSE = torch.tensor([[-1.0]])
"""What the node stands for that has edges to all cells which read from the end.

They are no twins of the others.
"""


@register_rule(aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
def recurrent(tracer: Tracer, call: Node, x: Value, *args: Any) -> Value:
    """W_ih (gates * n, n_in), W_hh (gates * n, n), and two biases, layer by layer and way by way.

    Gates are slots. Gives the outputs of the last layer and the last states (layers * ways, b, n),
    an LSTM's also of its cells.
    """
    is_packed = getattr(call.target, "_overloadname", "") == "data"  # then batch sizes follow x
    states, weights, has_biases, layers, _, _, both_ways = args[is_packed : is_packed + 7]
    current = _features(tracer, call, x)
    if current is None or not all(isinstance(w, Elements) for w in weights):
        return tracer.unknown(call)
    states = states if isinstance(states, (list, tuple)) else [states]
    ways = 2 if both_ways else 1
    per_way = len(weights) // (layers * ways)
    last = []
    for layer in range(layers):
        ends = []
        for k in range(layer * ways, (layer + 1) * ways):
            own = weights[k * per_way : (k + 1) * per_way]
            nodes = _recurrent_layer(tracer, call, current, own, has_biases)
            holders = _holders(nodes, len(states))
            for (held_by, kind), state in zip(holders, states, strict=True):
                _enter(tracer, _state_of(state, k), held_by, kind)
            if k % ways:
                tracer.edges(None, tracer.constant_nodes(REVERSE), nodes[0], "spread")
            ends.append(nodes[0])
            last.append(nodes)
        current = torch.cat(ends)
    # the outputs, the hidden states, and the cells
    ends = [current, *(torch.stack(nodes)[:, None] for nodes in zip(*last, strict=True))]
    values = call.meta["val"]
    return tuple(Neurons(n.expand(v.shape)) for n, v in zip(ends, values, strict=False))


def _features(tracer: Tracer, call: Node, x: Value) -> Tensor | None:
    """The neurons that a step sees of an input (..., n); constants are none.

    None where they cannot be followed.
    """
    if isinstance(x, Elements):
        x = as_neurons(tracer, call, x)
    is_constant = isinstance(x, Neurons) and bool((x.labels <= 0).all())
    if isinstance(x, Tensor) or is_constant:
        return torch.full(x.shape[-1:], NO_NEURON)
    return tracer.unify_places(x.labels, -1) if isinstance(x, Neurons) else None


def _recurrent_layer(
    tracer: Tracer, call: Node, sources: Tensor, weights: Sequence[Elements], has_biases: bool
) -> tuple[Tensor, Tensor]:
    """Adds a layer; the nodes of its hidden state and of its cells.

    These are the same without a projection.
    """
    w_ih, w_hh = weights[:2]
    biases, projection = (weights[2:4], weights[4:]) if has_biases else ((), weights[2:])
    hidden, name = w_hh.shape[1], _name(tracer, w_ih)
    cells = tracer.nodes.new(name, projection[0].shape[1] if projection else hidden)
    fed_back = tracer.nodes.new(f"{name}.projection", hidden) if projection else cells
    sources = tracer.source_nodes(sources, name)
    tracer.edges(_gated(w_ih, cells), sources, cells[:, None], "weight", call)
    tracer.edges(_gated(w_hh, cells), fed_back, cells[:, None], "recurrent", call)
    # a GRU gates what its state adds, with its bias; elsewhere the two are only summed
    is_gru = w_ih.shape[0] == 3 * len(cells)
    for bias, kind in zip(biases, ("bias", "recurrent" if is_gru else "bias"), strict=False):
        tracer.edges(_gated(bias, cells), None, cells, kind)
    if projection:
        tracer.edges(projection[0], cells, fed_back[:, None], call=call)
    return fed_back, cells


def _name(tracer: Tracer, w_ih: Elements) -> str:
    name = tracer.parameters[w_ih.parameter].name
    return name.replace("weight_ih_", "").removesuffix(".weight_ih")


def _gated(parameter: Elements, cells: Tensor) -> Elements:
    """(gates * n, *rest) -> (n, *rest, gates)."""
    apart = parameter.move(torch.unflatten, (parameter, 0, (-1, len(cells))), {})
    return apart.move(torch.movedim, (apart, 0, -1), {})


def _holders(nodes: tuple[Tensor, Tensor], states: int) -> list[tuple[Tensor, str]]:
    """The nodes that hold each of a layer's states, and the kind of the edges by which one enters.

    The hidden state of an LSTM reaches its cells only through W_hh; other states are added to.
    """
    hidden, cells = nodes
    if states == 2:
        return [(hidden, "recurrent"), (cells, "residual")]
    return [(hidden, "residual")]


def _state_of(state: Value, k: int) -> Value:
    """The state (b, n) of one layer and way, of those of all (layers * ways, b, n)."""
    if isinstance(state, Neurons):
        return Neurons(state.labels[k])
    if isinstance(state, Elements):
        return Elements(state.parameter, state.numbers[k])
    return Unknown(state.shape[1:]) if isinstance(state, Unknown) else state[k]


def _enter(tracer: Tracer, state: Value, nodes: Tensor, kind: str) -> None:
    """Edges of value 1 from a given state (b, n) to the nodes that hold it.

    A learned one is a feature of these. Constants that treat all neurons alike, such as zeros, are
    nothing; others, and what could not be followed, have nodes of their own, one for each neuron.
    """
    if isinstance(state, Elements):
        rows = state.numbers
        own = rows[0] if (rows == rows[:1]).all() else rows.T
        meaning = "value" if kind == "residual" else kind
        tracer.edges(Elements(state.parameter, own), None, nodes, meaning)
        return
    if isinstance(state, Tensor) and (state == state[..., :1]).all():
        return
    sources = None
    if isinstance(state, Neurons):
        if (state.labels <= 0).all():
            return
        sources = tracer.unify_places(state.labels, -1)
    if sources is None:
        sources = tracer.source_nodes(torch.full_like(nodes, NO_NEURON), "state")
    present = sources > 0
    tracer.edges(None, sources[present], nodes[present], kind)


@dataclass
class Cell:
    """A cell that takes step after step: the nodes of all its states, and what reaches them.

    inputs: what W_ih sees in the steps, (n_in,) each. states: nodes from elsewhere and the kind of
    their edges.
    """

    nodes: tuple[Tensor, Tensor]
    inputs: list[Tensor] = field(default_factory=list)
    states: list[tuple[str, Tensor]] = field(default_factory=list)


@register_rule(aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
def recurrent_cell(tracer: Tracer, call: Node, x: Value, states: Any, *parameters: Value) -> Value:
    """A step of a recurrent layer.

    It has the same nodes as the step before where it takes up the state of that. Where no state is
    one of the same weights, a new recurrence begins.
    """
    weights = [w for w in parameters if isinstance(w, Elements)]
    features = _features(tracer, call, x)
    if features is None or any(w is not None and not isinstance(w, Elements) for w in parameters):
        return tracer.unknown(call)
    states = states if isinstance(states, (list, tuple)) else [states]
    given = [_state_nodes(tracer, state) for state in states]
    known = tracer.cells.setdefault(tuple(w.view() for w in weights), [])
    cell = next((c for c in known if _is_state_of(tracer, c, given)), None)
    if cell is None:
        nodes = _recurrent_layer(tracer, call, features, weights, len(weights) > 2)
        cell = Cell(nodes, [features])
        known.append(cell)
    elif not any(_unify_inputs(tracer, old, features) for old in cell.inputs):
        sources = tracer.source_nodes(features, _name(tracer, weights[0]))
        cells = cell.nodes[1]
        tracer.edges(_gated(weights[0], cells), sources, cells[:, None], "weight", call)
        cell.inputs.append(features)
    holders = _holders(cell.nodes, len(states))
    for (held_by, kind), state, nodes in zip(holders, states, given, strict=True):
        entered = [held_by, *(old for other, old in cell.states if other == kind)]
        if not any(_same(tracer, old, nodes) for old in entered):
            _enter(tracer, state, held_by, kind)
            cell.states += [(kind, nodes)] if nodes is not None else []
    new = [Neurons(nodes.expand(s.shape)) for nodes, s in zip(cell.nodes, states, strict=False)]
    return tuple(new) if len(new) > 1 else new[0]


def _state_nodes(tracer: Tracer, state: Value) -> Tensor | None:
    return tracer.unify_places(state.labels, -1) if isinstance(state, Neurons) else None


def _is_state_of(tracer: Tracer, cell: Cell, given: Sequence[Tensor | None]) -> bool:
    """Whether one of the given states is the hidden one of a cell."""
    return any(_same(tracer, cell.nodes[0], nodes) for nodes in given)


def _same(tracer: Tracer, a: Tensor, b: Tensor | None) -> bool:
    return b is not None and torch.equal(tracer.nodes.find(a), tracer.nodes.find(b))


def _unify_inputs(tracer: Tracer, old: Tensor, new: Tensor) -> bool:
    """Makes the inputs of two steps the same neurons, if they are or are entries of the network's
    input; returns whether it did.
    """
    old, new = tracer.nodes.find(old), tracer.nodes.find(new)
    differ = old != new
    if not differ.any():
        return True
    ends = torch.cat([old[differ], new[differ]])
    if (ends <= 0).any() or not tracer.nodes.are_free(ends):
        return False
    return tracer.nodes.try_unify(torch.stack([old, new]))


@register_rule(aten._pack_padded_sequence, aten._pad_packed_sequence)
def packing(tracer: Tracer, call: Node, x: Value, *_: Any) -> Value:
    """Sequences (b, t, n) become entries (entries, n), and these sequences.

    Neurons stay, lengths are not followed.
    """
    features, (sequences, lengths) = _features(tracer, call, x), call.meta["val"]
    if features is None:
        return tracer.unknown(call)
    return Neurons(features.expand(sequences.shape)), Unknown(lengths.shape)
