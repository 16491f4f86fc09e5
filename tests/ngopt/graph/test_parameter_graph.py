"""The parameter graph: hand-written graphs, and every element on an edge."""

from collections import Counter

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph import GraphValues, to_edge_list
from ngopt.graph.views.parameter_graph import layers, neuron_places, parameter_graph
from tests.automorphisms import input_output_index
from tests.graph_checks import assert_inverse
from tests.networks import mlp
from tests.ngopt.parameter_graphs import edges_of, kinds_of
from tests.zoo import ZOO, zoo_graph


def test_mlp_by_hand():
    graph = parameter_graph(build_graph(mlp(2, 3, 1)))
    # Nodes 0, 1 | 2, 3, 4 | 5 | 6, bias | 7, bias. Parameters: weight (3, 2), bias
    # (3,), weight (1, 3), bias (1,).
    assert [(g.size, g.kind, g.role, g.depth) for g in graph.groups] == [
        (2, "neuron", "input", 0), (3, "neuron", "hidden", 0.5),
        (1, "neuron", "output", 1),
        (1, "bias", "input", 0.5), (1, "bias", "input", 1),
    ]  # fmt: skip
    assert edges_of(graph) == [
        (0, 2, "weight", (), 0, 0), (1, 2, "weight", (), 0, 1),
        (0, 3, "weight", (), 0, 2),
        (1, 3, "weight", (), 0, 3), (0, 4, "weight", (), 0, 4),
        (1, 4, "weight", (), 0, 5),
        (2, 5, "weight", (), 2, 0), (3, 5, "weight", (), 2, 1),
        (4, 5, "weight", (), 2, 2),
        (6, 2, "bias", (), 1, 0), (6, 3, "bias", (), 1, 1), (6, 4, "bias", (), 1, 2),
        (7, 5, "bias", (), 3, 0),
    ]  # fmt: skip
    assert layers(graph) == [0, 1, 2, 1, 2]
    inputs, outputs = input_output_index(graph)
    assert inputs.tolist() == [0, 1, -1, -1, -1, -1, -1, -1]
    assert outputs.tolist() == [-1, -1, -1, -1, -1, 0, -1, -1]


def test_both_sides_of_a_norm_are_in_one_place():
    layers = nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)
    graph = build_graph(nn.Sequential(*layers), torch.zeros(2, 2))
    places = [(0, None), (1, None), (1, None), (2, None)]
    assert [group.size for group in graph.groups] == [2, 3, 3, 1]
    assert neuron_places(graph) == places


def test_convolution_with_norm_by_hand():
    first, last = nn.Conv2d(2, 3, (1, 2)), nn.Conv2d(3, 1, 1, bias=False)
    model = nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), last)
    graph = parameter_graph(build_graph(model, torch.randn(2, 2, 4, 4)))
    # Nodes 0, 1 | 2, 3, 4, which the norm acts on | 5 | 6, gamma | 7, bias | 8, beta.
    assert [(g.name, g.size, g.kind, g.role) for g in graph.groups] == [
        ("input", 2, "neuron", "input"), ("0", 3, "neuron", "hidden"),
        ("3", 1, "neuron", "output"),
        ("1.weight", 1, "gamma", "input"), ("0.bias", 1, "bias", "input"),
        ("1.bias", 1, "beta", "input"),
    ]  # fmt: skip
    assert graph.groups[1].activation == "relu"
    edges = edges_of(graph)
    # the kernel (3, 2, 1, 2): two parallel edges from every input to every channel
    assert sorted(e for e in edges if e[4] == 0) == sorted(
        (i, 2 + o, "weight", (0, k), 0, 4 * o + 2 * i + k)
        for o in range(3)
        for i in range(2)
        for k in range(2)
    )
    assert [e for e in edges if e[0] in (6, 7, 8)] == [
        *((6, 2 + c, "gamma", (), 2, c) for c in range(3)),
        *((7, 2 + c, "bias", (), 1, c) for c in range(3)),
        *((8, 2 + c, "beta", (), 3, c) for c in range(3)),
    ]
    assert [e for e in edges if e[1] == 5] == [
        (2 + c, 5, "weight", (0, 0), 4, c) for c in range(3)
    ]
    assert len(edges) == 12 + 9 + 3
    assert layers(graph) == [0, 1, 2, 1, 1, 1]


# Every element has its place


def counted(parameters, elements):
    """How often each element is in slots."""
    pairs = zip(parameters.flatten().tolist(), elements.flatten().tolist(), strict=True)
    return Counter(pairs)


@pytest.mark.parametrize("name", ZOO)
def test_every_element_is_an_edge(name):
    graph = zoo_graph(name)
    view = parameter_graph(graph)
    assert view.parameters == graph.parameters
    assert view.biases == ()
    assert all(block.slot_shape == () for block in view.blocks)
    for dtype in (torch.float64, torch.bfloat16):
        values = [torch.randn(*spec.shape, 3).to(dtype) for spec in view.parameters]
        assert_inverse(view, values)
    before, after = to_edge_list(graph), to_edge_list(view)
    elements = counted(before.parameter, before.element)
    elements += counted(before.node_parameter, before.node_element)
    placed = counted(after.parameter, after.element)
    del elements[-1, -1], placed[-1, -1]
    assert placed == elements
    again = parameter_graph(view)
    assert (again.groups, again.blocks) == (view.groups, view.blocks)


def test_several_uses_are_averaged_edge_by_edge():
    conv, linear = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 2)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(conv, nn.ReLU(), conv, *pooled, linear, nn.ReLU(), linear)
    graph = parameter_graph(build_graph(model, torch.randn(2, 2, 5, 5)))
    # a layer that is used twice has one bias node
    assert [g.kind for g in graph.groups].count("bias") == 2
    values = [torch.randn(s.shape) for s in graph.parameters]
    biases, edges = graph.gather(values)
    seen, changed = set(), []
    for block, value in zip(graph.weights, edges, strict=True):
        changed.append(value + 2 if (block.view, block.position) in seen else value)
        seen.add((block.view, block.position))
    means = graph.scatter(GraphValues(biases, tuple(changed)))
    torch.testing.assert_close(means, [value + 1 for value in values])


# Norms


def test_other_parameters_are_nodes_by_their_kind():
    grouped, tokens, gated = (
        parameter_graph(zoo_graph(name)) for name in ("grouped", "tokens", "gated")
    )
    assert kinds_of(grouped)[0]["slope"] == 1
    assert kinds_of(grouped)[1]["slope"] == 6
    (pos,) = [i for i, g in enumerate(tokens.groups) if g.name == "pos"]
    # positions are parallel edges from one node
    positions = [(b.position, b.shape) for b in tokens.blocks if b.source == pos]
    assert positions == [((k,), (1, 8, 1)) for k in range(5)]
    # a scalar leads to the node that stands for it
    assert kinds_of(gated)[1]["scale"] == 1
