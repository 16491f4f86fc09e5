"""Networks that write in place, to views, and to places that data decide."""

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.graph_checks import check
from tests.networks import FromFunction, edges_of


def to_a_view(m, x):
    y = m.a(x)
    y[:, :2] *= m.b(x)[:, 2:].tanh()
    return m.c(y)


def to_a_view_of_a_view(m, x):
    y = m.a(x)
    y.view(-1, 2, 2)[:, 0].copy_(m.b(x)[:, 2:].tanh())
    return m.c(y)


def to_the_tensor_of_a_view(m, x):
    y = m.a(x)
    last = y[:, 2:]
    y.add_(m.b(x).tanh())
    return m.c(torch.cat([y[:, :2], last], 1))


def into_zeros(m, x):
    """As sequences are put together step by step."""
    y = torch.zeros(len(x), 2, 4, dtype=x.dtype)
    y[:, 0] = m.a(x)
    y[:, 1] = m.b(x)
    return m.c(y.tanh())


def erased(m, x):
    y = m.a(x).tanh() + m.b(x)
    y[:, :2] = 0
    return m.c(y)


def masked(m, x):
    y = m.a(x)
    y[x[:, 0] > 0] = m.b(x).mean(0)
    return m.c(y.tanh())


def added_by_index(m, x):
    """As messages are added up where they are sent to."""
    places = (x[:, 0] > 0).long()
    y = torch.zeros(2, 4, dtype=x.dtype).index_add_(0, places, m.a(x).tanh())
    return m.c(y[places] + m.b(x))


def picked_by_score(m, x):
    """Tokens of the highest score, as a mixture of depths has them."""
    best = m.a(x).sum(-1).topk(2).indices
    y = m.b(x)
    y[best] = y[best] + y[best].sin()
    return m.c(y)


def part_of_a_bias(m, x):
    """As Swin V2 erases what keys would add."""
    bias = m.a.bias.clone()
    bias[2:].zero_()
    return m.c(nn.functional.linear(x, m.a.weight, bias).tanh() + m.b(x))


def only_recorded(m, x):
    """Values decide what it does, so that it cannot be exported."""
    return to_a_view(m, x) * (1 if x.sum() > 0 else 2)


NETWORKS = [
    to_a_view,
    to_a_view_of_a_view,
    to_the_tensor_of_a_view,
    into_zeros,
    erased,
    masked,
    added_by_index,
    picked_by_score,
    part_of_a_bias,
    only_recorded,
]


def network(function):
    """Two layers side by side and one behind them, and an example."""
    model = FromFunction(function, a=(3, 4), b=(3, 4), c=(4, 2)).double()
    return model, torch.randn(6, 3, dtype=torch.double)


@pytest.mark.parametrize("function", NETWORKS)
def test_graphs_of_networks_that_write_are_whole_and_symmetric(function):
    torch.manual_seed(0)
    assert not unconnected(check(network(function)))


@pytest.mark.parametrize("function", [to_a_view, only_recorded])
def test_writes_to_a_view_change_the_whole_tensor(function):
    graph = build_graph(*network(function))
    assert edges_of(graph, "c") == [("weight", "a"), ("weight", "mul_")]


def test_erased_neurons_have_no_edges():
    graph = build_graph(*network(erased))
    used = [block for block in graph.blocks if graph.groups[block.target].name == "c"]
    assert sum(block.shape[2] for block in used if block.kind == "weight") == 2 + 2
