"""Recurrent layers and cells: gates are slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.registry import register_rule
from ngopt.graph.rules.reshaping import as_neurons
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    NO_NEURON,
    Elements,
    Neurons,
    Unknown,
    Value,
    same_along,
)

aten = torch.ops.aten

REVERSE = torch.tensor([[-1.0]])
"""What the node stands for that has edges to all cells which read from the end.

They are no twins of the others.
"""


@register_rule(aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
def recurrent(tracer: Tracer, call: Node, x: Value, *args: Any) -> Value:
    """W_ih (gates * n, n_in), W_hh (gates * n, n), and two biases, layer by layer and
    way by way.

    Gates are slots. Gives the outputs of the last layer and the last states (layers *
    ways, b, n), an LSTM's also of its cells.
    """
    is_packed = (
        getattr(call.target, "_overloadname", "") == "data"
    )  # then batch sizes follow x
    # passed over: has_biases, dropout and train
    states, weights, _, layers, _, _, both_ways = args[is_packed : is_packed + 7]
    current = _features(tracer, call, x)
    if current is None or not _are_elements(weights):
        return tracer.unknown(call)
    states = _listed(states)
    ways = 1 + bool(both_ways)
    size = len(weights) // (layers * ways)
    last = []
    for layer in range(layers):
        ends = []
        for way in range(ways):
            k = layer * ways + way
            # torch lists them layer by layer, forward before reverse
            own = weights[k * size : (k + 1) * size]
            given = [_state_of(state, k) for state in states]
            nodes = _one_way(tracer, call, current, own, given)
            if way == 1:
                reverse = tracer.constant_nodes(REVERSE)
                tracer.edges(None, reverse, nodes[0], "spread")
            ends.append(nodes[0])
            last.append(nodes)
        current = torch.cat(ends)
    hidden, cells = map(torch.stack, zip(*last, strict=True))
    # the axis of length 1 is the batch's; without cells torch gives two values, and zip
    # ends early
    found = (current, hidden[:, None], cells[:, None])
    results = zip(found, call.meta["val"], strict=False)
    return tuple(Neurons(nodes.expand(value.shape)) for nodes, value in results)


def _listed(states: Any) -> Sequence[Value]:
    """The two states of an LSTM, or the only one of others."""
    are_several = isinstance(states, (list, tuple))
    return states if are_several else [states]


def _are_elements(weights: Sequence[Value]) -> bool:
    return all(isinstance(w, Elements) for w in weights)


def _one_way(
    tracer: Tracer,
    call: Node,
    sources: Tensor,
    weights: Sequence[Elements],
    states: Sequence[Value],
) -> tuple[Tensor, Tensor]:
    """Adds a layer that begins with given states (b, n)."""
    nodes = _recurrent_layer(tracer, call, sources, weights)
    holders = _holders(nodes, len(states))
    for state, (held_by, kind) in zip(states, holders, strict=True):
        _enter(tracer, state, held_by, kind)
    return nodes


def _features(tracer: Tracer, call: Node, x: Value) -> Tensor | None:
    """The neurons that a step sees of an input (..., n); constants are none.

    None where they cannot be followed.
    """
    if isinstance(x, Elements):
        x = as_neurons(tracer, call, x)
    # unify_places gives None for no neurons, too, which would mean unknown
    if isinstance(x, Tensor) or _has_no_neuron(x):
        return torch.full(x.shape[-1:], NO_NEURON)
    return _nodes_of(tracer, x)


def _has_no_neuron(x: Value) -> bool:
    if not isinstance(x, Neurons):
        return False
    return bool((x.labels <= 0).all())


def _nodes_of(tracer: Tracer, x: Value) -> Tensor | None:
    """The neurons (n,) of activations (..., n), None where they cannot be followed."""
    if not isinstance(x, Neurons):
        return None
    return tracer.unify_places(x.labels, -1)


def _recurrent_layer(
    tracer: Tracer, call: Node, sources: Tensor, weights: Sequence[Elements]
) -> tuple[Tensor, Tensor]:
    """Adds a layer; the nodes of its hidden state and of its cells.

    These are the same without a projection.
    """
    w_ih, w_hh, *further = weights
    biases = [w for w in further if len(w.shape) == 1]
    projections = [w for w in further if len(w.shape) == 2]
    name = _name(tracer, w_ih)
    # w_hh is (gates * n, hidden): fewer than the n cells where these are projected
    hidden = w_hh.shape[1]
    if projections:
        cells = tracer.nodes.new(name, projections[0].shape[1])
        fed_back = tracer.nodes.new(f"{name}.projection", hidden)
    else:
        cells = fed_back = tracer.nodes.new(name, hidden)
    _see(tracer, call, w_ih, sources, cells)
    gates = _gated(w_hh, cells)
    tracer.edges(gates, fed_back, cells[:, None], "recurrent", call)
    _add_biases(tracer, biases, cells)
    for projection in projections:
        tracer.edges(projection, cells, fed_back[:, None], call=call)
    return fed_back, cells


def _see(
    tracer: Tracer, call: Node, w_ih: Elements, features: Tensor, cells: Tensor
) -> None:
    """Edges from what a step sees, (n_in,), to all gates of the cells."""
    name = _name(tracer, w_ih)
    sources = tracer.source_nodes(features, name)
    gates = _gated(w_ih, cells)
    tracer.edges(gates, sources, cells[:, None], "weight", call)


def _add_biases(tracer: Tracer, biases: Sequence[Elements], cells: Tensor) -> None:
    """Biases (gates * n,) of what a step sees and of its state.

    A GRU gates what its state adds, with its bias; elsewhere the two are only summed.
    """
    for bias, kind in zip(biases, ("bias", "recurrent"), strict=False):
        gates = _gated(bias, cells)
        # (n, gates): 3 in a GRU, 4 in an LSTM, 1 in others
        is_gru = gates.shape[1] == 3
        tracer.edges(gates, None, cells, kind if is_gru else "bias")


def _name(tracer: Tracer, w_ih: Elements) -> str:
    name = tracer.parameters[w_ih.parameter].name
    return name.replace("weight_ih_", "").removesuffix(".weight_ih")


def _gated(parameter: Elements, cells: Tensor) -> Elements:
    """(gates * n, *rest) -> (n, *rest, gates)."""
    shape = (-1, len(cells))
    gates = parameter.apply(lambda p: p.unflatten(0, shape))
    return gates.apply(lambda p: p.movedim(0, -1))


def _holders(nodes: tuple[Tensor, Tensor], states: int) -> list[tuple[Tensor, str]]:
    """The nodes that hold each of a layer's states, and the kind of the edges by which
    one enters.

    The hidden state of an LSTM reaches its cells only through W_hh; other states are
    added to.
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
    if isinstance(state, Unknown):
        return Unknown(state.shape[1:])
    return state[k]


def _enter(tracer: Tracer, state: Value, nodes: Tensor, kind: str) -> None:
    """Edges of value 1 from a given state (b, n) to the nodes that hold it.

    A learned one is a feature of these. Constants that treat all neurons alike, such as
    zeros, are nothing; others, and what could not be followed, have nodes of their own,
    one for each neuron.
    """
    if isinstance(state, Elements):
        rows = state.numbers
        # rows (b, n) that differ over the batch are slots of each neuron
        numbers = rows[0] if same_along(rows, 0) else rows.T
        own = Elements(state.parameter, numbers)
        # features have no kind "residual"
        meaning = "value" if kind == "residual" else kind
        tracer.edges(own, None, nodes, meaning)
        return
    is_alike = isinstance(state, Tensor) and same_along(state, -1)
    if is_alike or _has_no_neuron(state):
        return
    sources = _nodes_of(tracer, state)
    if sources is None:
        # source_nodes makes a node for each label of no neuron
        missing = torch.full_like(nodes, NO_NEURON)
        sources = tracer.source_nodes(missing, "state")
    present = sources > 0
    tracer.edges(None, sources[present], nodes[present], kind)


@dataclass
class Cell:
    """A cell that takes step after step: the nodes of all its states, and what reaches
    them.

    inputs: what W_ih sees in the steps, (n_in,) each. entered: for each kind of edges,
    the nodes that hold a state and those that it came from.
    """

    nodes: tuple[Tensor, Tensor]
    inputs: list[Tensor]
    entered: dict[str, list[Tensor]] = field(default_factory=dict)


@register_rule(aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
def recurrent_cell(
    tracer: Tracer, call: Node, x: Value, states: Any, *parameters: Any
) -> Value:
    """A step of a recurrent layer.

    It has the same nodes as the step before where it takes up the state of that. Where
    no state is one of the same weights, a new recurrence begins.
    """
    # without biases these are None
    weights = [w for w in parameters if w is not None]
    features = _features(tracer, call, x)
    if features is None or not _are_elements(weights):
        return tracer.unknown(call)
    states = _listed(states)
    given = [_nodes_of(tracer, state) for state in states]
    cell = _cell_of(tracer, call, weights, features, given)
    _take_up(tracer, cell, states, given)
    results = zip(cell.nodes, states, strict=False)
    new = [Neurons(nodes.expand(state.shape)) for nodes, state in results]
    return tuple(new) if len(new) > 1 else new[0]


def _take_up(
    tracer: Tracer, cell: Cell, states: Sequence[Value], given: Sequence[Tensor | None]
) -> None:
    """Edges from the states that a step is given to the nodes that hold them, if there
    are none."""
    holders = _holders(cell.nodes, len(states))
    for state, nodes, (held_by, kind) in zip(states, given, holders, strict=True):
        # states of the step before are these nodes, and need no edges
        known = cell.entered.setdefault(kind, [held_by])
        if any(_same(tracer, old, nodes) for old in known):
            continue
        _enter(tracer, state, held_by, kind)
        if nodes is not None:
            known.append(nodes)


def _cell_of(
    tracer: Tracer,
    call: Node,
    weights: Sequence[Elements],
    features: Tensor,
    given: Sequence[Tensor | None],
) -> Cell:
    """The cell whose step this is, or a new one, with edges from what the step sees."""
    key = tuple(
        w.view() or (w.parameter, *w.numbers.flatten().tolist()) for w in weights
    )
    known = tracer.recurrent_cells.setdefault(key, [])
    cell = _continued(tracer, known, given)
    if cell is None:
        nodes = _recurrent_layer(tracer, call, features, weights)
        cell = Cell(nodes, [features])
        known.append(cell)
    elif not any(_unify_inputs(tracer, old, features) for old in cell.inputs):
        _, cells = cell.nodes
        _see(tracer, call, weights[0], features, cells)
        cell.inputs.append(features)
    return cell


def _continued(
    tracer: Tracer, known: Sequence[Cell], given: Sequence[Tensor | None]
) -> Cell | None:
    """The cell of whose states one is given to a step."""
    for cell in known:
        hidden, _ = cell.nodes
        # any: one of them may have gone through a norm, as in cells
        if any(_same(tracer, hidden, nodes) for nodes in given):
            return cell
    return None


def _same(tracer: Tracer, a: Tensor, b: Tensor | None) -> bool:
    if b is None:
        return False
    find = tracer.nodes.find
    return torch.equal(find(a), find(b))


def _unify_inputs(tracer: Tracer, old: Tensor, new: Tensor) -> bool:
    """Makes the inputs of two steps the same neurons, if they are entries of the
    network's input.

    Returns whether they are the same now.
    """
    old = tracer.nodes.find(old)
    new = tracer.nodes.find(new)
    differ = old != new
    if not differ.any():
        return True
    ends = torch.cat([old[differ], new[differ]])
    # what a weight makes is an input of its own, as out in cells
    if (ends <= 0).any() or not tracer.nodes.are_free(ends):
        return False
    return tracer.nodes.try_unify(torch.stack([old, new]))


@register_rule(aten._pack_padded_sequence, aten._pad_packed_sequence)
def packing(tracer: Tracer, call: Node, x: Value, *_: Any) -> Value:
    """Sequences (b, t, n) become entries (entries, n), and these sequences.

    Neurons stay, lengths are not followed.
    """
    features = _features(tracer, call, x)
    if features is None:
        return tracer.unknown(call)
    sequences, lengths = call.meta["val"]
    neurons = Neurons(features.expand(sequences.shape))
    return neurons, Unknown(lengths.shape)
