"""What every traced network must have: a whole graph, whose symmetries are the
network's."""

from typing import Any

import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph import NeuralGraph
from tests.automorphisms import automorphisms, subproducts
from tests.equivariance import (
    assert_function_respects,
    assert_metanet_respects,
    randomised,
)

Network = tuple[nn.Module, Any]


def check(network: Network, tolerance: float = 1e-11) -> NeuralGraph:
    """The graph, all of which was checked."""
    model, example = network
    graph = build_graph(model, example)
    assert graph.unplaced == ()
    params = randomised(model)
    assert all(
        torch.equal(a, b)
        for a, b in zip(params, graph.scatter(graph.gather(params)), strict=True)
    )
    check_symmetries(network, graph, tolerance)
    return graph


def check_symmetries(
    network: Network, graph: NeuralGraph, tolerance: float = 1e-11
) -> None:
    found = automorphisms(graph)
    assert_function_respects(*network, graph, subproducts(found, 4), tolerance)
    assert_metanet_respects(graph, found, products=1)
