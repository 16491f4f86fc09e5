"""Permutations that are no symmetry of a network change the updates of metanets."""

from dataclasses import replace

import pytest
import torch

from ngopt import build_graph
from ngopt.graph import GraphValues, join_graphs
from ngopt.metanets.layers.graph_network import GraphNetwork, GraphNetworkOptions
from ngopt.metanets.layers.pna import PNALayer
from tests.automorphisms import automorphisms, subproducts
from tests.equivariance import random_values, randomised, run, updates
from tests.graph_checks import assert_inverse
from tests.metanets import SMALL, small_metanet
from tests.zoo import ZOO, zoo_graph, zoo_network


def pair(name, group, a, b):
    """Permutes two neurons of a group of a zoo network alone,
    with the edges that they have: (graph, permutations)."""
    graph = zoo_graph(name)
    number = next(i for i, g in enumerate(graph.groups) if g.name == group)
    order = torch.arange(graph.groups[number].size)
    order[[a, b]] = order[[b, a]]
    return graph, {number: order}


def dense_permute(graph, values, permutations):
    """Permutes the ends of dense blocks and biases and leaves edges of cells and
    diagonals where they are."""
    biases, edges = graph.gather(values)

    def order(group, index):
        places = {n: k for k, n in enumerate(index or range(graph.groups[group].size))}
        to = permutations.get(group, torch.arange(graph.groups[group].size)).tolist()
        return [places[to[n]] for n in places]

    places = zip(graph.biases, biases, strict=True)
    moved = [bias[order(place.group, place.index)] for place, bias in places]
    shuffled = []
    for block, e in zip(graph.weights, edges, strict=True):
        if block.shape[0] == 1:
            targets = order(block.target, block.target_index)
            e = e[:, targets][:, :, order(block.source, block.source_index)]
        shuffled.append(e)
    return graph.scatter(GraphValues(tuple(moved), tuple(shuffled)))


NEGATIVES = {
    "within a head, queries without keys": ("attention", "1.q", 0, 1),
    "across heads": ("attention", "1.v", 0, 5),
    "across groups of a norm": ("group norm", "1", 0, 4),
    "across groups of a convolution": ("grouped", "grouped", 0, 4),
    "inputs": ("deep sets", "x", 0, 2),
    "outputs": ("deep sets", "own2", 1, 3),
    "residual stream on one side": ("residual", "bn1", 0, 1),
}


def difference(first, second):
    """The largest, of lists of tensors."""
    return max((a - b).abs().max() for a, b in zip(first, second, strict=True))


def random_step(graph):
    """A metanet, parameters and gradients."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    params = random_values(graph, generator)
    return small_metanet(), params, random_values(graph, generator)


@pytest.mark.parametrize("case", NEGATIVES)
@torch.no_grad()
def test_other_permutations_change_the_updates(case):
    graph, permutations = pair(*NEGATIVES[case])
    metanet, params, grads = random_step(graph)
    plain = updates(metanet, graph, params, [grads])
    expected = dense_permute(graph, plain, permutations)
    moved = [dense_permute(graph, v, permutations) for v in (params, grads)]
    assert difference(expected, updates(metanet, graph, moved[0], [moved[1]])) > 1e-8
    model, example = zoo_network(NEGATIVES[case][0])
    parameters = randomised(model)
    before = run(model, parameters, example)
    after = run(model, dense_permute(graph, parameters, permutations), example)
    assert (before - after).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("name", "first", "second", "alike"),
    [
        ("deep sets", "own.weight", "mean.weight", False),
        ("gru", "rnn.bias_ih_l0", "rnn.bias_hh_l0", False),
        ("rnn", "rnn.bias_ih_l0", "rnn.bias_hh_l0", True),
        ("tokens", "norm.weight", "scale", False),
        ("group norm", "1.weight", "1.bias", False),
        ("tokens", "norm.bias", "attn.out_proj.bias", False),
        ("gated", "up.weight", "gate.weight", False),
        ("dueling", "up.weight", "down.weight", False),
    ],
)
@torch.no_grad()
def test_parameters_are_interchangeable_where_the_network_is_symmetric(
    name, first, second, alike
):
    model, example = zoo_network(name)
    graph = build_graph(model, example)
    names = [spec.name for spec in graph.parameters]
    i, j = names.index(first), names.index(second)

    def exchanged(values):
        return [values[{i: j, j: i}.get(k, k)] for k in range(len(values))]

    metanet, params, grads = random_step(graph)
    expected = exchanged(updates(metanet, graph, params, [grads]))
    found = updates(metanet, graph, exchanged(params), [exchanged(grads)])
    assert (difference(expected, found) < 1e-10) == alike
    params = randomised(model)
    before = run(model, params, example)
    after = run(model, exchanged(params), example)
    assert ((before - after).abs().max() < 1e-10) == alike


def exchanged(graph, values, places):
    """Values with rows, or columns (dimension 1), exchanged: {parameter: (dimension,
    ones, others)}."""
    names = [spec.name for spec in graph.parameters]
    moved = [v.clone() for v in values]
    for name, (dim, ones, others) in places.items():
        order = torch.arange(graph.parameters[names.index(name)].shape[dim])
        order[[*ones, *others]] = order[[*others, *ones]]
        moved[names.index(name)] = values[names.index(name)].index_select(dim, order)
    return moved


QUERIES = ("1.q.weight", "1.q.bias", "1.k.weight", "1.k.bias")
SCALES = ("1.q_norm.weight", "1.k_norm.weight", "1.k_norm.bias")
OF_HEADS = (*QUERIES, "1.v.weight", "1.v.bias")
WITHIN, BOTH = (0, [0], [1]), (0, [0, 3], [1, 4])
HEADS = [0, 1, 2], [3, 4, 5]
EXCHANGES = {  # of the network "head norms", which has two heads of three neurons
    "in one head": (dict.fromkeys(QUERIES, WITHIN), False),
    "in both heads, without scales": (dict.fromkeys(QUERIES, BOTH), False),
    "in one head, with the scales": (dict.fromkeys((*QUERIES, *SCALES), WITHIN), False),
    "in both heads, with the scales": (
        dict.fromkeys(QUERIES, BOTH) | dict.fromkeys(SCALES, WITHIN),
        True,
    ),
    "one neuron of each head": (dict.fromkeys(QUERIES, (0, [0], [3])), False),
    "heads": (
        dict.fromkeys(OF_HEADS, (0, *HEADS)) | {"1.proj.weight": (1, *HEADS)},
        True,
    ),
}


@pytest.mark.parametrize("case", EXCHANGES)
@torch.no_grad()
def test_a_norm_that_heads_share_ties_their_neurons(case):
    places, symmetric = EXCHANGES[case]
    model, example = zoo_network("head norms")
    graph = build_graph(model, example)
    params = randomised(model)
    before = run(model, params, example)
    after = run(model, exchanged(graph, params, places), example)
    most = (before - after).abs().max()
    assert most < 1e-12 if symmetric else most > 1e-6
    metanet, params, grads = random_step(graph)
    expected = exchanged(graph, updates(metanet, graph, params, [grads]), places)
    moved = [exchanged(graph, values, places) for values in (params, grads)]
    most = difference(expected, updates(metanet, graph, moved[0], [moved[1]]))
    assert most < 1e-10 if symmetric else most > 1e-8, most


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(SMALL))
def test_predictions_do_not_depend_on_other_graphs_of_a_batch(name):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    metanet = small_metanet(name)
    graphs = [zoo_graph(name) for name in ("residual", "attention", "lstm")]
    options = {"generator": generator, "dtype": torch.float64}
    features = [torch.randn(g.numel, 14, **options) for g in graphs]
    joined = metanet(torch.cat(features), join_graphs(*graphs))
    alone = torch.cat([metanet(f, g) for f, g in zip(features, graphs, strict=True)])
    torch.testing.assert_close(joined, alone, rtol=0, atol=1e-12)


def pna(count):
    return [PNALayer(6, 1.5) for _ in range(count)]


@torch.no_grad()
def test_activations_and_a_global_feature():
    """Both change outputs, respect symmetries, and stay within their graph."""
    torch.manual_seed(0)
    options = GraphNetworkOptions(activations=True, global_feature=True)
    network = GraphNetwork(3, 2, 6, pna(2), (3, 3), options).double()
    graphs = [zoo_graph(name) for name in ("residual", "attention")]
    values = [
        [torch.randn(*s.shape, 3, dtype=torch.float64) for s in g.parameters]
        for g in graphs
    ]

    def outputs(graph, values):
        return graph.scatter(network(graph.gather(values), graph))

    alone = [outputs(g, v) for g, v in zip(graphs, values, strict=True)]
    for graph, value, expected in zip(graphs, values, alone, strict=True):
        for symmetry in subproducts(automorphisms(graph), 2):
            found = outputs(graph, symmetry.move(graph, value))
            expected_found = symmetry.move(graph, expected)
            torch.testing.assert_close(found, expected_found, rtol=0, atol=1e-10)
    joined = outputs(join_graphs(*graphs), [*values[0], *values[1]])
    torch.testing.assert_close(joined, [*alone[0], *alone[1]], rtol=0, atol=1e-12)
    # with one layer of messages only the global feature reaches the first layer
    options = GraphNetworkOptions(global_feature=True)
    far = GraphNetwork(3, 2, 6, pna(1), (3, 3), options).double()
    changed = [v.clone() for v in values[0]]
    changed[-1] += 1.0
    graph = graphs[0]
    before, after = (
        graph.scatter(far(graph.gather(v), graph)) for v in (values[0], changed)
    )
    assert (before[0] - after[0]).abs().max() > 1e-9
    groups = tuple(replace(group, activation=None) for group in graph.groups)
    other = replace(graph, groups=groups)
    assert (outputs(other, values[0])[0] - alone[0][0]).abs().max() > 1e-6


@pytest.mark.parametrize("name", ZOO)
def test_every_element_is_placed_and_ends_of_blocks_are_distinct(name):
    graph = zoo_graph(name)  # raises AssertionError if the network's state changes
    assert graph.unplaced == ()
    for dtype in (torch.float64, torch.bfloat16):
        shapes = [(*spec.shape, 3) for spec in graph.parameters]
        assert_inverse(graph, [torch.randn(shape).to(dtype) for shape in shapes])
    ends = [index for b in graph.blocks for index in (b.source_index, b.target_index)]
    for index in (*ends, *(b.index for b in graph.biases)):
        assert index is None or len(set(index)) == len(index)
