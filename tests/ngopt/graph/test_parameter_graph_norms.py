"""Norms in the parameter graph: where they act on existing neurons, and what stays
symmetric."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ngopt import build_graph
from ngopt.graph.views.parameter_graph import layers, parameter_graph
from tests.automorphisms import automorphisms, count_automorphisms
from tests.equivariance import assert_function_respects, permute, randomised
from tests.networks import FromFunction, mlp
from tests.ngopt.parameter_graphs import edges_of, kinds_of
from tests.zoo import Attention, HeadNorms


class Norms(nn.Module):
    """tanh(stem), some layers "a", "b", "c" with norms in between, then relu and out;
    all of two neurons."""

    def __init__(self, names: str, function: Callable[..., Tensor]):
        super().__init__()
        made = {
            "norm": nn.BatchNorm1d(2),
            "group": nn.GroupNorm(1, 2),
            "shift": nn.Parameter(torch.randn(2)),
        }
        for name in ["stem", *names.split()]:
            part = made.get(name.partition("_")[0], nn.Linear(2, 2))
            setattr(self, name, deepcopy(part))
        self.out, self.function = nn.Linear(2, 1), function

    def forward(self, x):
        return self.out(F.relu(self.function(self, torch.tanh(self.stem(x)))))


def two_sums(m, a, b, x):
    return m.norm_a(m.c(x) + a) + b


# Layers and what they do; number of automorphisms, counted by hand; neurons between
# input and output, edges from gamma nodes, from neurons, and of residual connections.
NORMS = {
    # two that are summed: the sum has nodes of its own. Neurons of stem, of the sum,
    # the branches, betas of the sum
    "summed": (
        "a b norm_a norm_b", lambda m, x: m.norm_a(m.a(x)) + m.norm_b(m.b(x)),
        2 * 2 * 2 * 2, (8, 4, 0, 4),
    ),
    # of the same neurons: each has nodes of its own. Neurons of stem, of the sum,
    # the branches, biases of the sum
    "parallel": (
        "a b norm_a norm_b", lambda m, x: m.a(m.norm_a(x)) + m.b(m.norm_b(x)),
        2 * 2 * 2 * 2, (8, 4, 0, 4),
    ),
    # one after the other: the second has nodes of its own. Neurons of stem, a, b
    "chain": (
        "a b norm_a norm_b", lambda m, x: m.b(m.norm_b(m.norm_a(m.a(x)))), 2 * 2 * 2,
        (8, 4, 0, 2),
    ),
    # pre-norm, and a norm behind the sum: none has. Neurons of stem and of b, tied, and
    # a
    "skip": (
        "a b norm_a norm_b", lambda m, x: m.norm_b(x + m.b(F.relu(m.a(m.norm_a(x))))),
        2 * 2, (6, 4, 0, 2),
    ),
    # its input added to its output, which are the same nodes. Neurons of stem
    "own skip": ("norm_a", lambda m, x: x + m.norm_a(x), 2, (2, 2, 0, 0)),
    # added to another layer. Neurons of stem, of the sum
    "and a layer": (
        "a b norm_a", lambda m, x: m.norm_a(m.a(x)) + m.b(x), 2 * 2, (6, 2, 0, 2),
    ),
    # added to a layer of the same neurons: the scale is on edges. Neurons of stem, tied
    # to the sum
    "past a layer": ("a norm_a", lambda m, x: m.norm_a(x) + m.a(x), 2, (4, 0, 2, 0)),
    # the same with a function in between, and another norm
    "past a function": (
        "a norm_a norm_b", lambda m, x: m.norm_b(torch.tanh(m.a(x)) + m.norm_a(x)), 2,
        (8, 2, 2, 4),
    ),
    # over groups, summed. As "summed"
    "group norms": (
        "a b group_a group_b", lambda m, x: m.group_a(m.a(x)) + m.group_b(m.b(x)), 16,
        (8, 4, 0, 4),
    ),
    # a layer that is used with and without it. Neurons of stem, of the sum, biases of
    # the sum
    "raw as well": (
        "a b norm_a", lambda m, x: m.a(m.norm_a(x)) + m.b(x), 2 * 2 * 2, (6, 2, 0, 2),
    ),
    # residual connections before and behind it. Neurons of stem,
    # of the sum with all that is tied to it
    "two sums": (
        "a b c norm_a",
        lambda m, x: two_sums(m, torch.tanh(m.a(x)), torch.tanh(m.b(x)), x), 4,
        (10, 2, 0, 6),
    ),
    # a shift before and another behind it. Neurons of stem, a
    "shifts": (
        "a norm_a shift_a shift_b",
        lambda m, x: m.norm_a(m.a(x) + m.shift_a) + m.shift_b, 4, (6, 2, 0, 2),
    ),
    # a shift behind it, which differs from the bias before it. Neurons of stem, a
    "a shift": (
        "a norm_a shift_a", lambda m, x: m.norm_a(m.a(x)) + m.shift_a, 2 * 2,
        (4, 2, 0, 0),
    ),
}  # fmt: skip


def rolled(m, x):
    """A norm that has the neurons in another order than the layer before."""
    x = torch.tanh(m.stem(x))
    return m.out(F.relu(x + m.norm(m.layer(x).roll(1, -1))))


def last_state(rnn: nn.RNNBase) -> nn.Module:
    """Of a recurrent layer of two neurons, and a linear layer."""
    return FromFunction(lambda m, x: m.out(m.rnn(x)[0][:, -1]), rnn=rnn, out=(2, 1))


def two_layers(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """The sum of two layers, the second of a function of the input."""
    layers = {name: nn.Linear(2, 2, bias=False) for name in "ab"}
    return FromFunction(lambda m, x: m.a(x) + m.b(function(x)), **layers)


GROUP_NORM = nn.Sequential(
    nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 1, (2, 1))
)
CONVOLUTION = nn.Sequential(
    nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.PReLU(2), nn.Conv2d(2, 1, 1)
)
ATTENTION = Attention(4, 2, fused=False)
ROLLED = FromFunction(
    rolled, stem=(2, 3), layer=(3, 3), norm=nn.LayerNorm(3), out=(3, 1)
)
BATCH = torch.randn(5, 2)
MAPS = torch.randn(3, 1, 3, 2)
SEQUENCE = torch.randn(2, 3, 4)

# Number of automorphisms, counted by hand.
SYMMETRIC = {
    "mlp": (mlp(2, 3, 1), BATCH, 6),
    # the hidden neurons
    "convolution": (CONVOLUTION, MAPS, 2),
    **{name: (Norms(*parts[:2]), BATCH, parts[2]) for name, parts in NORMS.items()},
    # stem, tied to all that follows
    "rolled": (ROLLED, BATCH, 6),
    # in each group, and the two groups
    "group norm": (GROUP_NORM, MAPS, 2 * 2 * 2),
    # q with k, and v, in each head; the heads
    "attention": (ATTENTION, SEQUENCE, (2 * 2) ** 2 * 2),
    # q with k, in both heads alike, and v, in each head; the heads
    "head norms": (HeadNorms(4), SEQUENCE, 2 * (2 * 2) * 2),
    # the two biases, which are only summed; the states are outputs
    "recurrent": (nn.RNN(2, 2, batch_first=True), torch.randn(2, 3, 2), 2),
    # the states, but not the two biases
    "gated": (last_state(nn.GRU(2, 2, batch_first=True)), torch.randn(2, 3, 2), 2),
    # none: a weight of every element and one of their mean differ,
    # and so are those of x and sin x
    "two weights": (
        two_layers(lambda x: x.mean(1, keepdim=True)),
        SEQUENCE[..., :2],
        1,
    ),
    "two functions": (two_layers(torch.sin), SEQUENCE[..., :2], 1),
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_all_automorphisms_are_symmetries_of_the_function(name):
    model, example, count = SYMMETRIC[name]
    model = model.double()
    example = example.double()
    graph = parameter_graph(build_graph(model, example))
    assert_function_respects(model, example, graph, automorphisms(graph, by_type=True))
    assert count_automorphisms(graph, by_type=True) == count


@pytest.mark.parametrize("name", NORMS)
def test_norms_act_on_existing_neurons_where_both_sides_are_distinguishable(name):
    names, function, _, counts = NORMS[name]
    graph = parameter_graph(build_graph(Norms(names, function), BATCH))
    nodes, edges = kinds_of(graph)
    gammas = [0, 0]  # edges from nodes of gammas, and from neurons
    for block in graph.blocks:
        if block.kind == "gamma":
            is_from_neurons = graph.groups[block.source].kind != "gamma"
            gammas[is_from_neurons] += block.shape[0] * block.shape[1]
    assert (nodes["neuron"] - 3, *gammas, edges.get("residual", 0)) == counts
    assert edges["beta"] == 2 * (names.count("norm") + names.count("group"))


def test_inputs_and_outputs_are_not_merged():
    graph = parameter_graph(build_graph(nn.LayerNorm(3), torch.randn(2, 3)))
    assert [(g.size, g.kind, g.role) for g in graph.groups] == [
        (3, "neuron", "input"), (3, "neuron", "output"), (1, "gamma", "input"),
        (1, "beta", "input"),
    ]  # fmt: skip
    for model in (
        nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)),
    ):
        graph = parameter_graph(build_graph(model, torch.randn(2, 3)))
        roles = [g.role for g in graph.groups if g.kind == "neuron"]
        assert roles == ["input", "output"]


def test_groups_of_a_group_norm_stay():
    graph = parameter_graph(build_graph(GROUP_NORM.double(), MAPS.double()))
    nodes, edges = kinds_of(graph)
    assert nodes == {"neuron": 1 + 4 + 1, "group": 2, "gamma": 1, "bias": 2, "beta": 1}
    others = {"weight": 4 + 8, "bias": 4 + 1}
    assert edges == dict.fromkeys(["gamma", "beta", "pool", "spread"], 4) | others
    (pool,) = [b for b in graph.blocks if b.kind == "pool"]
    (spread,) = [b for b in graph.blocks if b.kind == "spread"]
    assert (pool.source, pool.target) == (spread.target, spread.source)
    assert layers(graph)[: 1 + 1 + 1] == [0, 1, 2]


def test_layer_norm_of_a_map_has_parallel_edges():
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.LayerNorm([2, 3]), nn.Conv1d(2, 1, 1))
    edges = edges_of(parameter_graph(build_graph(model, torch.randn(2, 1, 3))))
    gammas = [edge for edge in edges if edge[2] == "gamma"]
    assert sorted(edge[3:] for edge in gammas) == sorted(
        ((k,), 2, 3 * c + k) for c in range(2) for k in range(3)
    )
    assert {edge[:2] for edge in gammas} == {(4, 1), (4, 2)}


def dense(m, x):
    """As in a DenseNet: a norm over the outputs of two layers,
    of which the first has one of its own as well."""
    x = m.first(x)
    return m.last(m.joint(torch.cat([x, m.second(m.norm(x))], -1)))


def test_norm_over_two_layers_has_one_node():
    norms = {"norm": nn.BatchNorm1d(3), "joint": nn.BatchNorm1d(5)}
    model = FromFunction(dense, first=(2, 3), second=(3, 2), last=(5, 1), **norms)
    graph = parameter_graph(build_graph(model, BATCH))
    edges = edges_of(graph)
    names = [spec.name for spec in graph.parameters]
    scales = [e for e in edges if names[e[4]] == "joint.weight"]
    from_gamma = [e for e in edges if e[0] == scales[0][0]]
    assert [(e[2], e[5]) for e in from_gamma] == [("gamma", k) for k in range(5)]
    assert from_gamma == [e for e in scales if e[2] == "gamma"]
    betas = [e for e in edges if e[2] == "beta" and names[e[4]] == "joint.bias"]
    assert len({e[0] for e in betas}) == 1
    scaled = [e[1] for e in from_gamma]
    # the first three are nodes of the norm's own, as the first layer has another norm
    assert scaled == [e[1] for e in edges if e[0] == betas[0][0]]
    assert scaled[3:] == [e[1] for e in edges if e[2] == "bias" and e[1] in scaled]


DEPTHWISE_1D = nn.Sequential(nn.Conv1d(1, 3, 1), nn.Conv1d(3, 3, 2, groups=3))
DEPTHWISE_2D = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1, groups=3))


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (DEPTHWISE_1D, torch.randn(2, 1, 4)),
        (DEPTHWISE_2D, torch.randn(2, 1, 4, 4)),
        (mlp(1, 1, 1), torch.randn(2, 1)),
        (nn.GRU(1, 1), torch.randn(2, 1)),
    ],
    ids=["depthwise 1d", "depthwise 1x1", "single neurons", "single cell"],
)
def test_weights_from_one_to_one_are_no_norms(model, example):
    _, edges = kinds_of(parameter_graph(build_graph(model, example)))
    assert set(edges) <= {"weight", "bias", "recurrent"}


@pytest.mark.parametrize(
    ("model", "example", "group", "across"),
    [
        (GROUP_NORM, MAPS, "0", (1, 2)),
        (ATTENTION, SEQUENCE, "q", (1, 2)),
        (ATTENTION, SEQUENCE, "v", (1, 2)),
    ],
    ids=["group norm", "queries", "values"],
)
def test_neurons_of_different_groups_and_heads_are_not_exchangeable(
    model, example, group, across
):
    graph = parameter_graph(build_graph(model.double(), example.double()))
    (number,) = [i for i, g in enumerate(graph.groups) if g.name == group]
    params = randomised(model)
    order = torch.arange(graph.groups[number].size)
    order[list(across)] = order[list(across[::-1])]
    with pytest.raises(KeyError):
        permute(graph, params, {number: order})
