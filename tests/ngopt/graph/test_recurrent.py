"""Recurrent layers and cells: their states, and steps that are one recurrence."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.graph_checks import biases_with
from tests.networks import edges_of
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


class Projected(nn.Module):
    """The state of an LSTM with a projection, which begins with constants."""

    def __init__(self, begin):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, proj_size=2)
        self.hidden = nn.Linear(2, 2)
        self.cells = nn.Linear(4, 2)
        self.register_buffer("begin", begin)

    def forward(self, x):
        hidden, cells = self.rnn(
            x, (x.new_zeros(1, x.shape[1], 2), self.begin.expand(1, x.shape[1], 4))
        )[1]
        return self.hidden(hidden[-1]), self.cells(cells[-1])


def test_the_state_of_a_projection_and_constant_states():
    graph = build_graph(Projected(torch.ones(4)), torch.randn(5, 2, 3))
    assert edges_of(graph, "hidden") == [("weight", "rnn.l0.projection")]
    assert edges_of(graph, "cells") == [("weight", "rnn.l0")]
    alike = edges_of(graph, "rnn.l0")
    assert alike == [("recurrent", "rnn.l0.projection"), ("weight", "x")]
    graph = build_graph(Projected(torch.arange(4.0)), torch.randn(5, 2, 3))
    assert edges_of(graph, "rnn.l0") == sorted([*alike, ("residual", "state.constant")])
    assert {g.name: g.role for g in graph.groups}["state.constant"] == "input"


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        packed = pack_padded_sequence(
            x, torch.tensor([3, 5]), batch_first=True, enforce_sorted=False
        )
        packed, last = self.rnn(packed)
        return (
            self.head(pad_packed_sequence(packed, batch_first=True)[0])
            + self.head(last[-1])[:, None]
        )


def test_packed_sequences():
    graph = build_graph(Packed(), torch.randn(2, 5, 3))
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
