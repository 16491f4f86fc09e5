"""Functions that rank, pick or mix the places of the same neurons."""

import pytest
import torch
from torch import nn

from ngopt.graph.connectivity import unconnected
from tests.automorphisms import count_automorphisms
from tests.graph_checks import check, edges_with
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


EDGES = torch.tensor([[0, 1, 2, 3, 3, 4], [1, 2, 3, 0, 4, 2]])
EDGE_WEIGHTS = torch.rand(6, dtype=torch.double)
# Layer, arguments, width of four channels, number of symmetries, counted by hand: of
# the channels, and of heads with theirs
GRAPH_LAYERS = [
    ("GCNConv", {}, 4, 24),
    ("GATConv", {}, 4, 24),
    ("GATConv", {"heads": 2}, 8, 2 * 24 * 24),
    ("GATConv", {"heads": 2, "concat": False}, 4, 2 * 24),
    ("GATv2Conv", {}, 4, 24),
    ("GATv2Conv", {"heads": 2}, 8, 2 * 24 * 24),
    ("GATv2Conv", {"heads": 2, "concat": False}, 4, 2 * 24),
    ("ChebConv", {"K": 3}, 4, 24),
    ("SGConv", {"K": 2}, 4, 24),
    ("ClusterGCNConv", {}, 4, 24),
    ("SAGEConv", {"aggr": "max"}, 4, 24),
    ("TransformerConv", {}, 4, 24 * 24),
    ("TAGConv", {"K": 2}, 4, 24),
]


@pytest.mark.parametrize(("name", "options", "width", "count"), GRAPH_LAYERS)
def test_graph_networks_whose_edges_are_data_are_whole(name, options, width, count):
    layer = getattr(pytest.importorskip("torch_geometric.nn"), name)
    model = FromFunction(
        lambda m, x, edges, *more: m.last(m.first(x, edges, *more).relu()),
        first=layer(3, 4, **options),
        last=(width, 2),
    ).double()
    examples = [(torch.randn(5, 3, dtype=torch.double), EDGES)]
    if name in ("GCNConv", "ChebConv", "SGConv", "TAGConv"):
        examples.append((*examples[0], EDGE_WEIGHTS))
    for example in examples:
        graph = check((model, example))
        assert not unconnected(graph)
        assert count_automorphisms(graph) == count


@pytest.mark.parametrize("shape", [(5, 4), (5,), (1, 5, 4)])
def test_a_parameter_of_which_data_select_rows_is_a_table(shape):
    def summed(m, x, rows):
        chosen = m.table[:, rows][0] if len(shape) > 2 else m.table[rows]
        return m.last((m.first(x) + chosen.reshape(3, -1)).relu())

    table = nn.Parameter(torch.randn(shape))
    model = FromFunction(summed, first=(3, 4), last=(4, 2), table=table)
    rows = torch.tensor([3, 0, 4])
    graph = check((model.double(), (torch.randn(3, 3, dtype=torch.double), rows)))
    (block,) = edges_with(graph, "table")
    assert graph.groups[block.source].kind == "token" and not unconnected(graph)
    assert block.shape == (1, shape[-1] if len(shape) > 1 else 1, 5)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", ["dense", "coo", "csr"])
def test_a_graph_network_whose_edges_are_a_matrix_is_whole(layout):
    """As the GCN of Kipf & Welling, with more products than become nodes."""

    def propagated(m, x, adjacency):
        x = torch.sparse.mm(adjacency, m.first(x)).relu()
        return torch.spmm(adjacency, m.last(x))

    model = FromFunction(propagated, first=(3, 4), last=(4, 2)).double()
    adjacency = torch.rand(1100, 1100, dtype=torch.double).round()
    if layout != "dense":
        sparse = {"coo": torch.Tensor.to_sparse_coo, "csr": torch.Tensor.to_sparse_csr}
        adjacency = sparse[layout](adjacency)
    graph = check((model, (torch.randn(1100, 3, dtype=torch.double), adjacency)))
    assert not unconnected(graph)
    assert count_automorphisms(graph) == 24
