"""NP layers: their symmetries, their count of terms, and what they cannot read."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from ngopt import NGOptimizer, build_graph
from ngopt.metanets.graph_data.feature_sources import FlatFeatures
from ngopt.metanets.graph_data.graph_tensors import graph_tensors
from ngopt.metanets.layers.edge_states import EdgeStates
from ngopt.metanets.layers.np_layer import Channels, NPLayer, pooled
from ngopt.metanets.nfn import NeuralFunctional, NFNConfig, chain_of
from tests.equivariance import permute, random_permutations, random_values, updates
from tests.graph_checks import assert_equal
from tests.metanets import metanet_for
from tests.networks import cnn, mlp


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: mlp(3, 5, 4, 2), cnn], ids=["mlp", "cnn"])
def test_inputs_and_outputs_may_be_permuted_too(make):
    graph = build_graph(make())
    metanet = metanet_for("nfn", graph)
    generator = torch.Generator().manual_seed(0)
    order = random_permutations(graph, generator, roles=("input", "hidden", "output"))
    params = random_values(graph, generator)
    grads = random_values(graph, generator)
    expected = permute(graph, updates(metanet, graph, params, [grads]), order)
    params, grads = (permute(graph, values, order) for values in (params, grads))
    found = updates(metanet, graph, params, [grads])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_one_layer_spans_all_maps_that_commute_with_permutations():
    """Zhou et al. 2023: as many independent maps as orbits of pairs of elements."""
    sizes = (4, 5, 4)
    graph = build_graph(mlp(*sizes))
    metanet = NeuralFunctional(NFNConfig(kernels=((), ()), layers=1, d_out=1)).double()
    layer = metanet.layers[0]
    # one channel in and out: of the 14, the others are zero
    columns = []
    for weight in layer.parameters():
        for k in range(weight.numel()):
            flat = torch.zeros_like(weight).view(-1)
            flat[k] = 1.0
            columns.append(map_of(metanet, graph, weight, flat.view_as(weight)))
    rank = torch.linalg.matrix_rank(torch.stack(columns).flatten(1), atol=1e-9)
    assert rank == orbits_of_pairs(graph, sizes)


@torch.no_grad()
def map_of(metanet, graph, weight, value):
    """The linear map of a layer with one nonzero number, (numel, numel)."""
    for other in metanet.layers.parameters():
        other.zero_()
    weight.copy_(value)
    features = torch.zeros(graph.numel, graph.numel, 14, dtype=torch.float64)
    features[:, :, 0] = torch.eye(graph.numel)
    zero = torch.zeros_like(features[:1])
    contexts = [_context(metanet, graph, x) for x in (features, zero)]
    return contexts[0] - contexts[1]


def _context(metanet, graph, features):
    parts = metanet.graph_tensors(graph, features)
    context = metanet.context(FlatFeatures.finite(features, graph), parts)
    return torch.cat(context, -2).squeeze(-1)


def orbits_of_pairs(graph, sizes):
    """Kinds of pairs of elements that permutations of neurons cannot turn into each
    other."""
    elements = []
    for number, (rows, columns) in enumerate(zip(sizes[1:], sizes, strict=False)):
        pairs = product(range(rows), range(columns))
        elements += [(2 * number, (number + 1, i), (number, j)) for i, j in pairs]
        elements += [(2 * number + 1, (number + 1, i)) for i in range(rows)]
    kinds = set()
    for first, *own in elements:
        for second, *other in elements:
            equal = tuple(a == b for a in own for b in other if a[0] == b[0])
            kinds.add((first, second, equal))
    return len(kinds)


NORMED = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp(3, 4, 2), "nfn: expected kernels 3x3, 3x3, 3x3, 1; got 1, 1"),
        (NORMED, "nfn: expected a plain chain of layers"),
    ],
)
def test_other_networks_are_refused_before_anything_changes(model, message):
    opt = NGOptimizer(model.parameters(), model=model, rule=NeuralFunctional())
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(2, 3)).sum().backward()
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert not opt.state
    assert_equal(model.parameters(), before)


def test_chains():
    assert chain_of(build_graph(mlp(3, 4, 2))) == ((), ())
    assert chain_of(build_graph(cnn())) == ((3, 3), (2, 1), (4, 4), (6,), ())
    assert chain_of(build_graph([torch.zeros(3)])) is None


@torch.no_grad()
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_layer_is_the_sum_of_its_terms(pool):
    """With features of the first nodes and of the whole network,
    which the metanet does not have."""
    d_in = Channels([2, 3], [1, 2, 3], 2)
    layer = NPLayer(d_in, Channels([4, 1], [2, 1, 3], 2), pool).double()
    graph, sizes = build_graph(mlp(3, 4, 2)), (3, 4, 2)

    def double(*shape):
        return torch.randn(shape, dtype=torch.float64)

    shapes = zip(sizes[1:], sizes, d_in.weights, strict=False)
    first, second = (double(1, *shape) for shape in shapes)
    nodes = [double(n, d) for n, d in zip(sizes, d_in.nodes, strict=True)]
    whole = double(2)
    order = graph_tensors(graph, (1, 1), whole).weights
    weights = EdgeStates(
        order, lambda _, chunk: (first, second)[chunk.block], keep=True
    )
    found_nodes, found_whole = layer(weights, order, nodes, whole, is_last=True)

    def over(x, *axes):
        return x.mean(axes) if pool == "mean" else x.amax(axes)

    of_weights = [over(x[0], 0, 1) for x in (first, second)]
    everything = torch.cat([*of_weights, *(over(v, 0) for v in nodes), whole])

    def close(found, linear, pieces, other):
        expected = linear(torch.cat(pieces)) + other(everything)
        torch.testing.assert_close(found, expected)

    def edge(number, j, k, columns):
        """Of a weight, without its terms of columns and of itself."""
        state = weights.of(order[number].chunks[0])[0, j, k]
        own = layer.elements[number]((first, second)[number][0, j, k])
        return state - layer.columns[number](torch.cat(columns)) - own

    for k in range(3):
        pieces = [nodes[0][k], over(first[0, :, k], 0)]
        close(found_nodes[0][k], layer.first_rows, pieces, layer.first_whole)
    for j in range(4):
        rows = [over(first[0, j], 0), nodes[1][j], over(second[0, :, j], 0)]
        close(found_nodes[1][j], layer.bias_rows[0], rows, layer.bias_whole[0])
        for k in range(3):
            columns = [over(first[0, :, k], 0), nodes[0][k]]
            close(edge(0, j, k, columns), layer.rows[0], rows, layer.whole[0])
    for j in range(2):
        rows = [over(second[0, j], 0), nodes[2][j]]
        close(found_nodes[2][j], layer.bias_rows[1], rows, layer.bias_whole[1])
        for k in range(4):
            columns = [over(second[0, :, k], 0), over(first[0, k], 0), nodes[1][k]]
            close(edge(1, j, k, columns), layer.rows[1], rows, layer.whole[1])
    torch.testing.assert_close(found_whole, layer.to_whole(everything))


@torch.no_grad()
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooled_weights_do_not_depend_on_chunks(pool):
    graph = build_graph(mlp(5, 7))
    values = torch.randn(1, 7, 5, 1, 3)
    reduced = Tensor.mean if pool == "mean" else Tensor.amax
    expected = [reduced(values.squeeze((0, 3)), axis) for axis in (1, 0)]
    for limit in (None, 6):
        (block,) = graph_tensors(graph, (1, 1), values, limit).weights
        weights = EdgeStates(
            [block], lambda _, chunk: chunk.of(values).squeeze(-2), keep=True
        )
        torch.testing.assert_close(pooled(weights, block, pool), expected)
    assert len(block.chunks) > 4
