"""Networks that few people build, each with what a graph may get wrong about it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.equivariance import randomised
from tests.graph_checks import assert_inverse, check, check_symmetries, edges_with
from tests.networks import Between, FromFunction


def double(model, *example):
    return model.double(), tuple(x.double() for x in example)


def sizes(graph):
    return [group.size for group in graph.groups]


def used(graph, name):
    """How many edges the elements of a parameter are."""
    return sum(block.view.numel for block in edges_with(graph, name))


def test_a_single_map_is_pooled_along_its_space():
    """(channels, height, width), without a batch."""
    layers = nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Conv2d(3, 2, 3)
    graph = check(double(nn.Sequential(*layers), torch.randn(1, 8, 8)))
    assert sizes(graph) == [1, 3, 2]
    assert not unconnected(graph)


def shared_by_heads(m, x):
    heads = m.first(x).unflatten(-1, (2, 4)).transpose(1, 2)
    return m.last(torch.matmul(heads.tanh(), m.weight).transpose(1, 2).flatten(2))


def test_a_weight_that_is_broadcast_over_heads_is_used_by_each():
    """One weight, (1, 4, 5), for each of two heads."""
    weight = nn.Parameter(torch.randn(1, 4, 5))
    model = FromFunction(shared_by_heads, first=(3, 8), last=(10, 2), weight=weight)
    assert used(check(double(model, torch.randn(2, 6, 3))), "weight") == 2 * 20


def padded_two_ways(m, x):
    return m.last(torch.stack([F.pad(m.a(x), (0, 1)), F.pad(m.b(x), (1, 0))], 1))


def test_neurons_are_not_unified_with_padding():
    model = FromFunction(padded_two_ways, a=(3, 3), b=(3, 3), last=(4, 5))
    graph = check(double(model, torch.randn(2, 3)))
    assert all(group.name != "none" for group in graph.groups)
    # each of the rows has three neurons and a constant
    assert used(graph, "last.weight") == 2 * 20
    assert [group.size for group in graph.groups if group.kind == "constant"] == [1, 1]


def test_overlapping_windows_are_unplaced():
    """Rows of a matrix that share elements."""
    windows = FromFunction(
        lambda m, x: F.linear(m.first(x).tanh(), m.weight.unfold(0, 3, 1)),
        first=(2, 3),
        weight=nn.Parameter(torch.randn(6)),
    )
    model, example = double(windows, torch.randn(4, 2))
    graph = build_graph(model, example)
    assert graph.unplaced == ("weight",)
    assert_inverse(graph, randomised(model))


def test_a_layer_without_neurons_has_no_edges():
    model = FromFunction(
        lambda m, x: m.last(torch.cat([x, x @ m.none], 1)),
        none=nn.Parameter(torch.ones(3, 0)),
        last=(3, 2),
    )
    network = double(model, torch.randn(4, 3))
    graph = build_graph(*network)
    assert_inverse(graph, randomised(network[0]))
    assert used(graph, "last.weight") == 6


def test_complex_inputs_are_neurons():
    model = nn.Linear(3, 2, dtype=torch.complex128)
    graph = build_graph(model, torch.randn(4, 3, dtype=torch.complex128))
    kinds_and_roles = [(group.kind, group.role) for group in graph.groups]
    assert kinds_and_roles == [("neuron", "input"), ("neuron", "output")]


def picked_cells(m, x):
    """Two cells, one behind the other, whose weights are rows of one parameter in an
    order that no strides give."""
    order, states = [0, 1, 3, 2, 4, 5, 6, 7, 8], []
    state = x.new_zeros(len(x), 3)
    for start in (0, 9):
        rows = [start + row for row in order]
        state = torch.gru_cell(x, state, m.w_in[rows], m.w[rows])
        states.append(state)
    return m.last(torch.cat(states, -1))


def test_cells_with_picked_weights_are_not_the_same():
    w_in, w = (nn.Parameter(torch.randn(18, n)) for n in (4, 3))
    model = FromFunction(picked_cells, w_in=w_in, w=w, last=(6, 2))
    graph = build_graph(*double(model, torch.randn(2, 4)))
    ends = [(block.source, block.target) for block in graph.blocks]
    cells = {source for source, target in ends if graph.groups[target].size == 2}
    assert [graph.groups[cell].size for cell in sorted(cells)] == [3, 3]


def heads_of_one_neuron(qkv):
    q, k, v = qkv.unflatten(-1, (3, 3, 1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_a_head_of_one_neuron_weighs_one_value_and_not_one_for_each_token():
    """Whatever the number of tokens: 4 inputs, 9 of q, k and v, and 3 products, heads,
    values."""
    for tokens in (2, 5):
        model = Between(heads_of_one_neuron, (4, 9), (3, 2))
        graph = check(double(model, torch.randn(2, tokens, 4)))
        assert sizes(graph) == [4, 9, 3, 3, 3, 2]


def test_an_index_of_length_one_is_broadcast_in_an_einsum():
    model = FromFunction(
        lambda m, x: m.last(torch.einsum("bi,bi->bi", m.a(x), m.b(x)[:1])),
        a=(4, 5), b=(4, 5), last=(5, 3),
    )  # fmt: skip
    assert not unconnected(check(double(model, torch.randn(2, 4))))


@pytest.mark.filterwarnings("ignore:.*with a batch axis first:UserWarning")
def test_a_constant_matrix_may_mix_the_neurons_of_a_vector():
    model = FromFunction(
        lambda m, x: m.last(m.matrix @ m.first(x)),
        first=(4, 5), last=(6, 3), matrix=torch.randn(6, 5),
    )  # fmt: skip
    check(double(model, torch.randn(4)))


def one_head_turned(m, x):
    """The second head has its neurons in another order at each token."""
    plain, other = m.first(x).tanh().chunk(2, -1)
    turned = torch.cat([other[:, :1], other[:, 1:].flip(-1)], 1)
    heads = torch.stack([plain, turned], 1)
    return m.last((heads @ m.weight).transpose(1, 2).flatten(2))


def test_a_weight_that_one_head_cannot_place_has_no_edges_of_the_others():
    weight = nn.Parameter(torch.randn(2, 4, 5))
    model = FromFunction(one_head_turned, first=(3, 8), last=(10, 2), weight=weight)
    network = double(model, torch.randn(2, 2, 3))
    graph = build_graph(*network)
    assert graph.unplaced == ("weight",)
    assert used(graph, "weight") == 40
    check_symmetries(network, graph)


def test_a_matrix_with_the_name_bias_is_one_layer():
    parameters = [("first.weight", torch.ones(5, 4)), ("prompt.bias", torch.ones(3, 5))]
    assert used(build_graph(parameters), "prompt.bias") == 15
