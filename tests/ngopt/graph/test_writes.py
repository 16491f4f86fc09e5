"""Networks that write in place, to views, and to places that data decide."""

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.graph_checks import check
from tests.networks import edges_of


class Layers(nn.Module):
    """Two layers side by side and one behind them, in double precision."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(3, 4)
        self.c = nn.Linear(4, 2)
        self.double()


class ToAView(Layers):
    def forward(self, x):
        y = self.a(x)
        y[:, :2] *= self.b(x)[:, 2:].tanh()
        return self.c(y)


class ToAViewOfAView(Layers):
    def forward(self, x):
        y = self.a(x)
        y.view(-1, 2, 2)[:, 0].copy_(self.b(x)[:, 2:].tanh())
        return self.c(y)


class ToTheTensorOfAView(Layers):
    def forward(self, x):
        y = self.a(x)
        last = y[:, 2:]
        y.add_(self.b(x).tanh())
        return self.c(torch.cat([y[:, :2], last], 1))


class IntoZeros(Layers):
    """As sequences are put together step by step."""

    def forward(self, x):
        y = torch.zeros(len(x), 2, 4, dtype=x.dtype)
        y[:, 0] = self.a(x)
        y[:, 1] = self.b(x)
        return self.c(y.tanh())


class Erased(Layers):
    def forward(self, x):
        y = self.a(x).tanh() + self.b(x)
        y[:, :2] = 0
        return self.c(y)


class Masked(Layers):
    def forward(self, x):
        y = self.a(x)
        y[x[:, 0] > 0] = self.b(x).mean(0)
        return self.c(y.tanh())


class AddedByIndex(Layers):
    """As messages are added up where they are sent to."""

    def forward(self, x):
        places = (x[:, 0] > 0).long()
        y = torch.zeros(2, 4, dtype=x.dtype).index_add_(0, places, self.a(x).tanh())
        return self.c(y[places] + self.b(x))


class PickedByScore(Layers):
    """Tokens of the highest score, as a mixture of depths has them."""

    def forward(self, x):
        best = self.a(x).sum(-1).topk(2).indices
        y = self.b(x)
        y[best] = y[best] + y[best].sin()
        return self.c(y)


class PartOfABias(Layers):
    """As Swin V2 erases what keys would add."""

    def forward(self, x):
        bias = self.a.bias.clone()
        bias[2:].zero_()
        return self.c(nn.functional.linear(x, self.a.weight, bias).tanh() + self.b(x))


class OnlyRecorded(ToAView):
    """Values decide what it does, so that it cannot be exported."""

    def forward(self, x):
        return super().forward(x) * (1 if x.sum() > 0 else 2)


NETWORKS = [
    ToAView,
    ToAViewOfAView,
    ToTheTensorOfAView,
    IntoZeros,
    Erased,
    Masked,
    AddedByIndex,
    PickedByScore,
    PartOfABias,
    OnlyRecorded,
]


@pytest.mark.parametrize("network", NETWORKS)
def test_graphs_of_networks_that_write_are_whole_and_symmetric(network, recwarn):
    torch.manual_seed(0)
    graph = check((network(), torch.randn(6, 3, dtype=torch.double)))
    assert not unconnected(graph)
    assert not [w for w in recwarn if "failed" in str(w.message)]


@pytest.mark.parametrize("network", [ToAView, OnlyRecorded])
def test_writes_to_a_view_change_the_whole_tensor(network):
    graph = build_graph(network(), torch.randn(6, 3, dtype=torch.double))
    assert edges_of(graph, "c") == [("weight", "a"), ("weight", "mul_")]


def test_erased_neurons_have_no_edges():
    graph = build_graph(Erased(), torch.randn(6, 3, dtype=torch.double))
    used = [block for block in graph.blocks if graph.groups[block.target].name == "c"]
    assert sum(block.shape[2] for block in used if block.kind == "weight") == 2 + 2
