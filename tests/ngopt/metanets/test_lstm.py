"""The LSTM through the layers of a network."""

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.metanets import LayerLSTM
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.graph_data.feature_sources import FlatFeatures
from ngopt.metanets.lstm import LSTMCell
from tests.networks import mlp


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@torch.no_grad()
def test_a_step_is_that_of_torch():
    cell, theirs = LSTMCell(3, 4), nn.LSTMCell(3, 4)
    theirs.weight_ih.copy_(cell.gates.weight[:, :3])
    theirs.weight_hh.copy_(cell.gates.weight[:, 3:])
    theirs.bias_ih.copy_(cell.gates.bias)
    theirs.bias_hh.zero_()
    inputs, state = torch.randn(5, 3), (torch.randn(5, 4), torch.randn(5, 4))
    for before in (None, state):
        torch.testing.assert_close(cell(inputs, before), theirs(inputs, before))


@torch.no_grad()
def test_outputs_depend_on_this_layer_and_those_before_it():
    graph = build_graph(mlp(3, 4, 2, 3))
    metanet = LayerLSTM().double()
    features = torch.randn(graph.numel, NUM_FEATURES).double()
    changed = features.clone()
    changed[12 + 4 + 2] += 1.0  # of the second layer's weight
    before, after = (context_of(metanet, graph, x) for x in (features, changed))
    pairs = zip(before, after, strict=True)
    moved = [(a - b).abs().max().item() > 1e-9 for a, b in pairs]
    assert moved == [False, False, True, True, True, True]
    for weight, bias in zip(before[::2], before[1::2], strict=True):
        # equal for all elements of a layer
        assert torch.equal(weight, weight[:1].expand_as(weight))
        assert torch.equal(bias, weight[: len(bias)])


def context_of(metanet, graph, features):
    parts = metanet.graph_tensors(graph, features)
    return metanet.context(FlatFeatures.finite(features, graph), parts)
