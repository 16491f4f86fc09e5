"""States and gradients of networks in a mixture equal those of each alone."""

from math import prod

import pytest
import torch

from ngopt import build_graph
from ngopt.graph import parameter_graph
from ngopt.metanets.graph_data.feature_sources import WholeValues
from ngopt.metanets.graph_data.graph_tensors import graph_tensors
from ngopt.metanets.layers.attention import RelationalLayer
from ngopt.metanets.layers.graph_network import GraphNetwork, GraphNetworkOptions
from ngopt.metanets.layers.pna import PNALayer
from tasks.models.mixture import MixedValues, layout_of, mixture_of
from tests.zoo import zoo_graph

WIDTH, KERNEL = 6, (3, 3)
NAMES = ("residual", "attention", "grouped", "lstm")


def pna(k):
    return PNALayer(WIDTH, 1.5, edges=k == 0)


def relational(complete_up_to):
    def layer(k):
        return RelationalLayer(WIDTH, 2, complete_up_to, edges=k == 0)

    return layer


def made(layer, **options):
    layers = [layer(k) for k in range(2)]
    options = GraphNetworkOptions(activations=True, **options)
    return GraphNetwork(2, None, WIDTH, layers, KERNEL, options).double()


CASES = {
    "ng-gnn": (lambda: made(pna), lambda graph: graph),
    "ng-t": (lambda: made(relational(0)), lambda graph: graph),
    # some of the networks have more neurons than that
    "ng-t, complete": (lambda: made(relational(40)), lambda graph: graph),
    "ng-t, all larger": (lambda: made(relational(1)), lambda graph: graph),
    "gmn": (
        lambda: made(pna, global_feature=True, slot_positions=True),
        parameter_graph,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_states_and_gradients_are_those_of_each_network_alone(case):
    make, graph_of = CASES[case]
    network = make()
    like = network.position.weight
    graphs = [graph_of(zoo_graph(name)) for name in NAMES]
    # without an edge
    graphs.append(graph_of(build_graph([("vector", torch.zeros(5))])))
    values = [
        torch.randn(count, graph.numel, 2, dtype=torch.float64)
        for count, graph in enumerate(graphs, start=1)
    ]
    alone = []
    for graph, copies in zip(graphs, values, strict=True):
        states = states_alone(network, graph, copies)
        alone.append(torch.cat(states, -2).flatten(0, 1))
    expected = torch.cat(alone)
    layouts = [layout_of(graph, like) for graph in graphs]
    mixture = mixture_of(list(zip(layouts, map(len, values), strict=True)), KERNEL)
    flat = torch.cat([copies.flatten(0, 1) for copies in values])
    source = MixedValues(flat, mixture, lambda x: x)
    (states,), _ = network.states(source, mixture.tensors)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(states)

    def grads(states):
        loss = (weights * states).sum()
        return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)

    for grad, wanted in zip(grads(states), grads(expected), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-9)


def states_alone(network, graph, values):
    """States of the nodes of copies of one network, group by group."""
    like = network.position.weight
    gathered = graph.gather(graph.unflatten(values, 1), batch_dims=1)
    source = WholeValues(gathered, values.shape[:1])
    states, _ = network.states(source, graph_tensors(graph, KERNEL, like))
    return states


def test_blocks_of_one_kind_are_one_block():
    graphs = [zoo_graph("residual"), zoo_graph("attention")]
    layouts = [layout_of(graph, torch.zeros(())) for graph in graphs]
    counts = (3, 2)
    parts = mixture_of(list(zip(layouts, counts, strict=True)), KERNEL).tensors
    blocks = [block for graph in graphs for block in graph.blocks]
    assert len(parts.blocks) < len(blocks)
    shapes = [own.block.shape for own in parts.blocks]
    assert {shape[1:] for shape in shapes} == {b.shape[1:] for b in blocks}
    expected = sum(
        count * sum(prod(block.shape) for block in graph.blocks)
        for graph, count in zip(graphs, counts, strict=True)
    )
    assert sum(map(prod, shapes)) == expected
