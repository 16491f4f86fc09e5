"""Recurrent cells: the steps of a cell share its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.recurrent import (
    StateNodes,
    add_inputs,
    are_elements,
    as_list,
    enter_state,
    features_of,
    nodes_of,
    recurrent_layer,
    state_entries,
)
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Elements, Neurons, Value

aten = torch.ops.aten


@dataclass
class Cell:
    """A cell that is applied in several steps.

    nodes: of its states. inputs: the input features (n_in,) of its steps.
    states: for each kind of edges, the nodes of a state and all nodes that have edges
    to them.
    """

    nodes: StateNodes
    inputs: list[Tensor]
    states: dict[str, list[Tensor]] = field(default_factory=dict)


@register_rule(aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
def recurrent_cell(
    tracer: Tracer, call: Node, x: Value, states: Any, *parameters
) -> Value:
    """A step of a recurrent layer.

    It has the nodes of an earlier step whose state it is given, with the same weights.
    Otherwise it begins a new recurrence.
    """
    # without biases these are None
    weights = [w for w in parameters if w is not None]
    features = features_of(tracer, call, x)
    if features is None or not are_elements(weights):
        return tracer.unknown(call)
    states = as_list(states)
    given = [nodes_of(tracer, state) for state in states]
    cell = _cell_of(tracer, call, weights, features, given)
    _enter_new_states(tracer, cell, states, given)
    new = []
    for nodes, state in zip(cell.nodes, states, strict=False):
        new.append(Neurons(nodes.expand(state.shape)))
    return tuple(new) if len(new) > 1 else new[0]


def _enter_new_states(
    tracer: Tracer, cell: Cell, states: Sequence[Value], given: Sequence[Tensor | None]
) -> None:
    """Edges from the states of a step, unless a step before had the same states."""
    entries = state_entries(cell.nodes, len(states))
    for state, nodes, (targets, kind) in zip(states, given, entries, strict=True):
        # states of the step before are the cell's own nodes, and need no edges
        entered = cell.states.setdefault(kind, [targets])
        if any(_are_same(tracer, old, nodes) for old in entered):
            continue
        enter_state(tracer, state, targets, kind)
        if nodes is not None:
            entered.append(nodes)


def _cell_of(
    tracer: Tracer,
    call: Node,
    weights: Sequence[Elements],
    features: Tensor,
    given: Sequence[Tensor | None],
) -> Cell:
    """The cell of this step, or a new one, with edges from the input features."""
    key = tuple(map(_key, weights))
    cells = tracer.recurrent_cells.setdefault(key, [])
    cell = _continued(tracer, cells, given)
    if cell is None:
        nodes = recurrent_layer(tracer, call, features, weights)
        cell = Cell(nodes, [features])
        cells.append(cell)
    elif not any(_unify_inputs(tracer, old, features) for old in cell.inputs):
        add_inputs(tracer, call, weights[0], features, cell.nodes.cells)
        cell.inputs.append(features)
    return cell


def _key(weight: Elements) -> Any:
    """The same for the same elements of a parameter."""
    numbers = weight.numbers.flatten()
    return weight.view() or (weight.parameter, *numbers.tolist())


def _continued(
    tracer: Tracer, cells: Sequence[Cell], given: Sequence[Tensor | None]
) -> Cell | None:
    """The cell one of whose states is given to a step."""
    for cell in cells:
        hidden = cell.nodes.hidden
        # any: the other state may have gone through a norm
        if any(_are_same(tracer, hidden, nodes) for nodes in given):
            return cell
    return None


def _are_same(tracer: Tracer, a: Tensor, b: Tensor | None) -> bool:
    if b is None:
        return False
    find = tracer.nodes.find
    return torch.equal(find(a), find(b))


def _unify_inputs(tracer: Tracer, old: Tensor, new: Tensor) -> bool:
    """Unifies the inputs of two steps if they are entries of the network's input.

    Returns whether they are the same now.
    """
    old = tracer.nodes.find(old)
    new = tracer.nodes.find(new)
    differ = old != new
    if not differ.any():
        return True
    ends = torch.cat([old[differ], new[differ]])
    # outputs of a weight stay different inputs
    if (ends <= 0).any() or not tracer.nodes.are_free(ends):
        return False
    return tracer.nodes.try_unify(torch.stack([old, new]))
