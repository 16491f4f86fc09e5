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
from ngopt.graph.tracing.values import NO_NEURON, Neurons, Unknown, Value, same_along

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
    hidden, cells = (torch.stack(nodes)[:, None] for nodes in zip(*last, strict=True))
    results = zip((current, hidden, cells), call.meta["val"], strict=False)
    return tuple(Neurons(nodes.expand(value.shape)) for nodes, value in results)


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
    tracer: Tracer,
    call: Node,
    sources: Tensor,
    weights: Sequence[Elements],
    has_biases: bool,
) -> tuple[Tensor, Tensor]:
    """Adds a layer; the nodes of its hidden state and of its cells.

    These are the same without a projection.
    """
    w_ih, w_hh = weights[:2]
    biases = weights[2:4] if has_biases else ()
    projection = weights[2 + len(biases) :]
    hidden, name = w_hh.shape[1], _name(tracer, w_ih)
    if projection:
        cells = tracer.nodes.new(name, projection[0].shape[1])
        fed_back = tracer.nodes.new(f"{name}.projection", hidden)
    else:
        cells = fed_back = tracer.nodes.new(name, hidden)
    sources = tracer.source_nodes(sources, name)
    tracer.edges(_gated(w_ih, cells), sources, cells[:, None], "weight", call)
    tracer.edges(_gated(w_hh, cells), fed_back, cells[:, None], "recurrent", call)
    # a GRU gates what its state adds, with its bias; elsewhere the two are only summed
    is_gru = w_ih.shape[0] == 3 * len(cells)
    kinds = ("bias", "recurrent" if is_gru else "bias")
    for bias, kind in zip(biases, kinds, strict=False):
        tracer.edges(_gated(bias, cells), None, cells, kind)
    if projection:
        tracer.edges(projection[0], cells, fed_back[:, None], call=call)
    return fed_back, cells


def _name(tracer: Tracer, w_ih: Elements) -> str:
    name = tracer.parameters[w_ih.parameter].name
    return name.replace("weight_ih_", "").removesuffix(".weight_ih")


def _gated(parameter: Elements, cells: Tensor) -> Elements:
    """(gates * n, *rest) -> (n, *rest, gates)."""
    return parameter.apply(lambda p: p.unflatten(0, (-1, len(cells))).movedim(0, -1))


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
        own = rows[0] if same_along(rows, 0) else rows.T
        meaning = "value" if kind == "residual" else kind
        tracer.edges(Elements(state.parameter, own), None, nodes, meaning)
        return
    if isinstance(state, Tensor) and same_along(state, -1):
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
def recurrent_cell(
    tracer: Tracer,
    call: Node,
    x: Value,
    states: Any,
    *parameters: Value,
) -> Value:
    """A step of a recurrent layer.

    It has the same nodes as the step before where it takes up the state of that. Where no state is
    one of the same weights, a new recurrence begins.
    """
    given_weights = [w for w in parameters if w is not None]
    weights = [w for w in given_weights if isinstance(w, Elements)]
    features = _features(tracer, call, x)
    if features is None or len(weights) < len(given_weights):
        return tracer.unknown(call)
    states = states if isinstance(states, (list, tuple)) else [states]
    given = [_state_nodes(tracer, state) for state in states]
    cell = _cell_of(tracer, call, weights, features, given)
    holders = _holders(cell.nodes, len(states))
    for (held_by, kind), state, nodes in zip(holders, states, given, strict=True):
        entered = [held_by, *(old for other, old in cell.states if other == kind)]
        if any(_same(tracer, old, nodes) for old in entered):
            continue
        _enter(tracer, state, held_by, kind)
        if nodes is not None:
            cell.states.append((kind, nodes))
    results = zip(cell.nodes, states, strict=False)
    new = [Neurons(nodes.expand(state.shape)) for nodes, state in results]
    return tuple(new) if len(new) > 1 else new[0]


def _cell_of(
    tracer: Tracer,
    call: Node,
    weights: Sequence[Elements],
    features: Tensor,
    given: Sequence[Tensor | None],
) -> Cell:
    """The cell whose step this is, or a new one, with edges from what the step sees."""
    known = tracer.cells.setdefault(tuple(w.view() for w in weights), [])
    for cell in known:
        if any(_same(tracer, cell.nodes[0], nodes) for nodes in given):
            break
    else:
        nodes = _recurrent_layer(tracer, call, features, weights, len(weights) > 2)
        known.append(Cell(nodes, [features]))
        return known[-1]
    if not any(_unify_inputs(tracer, old, features) for old in cell.inputs):
        w_ih, cells = weights[0], cell.nodes[1]
        sources = tracer.source_nodes(features, _name(tracer, w_ih))
        tracer.edges(_gated(w_ih, cells), sources, cells[:, None], "weight", call)
        cell.inputs.append(features)
    return cell


def _state_nodes(tracer: Tracer, state: Value) -> Tensor | None:
    return tracer.unify_places(state.labels, -1) if isinstance(state, Neurons) else None


def _same(tracer: Tracer, a: Tensor, b: Tensor | None) -> bool:
    find = tracer.nodes.find
    return b is not None and torch.equal(find(a), find(b))


def _unify_inputs(tracer: Tracer, old: Tensor, new: Tensor) -> bool:
    """Makes the inputs of two steps the same neurons, if they are entries of the network's input.

    Returns whether they are the same now.
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
