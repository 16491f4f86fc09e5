"""Permutations of neurons on neural graphs, and the check that a metanet respects them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ngopt.functional import Hyper, State, init, update
from ngopt.graph import EdgeBlock, GraphValues, NeuralGraph


class NoSymmetry(Exception):
    """Two neurons cannot be swapped, whatever is swapped with them."""


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
    """Per-parameter values with the neurons of some groups in another order.

    Raises KeyError if the permutation does not map edges to edges, NoSymmetry if it does not treat
    all uses of a parameter alike: then it is no symmetry of the topology.
    """
    biases, edges = graph.gather(values)

    def order(group: int) -> list[int]:
        return permutations[group].tolist() if group in permutations else list(range(graph.groups[group].size))

    moved_biases = []
    for bias, value in zip(graph.biases, biases, strict=True):
        neurons = bias.index or range(graph.groups[bias.group].size)
        place = {n: k for k, n in enumerate(neurons)}
        moved_biases.append(value[[place[order(bias.group)[n]] for n in neurons]])
    for block in graph.constants:
        _moved(block, graph, order)
    moved = [
        value.flatten(0, 2)[_moved(block, graph, order)].unflatten(0, block.shape)
        for block, value in zip(graph.weights, edges, strict=True)
    ]
    permuted = graph.scatter(GraphValues(tuple(moved_biases), tuple(moved)))
    again = graph.gather(permuted)
    if not all(torch.equal(a, b) for a, b in zip((*moved_biases, *moved), (*again.biases, *again.edges), strict=True)):
        raise NoSymmetry("two uses of one parameter would differ")
    return permuted


def _moved(block: EdgeBlock, graph: NeuralGraph, order) -> list[int]:
    """For every edge of a block, flat, the edge that comes to its place."""
    g, t, s = block.shape
    targets = block.target_index or range(graph.groups[block.target].size)
    sources = block.source_index or range(graph.groups[block.source].size)
    ends = [(targets[i * t + j], sources[i * s + k]) for i in range(g) for j in range(t) for k in range(s)]
    place = {end: k for k, end in enumerate(ends)}
    target_order, source_order = order(block.target), order(block.source)
    return [place[target_order[a], source_order[b]] for a, b in ends]


def swap(graph: NeuralGraph, group: int, a: int, b: int, fixed: set[int]) -> dict[int, Tensor]:
    """The permutation that swaps two neurons of a group, and with them all that their edges tie to them.

    Neurons at the ends of one-to-one edges are tied; where edges connect cell to cell, as within
    heads and groups, neurons of different cells take their whole cells along. Neurons of the groups
    in `fixed` must stay. Raises NoSymmetry if that leads to a contradiction.
    """
    image: dict[tuple[int, int], tuple[int, int]] = {}
    todo = [((group, a), (group, b))]
    while todo:
        x, y = todo.pop()
        for p, q in ((x, y), (y, x)):
            if image.setdefault(p, q) != q:
                raise NoSymmetry
        if x != y and (x[0] in fixed or x[0] != y[0]):
            raise NoSymmetry
        for block in graph.blocks:
            todo += [pair for pair in _tied(graph, block, x, y) if image.get(pair[0]) != pair[1]]
    permutations = {g: torch.arange(graph.groups[g].size) for g in {g for g, _ in image}}
    for (g, n), (_, m) in image.items():
        permutations[g][n] = m
    return permutations


def _tied(graph: NeuralGraph, block: EdgeBlock, x: tuple[int, int], y: tuple[int, int]):
    """Pairs that a block makes images of each other when x and y are; none in a dense block."""
    g, t, s = block.shape
    ends = (
        (block.source, block.source_index or range(graph.groups[block.source].size), s),
        (block.target, block.target_index or range(graph.groups[block.target].size), t),
    )
    for group, neurons, size in ends:
        if x[0] != group:
            continue
        inside = [list(neurons).index(n) if n in neurons else None for n in (x[1], y[1])]
        if inside == [None, None]:
            continue
        if None in inside:
            raise NoSymmetry
        cells = [place // size for place in inside]
        if cells[0] == cells[1] and g * t * s != g:
            continue
        for other, nodes, width in ends:  # the cells at both ends change places, each in its order
            for k in range(width):
                yield (other, nodes[cells[0] * width + k]), (other, nodes[cells[1] * width + k])


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
