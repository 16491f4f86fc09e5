"""Recurrent layers and cells: lstm, gru, rnn_tanh and rnn_relu. Gates are slots.

The steps of a cell share its nodes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.conversions import as_neurons, rearranged
from ngopt.graph.rules.registry import aten, register_layer_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    NO_NEURON,
    Elements,
    Neurons,
    Value,
    not_none,
    same_along,
)

REVERSE = torch.tensor([[-1.0]])
"""The constant of a node with edges to all cells that read a sequence from its end.

It distinguishes these from cells that read from the start.
"""


FREE = -2
"""In the place of all entries of the network's input, which can be unified."""


class StateNodes(NamedTuple):
    """The nodes of the states of a layer or a cell, the same ones without a
    projection."""

    hidden: Tensor
    cells: Tensor


@register_layer_rule(aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
def recurrent(tracer: Tracer, call: Node, x: Value, *args) -> Value:
    """W_ih (gates * n, n_in), W_hh (gates * n, n), and two biases, for each layer and
    direction.

    Returns the outputs of the last layer and the last states (layers * directions, b,
    n), of an LSTM also those of its cells.
    """
    is_packed = getattr(call.target, "_overloadname", "") == "data"
    # batch sizes of packed sequences follow x; has_biases, dropout and train are unused
    states, weights, _, layers, _, _, both_ways = args[is_packed : is_packed + 7]
    current = features_of(tracer, x)
    if current is None or not are_elements(weights):
        return tracer.unknown(call)
    directions = 1 + bool(both_ways)
    # torch lists weights layer by layer, forward before reverse
    size = len(weights) // (layers * directions)
    last = []
    for layer in range(layers):
        ends = []
        for direction in range(directions):
            k = layer * directions + direction
            of_layer = weights[k * size : (k + 1) * size]
            nodes = recurrent_layer(tracer, call, current, of_layer)
            initial = [rearranged(s, lambda x, k=k: x[k]) for s in as_list(states)]
            _enter_states(tracer, nodes, initial)
            if direction == 1:
                reverse = tracer.constant_nodes(REVERSE)
                tracer.edges(None, reverse, nodes.hidden, "spread")
            ends.append(nodes.hidden)
            last.append(nodes)
        current = torch.cat(ends)
    hidden, cells = map(torch.stack, zip(*last, strict=True))
    outputs, *ends = call.meta["val"]
    results = [Neurons(current.expand(outputs.shape))]
    # without cells torch returns one of them
    for nodes, value in zip((hidden, cells), ends, strict=False):
        batch = value.shape[-2]  # in torch 2.6 the axes before it are wrong
        results.append(Neurons(nodes[:, None].expand(-1, batch, -1)))
    return tuple(results)


def as_list(states: Any) -> Sequence[Value]:
    """The two states of an LSTM, or the single one of other layers."""
    return states if isinstance(states, (list, tuple)) else [states]


def are_elements(weights: Sequence[Value]) -> bool:
    return all(isinstance(w, Elements) for w in weights)


def features_of(tracer: Tracer, x: Value) -> Tensor | None:
    """The neurons (n,) that each step has as an input, of x (..., n). Constants
    are no neurons. None if neurons differ between steps."""
    if isinstance(x, Elements):
        x = as_neurons(tracer, x)
    # unify_places returns None without any neuron, which would mean unknown
    if isinstance(x, Tensor) or _has_no_neuron(x):
        return torch.full(x.shape[-1:], NO_NEURON)
    return nodes_of(tracer, x)


def _has_no_neuron(x: Value) -> bool:
    return isinstance(x, Neurons) and bool((x.labels <= 0).all())


def nodes_of(tracer: Tracer, x: Value) -> Tensor | None:
    """The neurons (n,) of activations (..., n); None if they are not the same."""
    return tracer.unify_places(x.labels, -1) if isinstance(x, Neurons) else None


def recurrent_layer(
    tracer: Tracer, call: Node, features: Tensor, weights: Sequence[Elements]
) -> StateNodes:
    """Adds a layer with edges from its input features (n_in,)."""
    w_ih, w_hh, *others = weights
    biases = [w for w in others if len(w.shape) == 1]
    projections = [w for w in others if len(w.shape) == 2]
    name = _layer_name(tracer, w_ih)
    # w_hh is (gates * n, hidden): fewer than the n cells if these are projected
    hidden = w_hh.shape[1]
    if projections:
        cells = tracer.nodes.new(name, projections[0].shape[1])
        fed_back = tracer.nodes.new(f"{name}.projection", hidden)
    else:
        cells = fed_back = tracer.nodes.new(name, hidden)
    add_inputs(tracer, call, w_ih, features, cells)
    gates = _with_gates_last(w_hh, cells)
    tracer.edges(gates, fed_back, cells[:, None], "recurrent", call)
    for bias, kind in zip(biases, ("bias", "recurrent"), strict=False):
        gates = _with_gates_last(bias, cells)
        # (n, gates): 3 in a GRU, which multiplies the bias of the state with a gate;
        # others, 4 in an LSTM and 1, only add the two
        tracer.edges(gates, None, cells, kind if gates.shape[1] == 3 else "bias")
    for projection in projections:
        tracer.edges(projection, cells, fed_back[:, None], call=call)
    return StateNodes(fed_back, cells)


def add_inputs(
    tracer: Tracer, call: Node, w_ih: Elements, features: Tensor, cells: Tensor
) -> None:
    """Edges from input features (n_in,) to all gates of the cells."""
    sources = tracer.source_nodes(features, _layer_name(tracer, w_ih))
    tracer.edges(_with_gates_last(w_ih, cells), sources, cells[:, None], "weight", call)


def _layer_name(tracer: Tracer, w_ih: Elements) -> str:
    name = tracer.parameters[w_ih.parameter].name
    return name.replace("weight_ih_", "").removesuffix(".weight_ih")


def _with_gates_last(parameter: Elements, cells: Tensor) -> Elements:
    """(gates * n, *rest) -> (n, *rest, gates)."""
    gates = parameter.apply(lambda p: p.unflatten(0, (-1, len(cells))))
    return gates.apply(lambda p: p.movedim(0, -1))


def enter_state(tracer: Tracer, state: Value, nodes: Tensor, kind: str) -> None:
    """Edges of value 1 from an initial state (b, n) to the nodes of the state.

    A learned state is a feature of these. A constant that is the same for all neurons,
    such as zeros, adds nothing. Any other state has new nodes, one for each neuron.
    """
    if isinstance(state, Elements):
        numbers = state.numbers
        # rows (b, n) that differ over the batch are slots of each neuron
        numbers = numbers[0] if same_along(numbers, 0) else numbers.T
        entries = Elements(state.parameter, numbers)
        # features have no kind "residual"
        tracer.edges(entries, None, nodes, "value" if kind == "residual" else kind)
        return
    is_uniform = isinstance(state, Tensor) and same_along(state, -1)
    if is_uniform or _has_no_neuron(state):
        return
    sources = nodes_of(tracer, state)
    if sources is None:
        # source_nodes makes a node for each label of no neuron
        sources = tracer.source_nodes(torch.full_like(nodes, NO_NEURON), "state")
    is_neuron = sources > 0
    tracer.edges(None, sources[is_neuron], nodes[is_neuron], kind)


@register_layer_rule(aten._pack_padded_sequence, aten._pad_packed_sequence)
def packing(tracer: Tracer, call: Node, x: Value, *_) -> Value:
    """Sequences (b, t, n) become entries (entries, n), or the other way round.

    Neurons stay.
    """
    features = features_of(tracer, x)
    if features is None:
        return tracer.unknown(call)
    return Neurons(features.expand(tracer.shape_of(call)))


@register_layer_rule(
    aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell
)
def recurrent_cell(
    tracer: Tracer, call: Node, x: Value, states: Any, *parameters
) -> Value:
    """A step of a recurrent layer.

    It has the nodes of an earlier step whose state it is given, with the same weights.
    Otherwise it begins a new recurrence.
    """
    weights = [w for w in parameters if w is not None]  # biases may be
    features = features_of(tracer, x)
    if features is None or not are_elements(weights):
        return tracer.unknown(call)
    states = as_list(states)
    cell = _cell_of(tracer, call, weights, features, states)
    _enter_states(tracer, cell, states)
    ends = zip(cell, states, strict=False)
    new = [Neurons(nodes.expand(state.shape)) for nodes, state in ends]
    return tuple(new) if len(new) > 1 else new[0]


def _enter_states(tracer: Tracer, cell: StateNodes, states: Sequence[Value]) -> None:
    """Edges from the states of a step, unless a step before had the same states."""
    # the hidden state of an LSTM affects its cells only through W_hh; others are added
    kinds = ("recurrent", "residual") if len(states) == 2 else ("residual",)
    known = tracer.known_rows
    for state, targets, kind in zip(states, cell, kinds, strict=False):
        nodes = nodes_of(tracer, state)
        if nodes is None:
            enter_state(tracer, state, targets, kind)
            continue
        owner = (kind, _number_of(cell))
        # states of the step before are the cell's own nodes, and need no edges
        known.put(owner, targets, True)
        if known.get(owner, nodes) is None:
            enter_state(tracer, state, targets, kind)
            known.put(owner, nodes, True)


def _number_of(cell: StateNodes) -> int:
    """Different for each cell, also if their nodes are unified later."""
    return int(cell.cells[0])


def _cell_of(
    tracer: Tracer,
    call: Node,
    weights: Sequence[Elements],
    features: Tensor,
    states: Sequence[Value],
) -> StateNodes:
    """The cell of this step, or a new one, with edges from the input features."""
    owner = tuple(map(_key, weights))
    # any of them: the other state may have gone through a norm
    for nodes in not_none(*[nodes_of(tracer, state) for state in states]):
        cell = tracer.known_rows.get(owner, nodes)
        if cell is not None:
            if not _unify_inputs(tracer, cell, features):
                add_inputs(tracer, call, weights[0], features, cell.cells)
            return cell
    cell = recurrent_layer(tracer, call, features, weights)
    tracer.known_rows.put(owner, cell.hidden, cell)
    _unify_inputs(tracer, cell, features)
    return cell


def _key(weight: Elements) -> Any:
    """The same for the same elements of a parameter."""
    return weight.view() or (weight.parameter, *weight.numbers.flatten().tolist())


def _unify_inputs(tracer: Tracer, cell: StateNodes, features: Tensor) -> bool:
    """Unifies the input features (n_in,) of a step with those of an earlier one if they
    differ in entries of the network's input alone. Returns whether they are the same
    now, and remembers them if not."""
    nodes = tracer.nodes
    owner = ("inputs", _number_of(cell))
    are_free = nodes.are_free(features) & (features > 0)
    # outputs of a weight stay different inputs
    fixed = torch.where(are_free, FREE, features)
    old = tracer.known_rows.get(owner, fixed)
    if old is not None and nodes.try_unify(torch.stack([old, features])):
        return True
    is_known = tracer.known_rows.get(owner, features) is not None
    for row in (fixed, features):
        tracer.known_rows.put(owner, row, features)
    return is_known
