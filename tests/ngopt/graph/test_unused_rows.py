"""A table of which the example input uses some rows is in the graph as a whole."""

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.graph_checks import assert_inverse, biases_with, edges_with, random_values

LENGTH, WIDTH = 32, 8
SHAPES = {
    "embedding": None,
    "rows": (LENGTH, WIDTH),
    "batched": (1, LENGTH, WIDTH),
    "indexed": (LENGTH, WIDTH),
    "behind": (LENGTH + 2, WIDTH),
    "transposed": (WIDTH, LENGTH),
    "factor": (LENGTH, WIDTH),
}


class Positional(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.token, self.last = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 4)
        shape = SHAPES[kind]
        if shape is None:
            self.table = nn.Embedding(LENGTH, WIDTH)
        else:
            self.table = nn.Parameter(torch.randn(*shape))

    def forward(self, tokens):
        x = self.token(tokens)
        n = tokens.shape[1]
        match self.kind:
            case "embedding":
                x = x + self.table(torch.arange(n))
            case "rows":
                x = x + self.table[:n]
            case "batched":
                x = x + self.table[:, :n]
            case "indexed":
                x = x + self.table[torch.arange(n)]
            case "behind":
                x = x + self.table[2 : n + 2]
            case "transposed":
                x = x + self.table[:, :n].T
            case "factor":
                x = x * self.table[:n]
        return self.last(x)


def traced(model, length):
    return build_graph(model, torch.zeros(2, length, dtype=torch.long))


@pytest.mark.parametrize("length", [1, 20, LENGTH - 1])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_shorter_input_gives_the_same_graph(kind, length):
    model = Positional(kind)
    graph = traced(model, length)
    assert unconnected(graph) == []
    assert graph == traced(model, LENGTH)
    assert_inverse(graph, random_values(graph))


def test_rows_that_do_different_things_are_not_joined():
    class Modulated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
            self.table = nn.Parameter(torch.randn(3, 8))

        def forward(self, x):
            return self.last(self.first(x) * self.table[0] + self.table[1])

    graph = build_graph(Modulated(), torch.randn(4, 3))
    assert unconnected(graph) == []
    places = edges_with(graph, "table") + biases_with(graph, "table")
    assert {b.kind for b in places} == {"scale", "shift", "other"}
    assert {b.view.numel for b in places} == {8}
