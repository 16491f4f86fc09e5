"""Functions that rank, pick or mix the places of the same neurons."""

import pytest
import torch
from torch import nn

from ngopt.graph.connectivity import unconnected
from tests.graph_checks import check
from tests.networks import Between, FromFunction

PLACES = {
    "sort": lambda y: y.sort(1).values,
    "topk": lambda y: y.topk(2, 1).values,
    "kthvalue": lambda y: y.kthvalue(2, 1).values,
    "mode": lambda y: y.mode(1).values,
    "quantile": lambda y: y.quantile(0.5, 1),
    "nanmean": lambda y: y.nanmean(1),
    "cummax": lambda y: y.cummax(1).values,
    "diff": lambda y: y.diff(dim=1),
    "rfft": lambda y: torch.fft.rfft(y, dim=1).abs(),
}
NEURONS = {
    "topk": lambda y: y * y.topk(2, -1).values.sum(-1, keepdim=True),
    "sort": lambda y: y * y.sort(-1).values[..., :1],
    "argmax": lambda y: y[:, y.sum((0, 2)).argmax()],
    "picked": lambda y: y + y.flatten(0, 1)[:, y.sum((0, 1)).argmax()].sum(),
}


def network(function):
    return Between(function, (3, 4), (4, 2)).double()


@pytest.mark.parametrize("name", PLACES)
def test_neurons_that_are_the_same_at_all_places_stay_so(name):
    graph = check((network(PLACES[name]), torch.randn(2, 5, 3, dtype=torch.double)))
    assert [group.size for group in graph.groups] == [3, 4, 2]


@pytest.mark.parametrize("name", NEURONS)
def test_ranked_neurons_are_exchanged_only_by_symmetries(name):
    graph = check((network(NEURONS[name]), torch.randn(2, 5, 3, dtype=torch.double)))
    assert not unconnected(graph)


class FourierLayer(nn.Module):
    """Frequencies, each with a complex matrix of its own, as in Fourier neural
    operators."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, dtype=torch.cdouble))
        self.beside = nn.Conv1d(4, 4, 1)

    def forward(self, x):
        spectrum = torch.fft.rfft(x)
        mixed = torch.zeros_like(spectrum)
        mixed[..., :3] = torch.einsum("bix,iox->box", spectrum[..., :3], self.weight)
        return torch.fft.irfft(mixed, n=x.shape[-1]) + self.beside(x)


def test_a_fourier_neural_operator_is_whole():
    layers = nn.Sequential(FourierLayer(), nn.GELU(), FourierLayer())
    model = FromFunction(
        lambda m, x: m.last(m.layers(m.first(x).mT).mT),
        first=(2, 4), last=(4, 1), layers=layers,
    ).double()  # fmt: skip
    assert not unconnected(check((model, torch.randn(2, 10, 2, dtype=torch.double))))


@pytest.mark.parametrize("name", ["GCNConv", "GATConv", "SAGEConv", "TransformerConv"])
def test_graph_networks_whose_edges_are_data_are_whole(name):
    layer = getattr(pytest.importorskip("torch_geometric.nn"), name)
    model = FromFunction(
        lambda m, x, edges: m.last(m.first(x, edges).relu(), edges),
        first=layer(3, 4),
        last=layer(4, 2),
    ).double()
    edges = torch.tensor([[0, 1, 2, 3, 3, 4], [1, 2, 3, 0, 4, 2]])
    graph = check((model, (torch.randn(5, 3, dtype=torch.double), edges)))
    assert not unconnected(graph)
