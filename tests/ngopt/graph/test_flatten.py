import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph.views.flattened_maps import with_repeated_nodes, with_virtual_layer
from ngopt.metanets import NeuralGraphGNN
from ngopt.metanets.gnn import GNNConfig
from tests.equivariance import assert_equivariant
from tests.graph_checks import assert_inverse, edges_with, random_values
from tests.ngopt import oracle


class ChannelsLast(nn.Module):
    """Flattens position after position."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


def channels_first():
    head = nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), *head)


NETWORKS = {"channels first": channels_first, "channels last": ChannelsLast}


@pytest.fixture(params=NETWORKS)
def graph(request):
    torch.manual_seed(0)
    return build_graph(NETWORKS[request.param](), torch.randn(2, 2, 3, 3))


@pytest.mark.parametrize("view", [with_virtual_layer, with_repeated_nodes])
def test_parameters_keep_their_places(graph, view):
    other = view(graph)
    assert all(b.slot_shape == () or len(b.slot_shape) == 2 for b in other.weights)
    assert_inverse(other, random_values(other))
    assert other.parameters == graph.parameters


def columns(graph, name):
    """Flat element of the first row of a weight -> the neuron that it reads; and the
    group of these neurons."""
    (block,) = edges_with(graph, name)
    size = graph.parameters[block.view.parameter].numel
    elements = block.view.read(torch.arange(size)[None, :, None]).flatten(1)
    neurons = block.source_index or range(graph.groups[block.source].size)
    first_row = elements[0, : len(neurons)].tolist()
    return dict(zip(first_row, neurons, strict=True)), block.source


@pytest.mark.parametrize(
    ("network", "name", "channel_of"),
    [
        ("channels first", "3.weight", [k // 4 for k in range(12)]),
        ("channels last", "fc.weight", [0, 1, 2] * 4),
    ],
)
def test_every_column_comes_from_its_channel_and_position(network, name, channel_of):
    graph = build_graph(NETWORKS[network](), torch.randn(2, 2, 3, 3))
    virtual = with_virtual_layer(graph)
    nodes, group = columns(virtual, name)
    (spread,) = (b for b in virtual.blocks if b.target == group)
    assert (spread.kind, spread.shape, spread.view) == ("spread", (3, 4, 1), None)
    targets = spread.target_index or range(12)
    channel = {node: k // 4 for k, node in enumerate(targets)}
    assert [channel[nodes[e]] for e in range(12)] == channel_of

    repeated = with_repeated_nodes(graph)
    nodes, group = columns(repeated, name)
    assert [nodes[e] // 4 for e in range(12)] == channel_of
    assert len(set(nodes.values())) == 12
    copies = [b for b in repeated.blocks if b.target == group]
    assert len(copies) == 4
    assert len({b.view for b in copies}) == 1
    assert sorted(n for b in copies for n in b.target_index) == list(range(12))
    assert not any(
        b.group != group
        for b in repeated.biases
        if "conv" in repeated.parameters[b.view.parameter].name
    )


@pytest.mark.parametrize("view", [with_virtual_layer, with_repeated_nodes])
def test_metanets_run_on_them(graph, view):
    other = view(graph)
    torch.manual_seed(0)
    metanet = NeuralGraphGNN(GNNConfig(width=5, d_out=2, hidden=(4,))).double()
    values = other.gather(
        [torch.randn(*s.shape, 14, dtype=torch.float64) for s in other.parameters]
    )
    with torch.no_grad():
        outputs = metanet.gnn(values, other)
        expected = oracle.run(metanet.gnn, values, other)
    torch.testing.assert_close(outputs, expected, rtol=1e-11, atol=1e-11)


def test_without_a_flatten_nothing_changes():
    graph = build_graph(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    assert with_virtual_layer(graph) == graph
    assert with_repeated_nodes(graph) == graph
    assert_equivariant(
        NeuralGraphGNN(GNNConfig(width=4)).double(), with_virtual_layer(graph)
    )
