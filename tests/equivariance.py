"""Permutations of neurons on neural graphs, and the check that a metanet respects them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ngopt.functional import Hyper, State, init, update
from ngopt.graph import GraphValues, NeuralGraph


def random_permutations(graph: NeuralGraph, generator: torch.Generator, roles=("hidden",)) -> dict[int, Tensor]:
    """A permutation of the neurons of every group that has one of the roles, none of them the identity."""
    permutations = {}
    for i, group in enumerate(graph.groups):
        if group.role in roles and group.size > 1:
            order = torch.arange(group.size)
            while torch.equal(order, torch.arange(group.size)):
                order = torch.randperm(group.size, generator=generator)
            permutations[i] = order
    return permutations


def permute(graph: NeuralGraph, values: list[Tensor], permutations: dict[int, Tensor]) -> list[Tensor]:
    """Per-parameter values with the neurons of some groups in another order."""
    biases, edges = graph.gather(values)
    biases = [
        b[permutations[place.group]] if place.group in permutations else b
        for place, b in zip(graph.biases, biases, strict=True)
    ]
    permuted = []
    for block, e in zip(graph.blocks, edges, strict=True):
        e = e[permutations[block.target]] if block.target in permutations else e
        permuted.append(e[:, permutations[block.source]] if block.source in permutations else e)
    return graph.scatter(GraphValues(tuple(biases), tuple(permuted)))


def random_values(graph: NeuralGraph, generator: torch.Generator) -> list[Tensor]:
    """Float64 values for every parameter, some of them below the cut-off of the preprocessing."""
    return [
        torch.randn(s.shape, generator=generator, dtype=torch.float64)
        * 10.0 ** torch.empty(s.shape, dtype=torch.float64).uniform_(-6, 0, generator=generator)
        for s in graph.parameters
    ]


def updates(metanet: nn.Module, graph: NeuralGraph, params: list[Tensor], grads: list[list[Tensor]]) -> list[Tensor]:
    """Deltas of the last of several steps with given gradients; parameters stand still."""
    state: State = init(params, graph, metanet)
    hyper = Hyper([1.0] * len(params), [0.1] * len(params))
    for gradients in grads:
        deltas, state = update(gradients, state, params, graph, metanet, hyper)
    return deltas


@torch.no_grad()
def assert_equivariant(metanet: nn.Module, graph: NeuralGraph, tolerance: float = 1e-10, seed: int = 0) -> None:
    """Permuting hidden neurons permutes the updates in the same way (float64)."""
    generator = torch.Generator().manual_seed(seed)
    params, grads = random_values(graph, generator), [random_values(graph, generator) for _ in range(3)]
    permutations = random_permutations(graph, generator)
    assert permutations, "the graph has hidden neurons to permute"
    expected = permute(graph, updates(metanet, graph, params, grads), permutations)
    found = updates(
        metanet, graph, permute(graph, params, permutations), [permute(graph, g, permutations) for g in grads]
    )
    unpermuted = updates(metanet, graph, params, grads)
    assert any((e - u).abs().max() > 1e-6 for e, u in zip(expected, unpermuted, strict=True))
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=tolerance)
