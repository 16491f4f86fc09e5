from math import prod

import pytest
import torch

from ngopt import build_graph
from ngopt.metanets import METANETS, NeuralGraphGNN
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.gnn import GNNConfig
from ngopt.metanets.graph_data.graph_tensors import kernel_tiles
from ngopt.metanets.layers.graph_network import GraphNetwork
from ngopt.metanets.layers.pna import PNALayer
from tests.equivariance import assert_equivariant, random_values, updates
from tests.metanets import SMALL, metanet_for, small_metanet
from tests.networks import cnn, mlp
from tests.ngopt import oracle


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


UNCONNECTED = [torch.zeros(shape) for shape in ((3,), (), (4, 2), (7,))]
GRAPHS = {
    "2-3-1": lambda: build_graph(mlp(2, 3, 1)),
    "cnn": lambda: build_graph(cnn()),
    "one layer": lambda: build_graph(mlp(4, 3)),
    "components without edges": lambda: build_graph(UNCONNECTED),
}


EMPTY = [(4, 3, 0), (4, 0, 3), (0, 4), (4, 3, 0, 2), (0,)]


@pytest.mark.parametrize("shape", EMPTY)
@pytest.mark.parametrize("name", SMALL)
def test_parameters_without_elements_have_updates(name, shape):
    graph = build_graph(
        [("first.weight", torch.zeros(3, 2)), ("odd", torch.zeros(shape))]
    )
    metanet = small_metanet(name)
    params = random_values(graph, torch.Generator())
    deltas = updates(metanet, graph, params, [params] * 2)
    assert [delta.shape for delta in deltas] == [(3, 2), shape]
    assert deltas[0].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", GRAPHS)
def test_blocks_equal_an_edge_list_loop(name):
    graph = GRAPHS[name]()
    layers = [PNALayer(6, log_degree=1.7) for _ in range(2)]
    gnn = GraphNetwork(5, 3, width=6, layers=layers, kernel=(3, 3)).double()
    shapes = [(*spec.shape, 5) for spec in graph.parameters]
    values = graph.gather([torch.randn(s, dtype=torch.float64) for s in shapes])
    expected = oracle.run(gnn, values, graph)
    torch.testing.assert_close(gnn(values, graph), expected, rtol=1e-12, atol=1e-12)


def test_a_single_bias():
    graph = build_graph([torch.zeros(3)])
    assert NeuralGraphGNN()(torch.zeros(3, NUM_FEATURES), graph).shape == (3,)


@pytest.mark.parametrize("name", sorted(METANETS))
@pytest.mark.parametrize("make", [lambda: mlp(3, 5, 4, 2), cnn], ids=["mlp", "cnn"])
def test_updates_are_equivariant(name, make):
    graph = build_graph(make())
    assert_equivariant(metanet_for(name, graph), graph)


def test_ties_do_not_break_equivariance():
    """Neurons with the same messages have std 0, where a root without epsilon has no
    derivative."""
    graph = build_graph(mlp(3, 4, 2))
    features = torch.zeros(graph.numel, NUM_FEATURES).double().requires_grad_()
    total = NeuralGraphGNN().double()(features, graph).sum()
    (gradient,) = torch.autograd.grad(total, features)
    assert gradient.isfinite().all()


@pytest.fixture
def step():
    """The graph of a CNN, its parameters and gradients."""
    graph, generator = build_graph(cnn()), torch.Generator().manual_seed(1)
    return graph, *(random_values(graph, generator) for _ in range(2))


@torch.no_grad()
@pytest.mark.parametrize("name", METANETS)
def test_a_gradient_moves_the_updates_of_other_layers(name, step):
    graph, params, grads = step
    changed = [g.clone() for g in grads]
    changed[0] *= 3  # the first layer's weight
    metanet = metanet_for(name, graph)
    before, after = (updates(metanet, graph, params, [g]) for g in (grads, changed))
    pairs = zip(before, after, strict=True)
    moved = [(b - a).abs().max().item() > 1e-12 for b, a in pairs]
    assert moved[0]
    assert moved[1:3] == [name != "ff"] * 2  # its bias and the next layer


@torch.no_grad()
def test_values_that_are_not_finite_change_no_other_update(step):
    graph, params, grads = step
    grads[2].view(-1)[5] = float("nan")
    deltas = updates(NeuralGraphGNN().double(), graph, params, [grads])
    assert sum(int(d.isnan().sum()) for d in deltas) == 1
    assert deltas[2].view(-1)[5].isnan()


@pytest.mark.parametrize("name", sorted(METANETS))
def test_stacked_graphs_equal_a_loop(name):
    graph = build_graph(cnn())
    metanet = metanet_for(name, graph)
    features = torch.randn(2, 3, graph.numel, NUM_FEATURES, dtype=torch.float64)
    with torch.no_grad():
        stacked = metanet(features, graph)
        alone = [metanet(f, graph) for f in features.flatten(0, 1)]
        mapped = torch.vmap(torch.vmap(lambda f: metanet(f, graph)))(features)
    loop = torch.stack(alone).unflatten(0, (2, 3))
    for found in (stacked, mapped):
        torch.testing.assert_close(found, loop, rtol=1e-12, atol=1e-14)


KERNELS = [(), (1,), (4,), (9,), (49,), (3, 3), (1, 3), (2, 2), (5, 5), (7, 4)]
KERNELS += [(3, 3, 3), (2, 5, 4)]


@pytest.mark.parametrize("shape", KERNELS)
def test_tiles_cover_every_slot_once(shape):
    tiles = kernel_tiles(shape, (3, 3))
    slots = sorted(slot for tile in tiles for slot in tile.slots)
    assert slots == list(range(prod(shape)))
    for tile in tiles:
        assert len(set(tile.positions)) == len(tile.slots)
        assert all(0 <= p < 9 for p in tile.positions)


CENTRE = 6, 7, 8, 11, 12, 13, 16, 17, 18  # of (5, 5)


@pytest.mark.parametrize(
    ("shape", "kernel", "positions"),
    [
        ((), (3, 3), (4,)),
        ((1, 1), (3, 3), (4,)),
        ((3,), (3, 3), (3, 4, 5)),
        ((1, 3), (3, 3), (3, 4, 5)),
        ((3, 3), (5, 5), CENTRE),
    ],
)
def test_small_kernels_lie_in_the_centre(shape, kernel, positions):
    assert kernel_tiles(shape, kernel)[0].positions == positions


def test_config_reaches_the_network():
    sizes = {"layers": 3, "d_out": 2, "kernel": (1, 1), "hidden": (4,)}
    metanet = NeuralGraphGNN(GNNConfig(width=8, **sizes))
    assert len(metanet.gnn.layers) == 3
    assert metanet.head.layers[0].in_features == NUM_FEATURES + 2
    graph = build_graph(cnn())
    features = torch.randn(graph.numel, NUM_FEATURES)
    assert metanet(features, graph).shape == (graph.numel,)
