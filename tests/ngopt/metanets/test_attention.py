"""The relational layer against a softmax over a plain list of edges, one neuron at a
time."""

from math import sqrt

import pytest
import torch

from ngopt import build_graph
from ngopt.metanets import NeuralGraphTransformer
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.graph_data.graph_tensors import graph_tensors
from ngopt.metanets.layers.attention import RelationalLayer, SoftmaxSums, padded
from ngopt.metanets.layers.edge_states import EdgeStates
from ngopt.metanets.layers.graph_network import run_layer
from ngopt.metanets.transformer import TransformerConfig
from tests.networks import mlp
from tests.ngopt.oracle import ends
from tests.zoo import zoo_graph

WIDTH, HEADS = 6, 2


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["residual", "attention", "grouped"])
@pytest.mark.parametrize("complete", [False, True])
def test_nodes_equal_a_softmax_over_a_list_of_edges(name, complete):
    graph = zoo_graph(name)
    nodes = [torch.randn(group.size, WIDTH).double() for group in graph.groups]
    parts = graph_tensors(graph, (9, 9), nodes[0])
    edges = [
        torch.randn(*own.block.shape, own.tiles, WIDTH).double() for own in parts.blocks
    ]
    layer = RelationalLayer(WIDTH, HEADS, 1000 if complete else 0).double()
    states = EdgeStates(
        parts.blocks, lambda _, chunk: chunk.of(edges[chunk.block]), keep=True
    )
    found = torch.cat(run_layer(layer, nodes, states, parts))
    expected = torch.stack(by_hand(layer, graph, nodes, edges, complete))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def by_hand(layer, graph, nodes, edges, complete):
    """New states of all neurons."""
    starts = [sum(g.size for g in graph.groups[:i]) for i in range(len(graph.groups))]
    states = list(torch.cat(nodes))
    messages: list[list] = [[] for _ in states]  # (logits, value) of each neuron
    for block, state in zip((*graph.weights, *graph.constants), edges, strict=True):
        for place, source, target in ends(graph, block):
            i = starts[block.target] + target
            j = starts[block.source] + source
            of_target = layer.target(states[i]).chunk(4)
            of_source = layer.source(states[j]).chunk(4)
            for edge in state[place]:
                terms = layer.edge_terms(edge).chunk(8)
                message = of_target[0], of_source[0], of_source[1]
                messages[i].append(one_edge(*message, *terms[:4]))
                message = of_source[2], of_target[1], of_target[2]
                messages[j].append(one_edge(*message, *terms[4:]))
    if complete:
        for i, state in enumerate(states):
            query = layer.everywhere(state)[:WIDTH]
            for other in states:
                _, key, value = layer.everywhere(other).chunk(3)
                messages[i].append((logits_of(query, key), value))
    return [next_state(layer, *pair) for pair in zip(states, messages, strict=True)]


def one_edge(query, key, value, to_query, to_key, scale, shift):
    return logits_of(query + to_query, key + to_key), scale * value + shift


def logits_of(query, key):
    return (query * key).view(HEADS, -1).sum(1) / sqrt(WIDTH / HEADS)


def next_state(layer, state, messages):
    mean = torch.zeros_like(state)
    if messages:
        weights = torch.stack([logits for logits, _ in messages]).softmax(0)
        values = torch.stack([value.view(HEADS, -1) for _, value in messages])
        mean = (weights.unsqueeze(-1) * values).sum(0).flatten()
    return layer.node_mlp(layer.node_norm(state + layer.out(mean)))


def test_merged_softmax_sums_are_those_of_all_values():
    logits = 30 * torch.randn(1, 3, 8, 1, 2, dtype=torch.float64)
    values = torch.randn(1, 3, 8, 1, 6, dtype=torch.float64)
    of_head = torch.eye(2, dtype=torch.float64).repeat_interleave(3, 1)
    whole = SoftmaxSums.of(logits, values, (-3, -2), of_head)
    pairs = zip(logits.split(3, 2), values.split(3, 2), strict=True)
    first, second, third = (SoftmaxSums.of(*x, (-3, -2), of_head) for x in pairs)
    found = first.merged(second).merged(third)
    torch.testing.assert_close(found.mean(), whole.mean(), rtol=1e-12, atol=1e-12)


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="heads: expected a divisor of width 6; got 4"):
        RelationalLayer(6, 4)


@torch.no_grad()
def test_small_networks_are_fully_connected():
    """With one layer, only attention between all neurons reaches the first bias."""
    graph = build_graph(mlp(3, 4, 5, 4, 2))
    features = torch.randn(graph.numel, NUM_FEATURES).double()
    changed = features.clone()
    changed[-1] += 1.0
    for size, moves in ((18, True), (17, False)):  # it has 18 neurons
        torch.manual_seed(0)
        config = TransformerConfig(width=8, heads=2, layers=1, complete_up_to=size)
        metanet = NeuralGraphTransformer(config).double()
        # of the first layer's bias, which follows its twelve weights
        before, after = (metanet(x, graph)[12] for x in (features, changed))
        assert ((before - after).abs() > 1e-12) == moves


def test_nodes_of_small_graphs_are_padded():
    index, is_node = padded(torch.tensor([0, 0, 1, 2, 2, 2, 2]), 2)
    assert index.tolist() == [[0, 1], [2, 0]]
    assert is_node.tolist() == [[True, True], [True, False]]
    none, _ = padded(torch.tensor([0, 0]), 1)
    assert none.numel() == 0
