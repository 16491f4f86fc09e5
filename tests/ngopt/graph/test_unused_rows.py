"""A table of which the example input uses some rows is in the graph as a whole."""

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.graph_checks import assert_inverse, biases_with, edges_with, random_values
from tests.networks import FromFunction

LENGTH, WIDTH = 32, 8


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


# tables, and what the network does with one after n tokens
USES = {
    "embedding": (
        nn.Embedding(LENGTH, WIDTH),
        lambda x, table, n: x + table(torch.arange(n)),
    ),
    "rows": (parameter(LENGTH, WIDTH), lambda x, table, n: x + table[:n]),
    "batched": (parameter(1, LENGTH, WIDTH), lambda x, table, n: x + table[:, :n]),
    "indexed": (
        parameter(LENGTH, WIDTH),
        lambda x, table, n: x + table[torch.arange(n)],
    ),
    "behind": (parameter(LENGTH + 2, WIDTH), lambda x, table, n: x + table[2 : n + 2]),
    "transposed": (parameter(WIDTH, LENGTH), lambda x, table, n: x + table[:, :n].T),
    "factor": (parameter(LENGTH, WIDTH), lambda x, table, n: x * table[:n]),
}


def positional(kind):
    table, use = USES[kind]

    def forward(m, tokens):
        return m.last(use(m.token(tokens), m.table, tokens.shape[1]))

    token = nn.Embedding(20, WIDTH)
    return FromFunction(forward, token=token, last=(WIDTH, 4), table=table)


def traced(model, length):
    return build_graph(model, torch.zeros(2, length, dtype=torch.long))


@pytest.mark.parametrize("length", [1, 20, LENGTH - 1])
@pytest.mark.parametrize("kind", USES)
def test_a_shorter_input_gives_the_same_graph(kind, length):
    model = positional(kind)
    graph = traced(model, length)
    assert unconnected(graph) == []
    assert graph == traced(model, LENGTH)
    assert_inverse(graph, random_values(graph))


def test_rows_that_do_different_things_are_not_joined():
    model = FromFunction(
        lambda m, x: m.last(m.first(x) * m.table[0] + m.table[1]),
        first=(3, 8),
        last=(8, 2),
        table=parameter(3, 8),
    )
    graph = build_graph(model, torch.randn(4, 3))
    assert unconnected(graph) == []
    places = edges_with(graph, "table") + biases_with(graph, "table")
    assert {b.kind for b in places} == {"scale", "shift", "other"}
    assert {b.view.numel for b in places} == {8}


def test_elements_of_all_rows_at_a_step_are_no_row():
    model = FromFunction(
        lambda m, x: m.first(x) + m.table.flatten()[::3],
        first=(5, 4),
        table=parameter(3, 4),
    )
    graph = build_graph(model, torch.randn(2, 5))
    assert unconnected(graph) == []
    (block,) = [b for b in biases_with(graph, "table") if b.view.strides == (3,)]
    assert block.view.numel == 4
    assert_inverse(graph, random_values(graph))
