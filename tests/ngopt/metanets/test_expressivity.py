"""A graph network can compute the forward pass of its input network (Kofinas et al.
2024, App. B)."""

from math import sqrt

import torch
from torch import nn

from ngopt import build_graph
from ngopt.metanets.graph_data.feature_sources import WholeValues
from ngopt.metanets.graph_data.graph_tensors import graph_tensors
from ngopt.metanets.layers.graph_network import GraphNetwork
from ngopt.metanets.layers.pna import PNALayer

# Neurons of every layer, so that a mean of messages is their sum but for one factor.
SIZE = 4
ROUNDS = 3
# Features of a node: its value after each round, its bias, and three that make norms
# linear.
WIDTH = ROUNDS + 1 + 4
BIAS, NEGATIVE, HIGH, LOW = range(ROUNDS + 1, WIDTH)
# A norm divides by the deviation, which is that of this number and its negative however
# large the rest is.
LARGE = 1e4
# Where SiLU is the identity.
AWAY = 50.0


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(SIZE, SIZE) for _ in range(ROUNDS)]
    return nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2]).double()


@torch.no_grad()
def simulator():
    """Round k makes feature k + 1 of every node from feature k of those before it.

    A layer's nodes are right after as many rounds as it is deep; their values in other
    rounds are not read.
    """
    layers = [PNALayer(WIDTH, 1.0) for _ in range(ROUNDS)]
    found = GraphNetwork(1, None, WIDTH, layers, (1, 1)).double()
    for parameter in found.parameters():
        parameter.zero_()
    for encoder, feature in ((found.edge_encoder, 0), (found.node_encoder, BIAS)):
        encoder.film.scales.fill_(1)
        encoder.weight[feature, 0, 0] = 1
    for k, layer in enumerate(found.layers):
        # the message there is the weight times feature k of the source
        layer.film.weight[k, 0] = 1
        layer.source.weight[k, k] = 1
        # pre-activation: the sum of messages, whose means follow the node's own
        # features, and the bias
        for feature, sign in ((k + 1, 1.0), (NEGATIVE, -1.0)):
            layer.update.weight[feature, WIDTH + k] = sign * SIZE
            layer.update.weight[feature, BIAS] = sign
        layer.update.bias[HIGH], layer.update.bias[LOW] = LARGE, -LARGE
        layer.norm.weight[k + 1] = LARGE * sqrt(2 / WIDTH)
    found.layers[-1].norm.bias[ROUNDS] = AWAY  # the last layer has no activation
    return found


@torch.no_grad()
def test_a_graph_network_computes_the_forward_pass_of_its_input_network():
    model, found = network(), simulator()
    inputs = torch.randn(5, SIZE, dtype=torch.float64)
    graph = build_graph(model, inputs)
    count = len(inputs)
    params = [p.unsqueeze(-1).expand(count, *p.shape, 1) for p in model.parameters()]
    source = WholeValues(graph.gather(params, batch_dims=1), torch.Size([count]))
    first = torch.zeros(count, SIZE, WIDTH, dtype=torch.float64)
    first[..., 0] = inputs
    nodes = [first, *[None] * (len(graph.groups) - 1)]
    states, _ = found.states(source, graph_tensors(graph, (1, 1), first), nodes)
    hidden, outputs = states[1][..., 1], states[-1][..., ROUNDS] - AWAY
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(hidden, model[1](model[0](inputs)), **close)
    torch.testing.assert_close(outputs, model(inputs), **close)
