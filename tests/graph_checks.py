"""What every traced network must have: a whole graph, whose symmetries are the
network's."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ngopt import build_graph
from ngopt.graph import Bias, EdgeBlock, NeuralGraph
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
    assert_inverse(graph, randomised(model))
    check_symmetries(network, graph, tolerance)
    return graph


def check_symmetries(
    network: Network, graph: NeuralGraph, tolerance: float = 1e-11
) -> None:
    generators = automorphisms(graph)
    assert_function_respects(*network, graph, subproducts(generators, 4), tolerance)
    assert_metanet_respects(graph, generators, products=1)


def assert_inverse(graph: NeuralGraph, values: Sequence[Tensor]) -> None:
    """`scatter` is the inverse of `gather`, bit for bit and in the same dtype."""
    assert_equal(values, graph.scatter(graph.gather(values)))


def assert_equal(values: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for a, b in zip(values, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def random_values(graph: NeuralGraph) -> list[Tensor]:
    """Values for all parameters, (*shape)."""
    return [torch.randn(spec.shape) for spec in graph.parameters]


def edges_with(graph: NeuralGraph, name: str) -> list[EdgeBlock]:
    """The edges whose elements are of a parameter."""
    return [b for b in graph.weights if graph.parameters[b.view.parameter].name == name]


def biases_with(graph: NeuralGraph, name: str) -> list[Bias]:
    """The features of nodes that are elements of a parameter."""
    return [b for b in graph.biases if graph.parameters[b.view.parameter].name == name]
