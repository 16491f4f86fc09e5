"""Recurrent layers and cells: their states, and steps that are one recurrence."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.graph_checks import biases_with
from tests.networks import FromFunction, edges_of
from tests.zoo import zoo_graph


def test_states_of_recurrent_layers_by_hand():
    graph = zoo_graph("states")
    assert edges_of(graph, "rnn.l1") == [
        ("recurrent", "rnn.l1"),
        ("residual", "cells"),
        ("weight", "rnn.l0"),
        ("weight", "rnn.l0_reverse"),
    ]
    given, reverse = (
        b for b in graph.constants if graph.groups[b.target].name == "rnn.l0_reverse"
    )
    assert (given.shape, given.source_index) == ((4, 1, 1), (4, 5, 6, 7))
    assert (reverse.shape, graph.groups[reverse.source].kind) == ((1, 4, 1), "constant")
    learned = biases_with(graph, "begin")
    assert {b.kind for b in learned} == {"recurrent"}
    names = [graph.groups[b.group].name for b in learned]
    assert names == ["rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"]
    # the last hidden states and the last cells are the same neurons
    assert sorted(kind for kind, _ in edges_of(graph, "head")) == ["weight"] * 4
    sources = {source.split(".")[-1] for _, source in edges_of(graph, "head")}
    assert sources == {"copy", "l1", "l1_reverse"}


def projected(begin):
    """The state of an LSTM with a projection, which begins with constants."""

    def states(m, x):
        begin = m.begin.expand(1, x.shape[1], 4)
        hidden, cells = m.rnn(x, (x.new_zeros(1, x.shape[1], 2), begin))[1]
        return m.hidden(hidden[-1]), m.cells(cells[-1])

    rnn = nn.LSTM(3, 4, proj_size=2)
    return FromFunction(states, rnn=rnn, hidden=(2, 2), cells=(4, 2), begin=begin)


def test_the_state_of_a_projection_and_constant_states():
    graph = build_graph(projected(torch.ones(4)), torch.randn(5, 2, 3))
    assert edges_of(graph, "hidden") == [("weight", "rnn.l0.projection")]
    assert edges_of(graph, "cells") == [("weight", "rnn.l0")]
    alike = edges_of(graph, "rnn.l0")
    assert alike == [("recurrent", "rnn.l0.projection"), ("weight", "x")]
    graph = build_graph(projected(torch.arange(4.0)), torch.randn(5, 2, 3))
    assert edges_of(graph, "rnn.l0") == sorted([*alike, ("residual", "state.constant")])
    assert {g.name: g.role for g in graph.groups}["state.constant"] == "input"


def packed(m, x):
    options = {"batch_first": True, "enforce_sorted": False}
    states, last = m.rnn(pack_padded_sequence(x, torch.tensor([3, 5]), **options))
    states = pad_packed_sequence(states, batch_first=True)[0]
    return m.head(states) + m.head(last[-1])[:, None]


def test_packed_sequences():
    model = FromFunction(packed, rnn=nn.GRU(3, 4, batch_first=True), head=(4, 2))
    graph = build_graph(model, torch.randn(2, 5, 3))
    assert [kind for kind, _ in edges_of(graph, "rnn.l0")] == ["recurrent", "weight"]
    assert graph.unplaced == () and unconnected(graph) == []


class Steps(nn.Module):
    """A cell in a loop, or the layer that does the same; `begins` sequences one after
    the other, or at once."""

    def __init__(self, recurrent, begins=1):
        super().__init__()
        self.rnn, self.head, self.begins = recurrent, nn.Linear(4, 2), begins

    def forward(self, x):
        if isinstance(self.rnn, nn.RNNBase):
            return self.head(self.rnn(x)[0][-1])
        last = []
        for part in x.chunk(self.begins):
            state = None
            for step in part:
                state = self.rnn(step, state)
            last.append(state[0] if isinstance(state, tuple) else state)
        return self.head(sum(last))


@pytest.mark.parametrize(
    ("cell", "layer"),
    [(nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU), (nn.RNNCell, nn.RNN)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_in_a_loop_is_a_recurrent_layer(cell, layer, bias):
    graphs = []
    for recurrent in (cell(3, 4, bias=bias), layer(3, 4, bias=bias)):
        graph = build_graph(Steps(recurrent), torch.randn(2, 5, 3))
        groups = tuple(replace(g, name="") for g in graph.groups)
        parameters = tuple(replace(p, name="") for p in graph.parameters)
        graphs.append(replace(graph, groups=groups, parameters=parameters))
    assert graphs[0] == graphs[1]


def test_a_cell_that_begins_twice_has_two_recurrences():
    graph = build_graph(Steps(nn.GRUCell(3, 4), 2), torch.randn(2, 5, 3))
    recurrent = [b for b in graph.weights if b.kind == "recurrent"]
    assert len(recurrent) == len({b.target for b in recurrent}) == 2
    assert all(b.source == b.target for b in recurrent)
    assert edges_of(zoo_graph("cells"), "writer") == [
        ("recurrent", "writer"),
        ("residual", "begin"),
        ("weight", "out"),
        ("weight", "out"),
        ("weight", "writer.constant"),
    ]
