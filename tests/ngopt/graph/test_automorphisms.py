"""All symmetries of graphs: each is one of the network and of metanets,
and there are as many as counted by hand."""

from itertools import product
from math import factorial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ngopt import build_graph
from ngopt.graph import parameter_graph
from tests.automorphisms import automorphisms, count_automorphisms
from tests.equivariance import (
    assert_function_respects,
    assert_metanet_respects,
    permute,
    randomised,
)
from tests.graph_checks import assert_equal
from tests.networks import FromFunction, mlp
from tests.selection import quick_first
from tests.zoo import (
    GPT,
    ZOO,
    Attention,
    algebra,
    attention,
    convolutional,
    dense,
    distinguishable,
    recurrent,
    zoo_graph,
    zoo_network,
)

QUICK_FOR_METANETS = [
    *((name, "graph") for name in list(ZOO)[::2]),
    *((name, "parameter graph") for name in list(ZOO)[1::4]),
]


def view_of(graph, view):
    return parameter_graph(graph) if view == "parameter graph" else graph


@pytest.mark.parametrize("view", ["graph", "graph by type", "parameter graph"])
@pytest.mark.parametrize("name", ZOO)
def test_automorphisms_are_symmetries_of_the_function(name, view):
    model, example = zoo_network(name)
    graph = view_of(zoo_graph(name), view)
    generators = automorphisms(graph, by_type=view != "graph")
    assert generators, "the network has hidden neurons"
    assert_function_respects(model, example, graph, generators)


@pytest.mark.parametrize(
    ("name", "view"),
    quick_first(product(ZOO, ("graph", "parameter graph")), QUICK_FOR_METANETS),
)
def test_metanets_respect_automorphisms(name, view):
    graph = view_of(zoo_graph(name), view)
    assert_metanet_respects(graph, automorphisms(graph, by_type=True))


@pytest.mark.parametrize(
    "name", ["gpt", "head norms", "residual", "lstm", "shared", "overlapping"]
)
def test_elements_go_with_their_neurons(name):
    model, _ = zoo_network(name)
    graph = zoo_graph(name)
    params = randomised(model)
    for symmetry in automorphisms(graph)[:10]:
        permuted = permute(graph, params, symmetry.permutations(graph))
        assert_equal(permuted, symmetry.move(graph, params))


@pytest.mark.parametrize(
    ("name", "kind"), [("attention", "head"), ("gpt", "head"), ("group norm", "group")]
)
def test_heads_and_groups_are_exchanged_as_wholes(name, kind):
    graph = zoo_graph(name)
    numbers = {i for i, group in enumerate(graph.groups) if group.kind == kind}
    exchanged = [symmetry.permutations(graph) for symmetry in automorphisms(graph)]
    assert any(numbers & permutations.keys() for permutations in exchanged)


# Numbers of symmetries


class Chain(nn.Module):
    """Residual blocks of two linear layers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.stem = nn.Linear(2, width)
        self.out = nn.Linear(width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.out(x)


def few_keys(m, x):
    """Four heads of queries share two of keys and values,
    each of two neurons (Ainslie et al. 2023)."""
    q, k, v = (
        layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (m.q, m.k, m.v)
    )
    k, v = (y.repeat_interleave(2, 1) for y in (k, v))
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def cosine(m, x):
    """Cosines of the neurons of a layer with rows of a weight."""
    x = F.linear(F.normalize(m.first(x), dim=-1), F.normalize(m.rows, dim=-1))
    return m.last(torch.relu(x))


def gate(m, x):
    """SwiGLU."""
    return m.down(F.silu(m.gate(x)) * m.up(x))


BATCH = torch.randn(3, 2)
SEQUENCE = torch.randn(2, 3, 3)
TOKENS = torch.randint(3, (2, 3))
IMAGES = torch.randn(2, 1, 8, 8)
MAPS = torch.randn(2, 2, 6, 6)
BATCH_NORM = nn.Sequential(
    nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)
)
GROUP_NORM = nn.Sequential(
    nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 1, 1)
)
GROUPED = nn.Sequential(
    nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 1, 1)
)
SEPARABLE = nn.Sequential(
    nn.Conv2d(2, 3, 1),
    nn.Conv2d(3, 3, 3, groups=3),
    nn.Conv2d(3, 4, 1),
    nn.ReLU(),
    nn.Conv2d(4, 1, 1),
)
FLATTENED = nn.Sequential(
    nn.Conv2d(2, 3, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(48, 4),
    nn.Tanh(),
    nn.Linear(4, 1),
)
HEADS = nn.Sequential(nn.Linear(3, 4), Attention(4, 2, fused=False))
FEW_KEYS = FromFunction(few_keys, q=(2, 8), k=(2, 4), v=(2, 4), out=(8, 1))
SHARED_KEYS = nn.Sequential(nn.Linear(3, 2), FEW_KEYS)
COSINE = FromFunction(
    cosine, first=(2, 4), rows=nn.Parameter(torch.randn(3, 4)), last=(3, 1)
)
PAIR = (torch.randint(5, (2, 4)), torch.randint(5, (2, 3)))

# Network, example, number of symmetries within groups, counted by hand.
COUNTS = {
    # the neurons of each hidden layer
    "mlp": (mlp(2, 3, 4, 1), BATCH, 6 * 24),
    # channels, with their norm
    "batch norm": (BATCH_NORM, IMAGES, 6),
    # channels in each of the two groups, and the groups
    "group norm": (GROUP_NORM, IMAGES, 2 * 2 * 2),
    # two of the first and three of the second layer in each group, and the groups
    "grouped": (GROUPED, IMAGES, (2 * 6) ** 2 * 2),
    # the first two layers are tied one to one, the last
    "separable": (SEPARABLE, MAPS, 6 * 24),
    # channels, each with its part of the map, and the neurons behind it
    "flattened": (FLATTENED, MAPS, 6 * 24),
    # stem, the two narrow layers tied by two groups of three, squeezed neurons
    "resnext": (convolutional.Aggregated(), MAPS, 24 * (6 * 6) ** 2 * 2 * 2),
    # both sides of the skip, which are only joined, the bottom, the joint
    "unet": (convolutional.UNet(), IMAGES, 6 * 6 * 24 * 24),
    # what comes from each layer
    "densenet": (convolutional.DenseBlock(), MAPS, 6 * 2 * 2),
    # channels, with their scale and shift
    "film": (convolutional.Modulated(nn.Identity()), (MAPS, torch.randn(2, 3)), 24),
    # the stream, and what is hidden in each block
    "chain": (Chain(3, 2), BATCH, 6 * 2 * 2),
    # one block three times: the stream, what is hidden
    "repeated": (dense.Repeated(), torch.randn(2, 3), 24 * 120),
    # stem; queries with keys, and values, in each head; the heads
    "heads": (HEADS, SEQUENCE, 24 * (2 * 2) ** 2 * 2),
    # stem; for each head of keys: queries and keys, values, its two heads of queries;
    # the heads of keys
    "few keys": (SHARED_KEYS, SEQUENCE, 2 * (2 * 2 * 2) ** 2 * 2),
    # the stream, tied from the embedding to the output; heads as above; the hidden
    # layer
    "gpt": (GPT(3, 4, 2, 3, 1), TOKENS, 24 * (2 * 2) ** 2 * 2 * factorial(16)),
    # the stream; heads with their columns of the table; merged patches
    "windows": (attention.Windows(), IMAGES, 24 * (2 * 2) ** 2 * 2 * 720),
    # one stream by the embedding; three attentions of two heads of three; two hidden
    # layers
    "translation": (
        attention.Translation(), PAIR, 720 * ((6 * 6) ** 2 * 2) ** 3 * 120**2,
    ),
    # the stream of the latents, that of the inputs; two attentions of two heads of
    # three; what is hidden
    "perceiver": (
        attention.Perceiver(), SEQUENCE, 720 * 720 * ((6 * 6) ** 2 * 2) ** 2 * 120,
    ),
    # cells, whose gates are slots
    "gru": (recurrent.Recurrent(nn.GRU), SEQUENCE, 24),
    "lstm": (recurrent.Recurrent(nn.LSTM), SEQUENCE, 24),
    # in two layers and both directions, whatever they begin with
    "states": (recurrent.States(), torch.randn(2, 5, 3), 24**4),
    # cells that read, cells that write
    "cells": (recurrent.Cells(), torch.randn(2, 3, 3), 24 * 120),
    # in two layers and both directions
    "deep lstm": (
        recurrent.Recurrent(nn.LSTM, num_layers=2, bidirectional=True), SEQUENCE, 24**4,
    ),
    # cells, and what they are projected to
    "projected lstm": (recurrent.Recurrent(nn.LSTM, proj_size=2), SEQUENCE, 24 * 2),
    # queries with keys, and values, in each head; the table fixes the stream, slopes
    # the heads
    "sinusoidal": (distinguishable.Sinusoidal(), torch.randn(2, 5, 3), (2 * 2) ** 2),
    # values in each head, the heads; queries and keys turn in different pairs
    "rotary": (distinguishable.Rotary(), SEQUENCE, 24**2 * 2),
    # the two neurons behind one activation, the four behind the other;
    # a mask tells all others apart
    "parts": (distinguishable.Parts(), torch.randn(2, 3), 2 * 24),
    # rows, maps, the computed weight
    "normalised": (distinguishable.Normalised(), SEQUENCE, 120 * 24 * 24),
    # channels; what is hidden between channels, and between places
    "mixer": (distinguishable.Mixer(), torch.randn(2, 5, 3), 24 * 720 * 720),
    # the state, and a layer that leads nowhere
    "equilibrium": (distinguishable.Equilibrium(), BATCH, 120 * 6),
    # what is compared with the rows, in any order; what is hidden behind
    "cosine": (COSINE, BATCH, 24 * 6),
    # the code
    "tied autoencoder": (dense.TiedAutoencoder(), torch.randn(2, 5), 24),
    # what both factors make
    "gate": (FromFunction(gate, gate=(2, 4), up=(2, 4), down=(4, 1)), BATCH, 24),
    # stem, the wide layer, the rank
    "lora": (dense.LowRank(), torch.randn(2, 3), 120 * 24 * 2),
    # the layer in between
    "kan": (
        nn.Sequential(dense.Splines(3, 4), dense.Splines(4, 2)), torch.randn(2, 3), 24,
    ),
    # four networks of three hidden neurons
    "realnvp": (dense.Coupling(), torch.randn(2, 4), 6**4),
    # stem, what is hidden in each expert, what the experts give
    "experts": (dense.Experts(), BATCH, 6 * 24**3 * 6),
    # columns before, in and behind the narrow weight's last; rows of the corner and
    # others
    "overlapping": (dense.Overlapping(), torch.randn(2, 3), 6 * 2 * 6 * 2),
    # stem, forwards and backwards; what reads both ways; what reads the two in turn
    "mirrored": (algebra.Mirrored(), torch.randn(2, 3), 24 * 24 * 6),
    # stem, in both halves alike; the linear layer, the convolution, what is hidden
    "shared": (dense.Shared(), SEQUENCE, 6 * 24 * 2 * 6),
}  # fmt: skip
# The same with symmetries across groups.
COUNTS_BY_TYPE = {
    # and the experts, with their gates
    "experts": 6 * 24**3 * 6 * 6,
    # and the two halves
    "shared": 6 * 24 * 2 * 6 * 2,
    "gpt": COUNTS["gpt"][2],
    "chain": 6 * 2 * 2,
}


def counted(name):
    model, example, _ = COUNTS[name]
    return build_graph(model, example)


@pytest.mark.parametrize("name", COUNTS)
def test_no_symmetry_is_missing(name):
    assert count_automorphisms(counted(name)) == COUNTS[name][2]


@pytest.mark.parametrize("name", COUNTS_BY_TYPE)
def test_no_symmetry_across_groups_is_missing(name):
    assert count_automorphisms(counted(name), by_type=True) == COUNTS_BY_TYPE[name]
