"""Permutations of neurons on neural graphs,
and the checks that networks and metanets respect them."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ngopt.functional import Hyper, update_all
from ngopt.graph import EdgeBlock, GraphValues, NeuralGraph
from ngopt.metanets.nfn import chain_of
from ngopt.metanets.stepping.rule import MetanetRule
from tests.automorphisms import Automorphism, subproducts
from tests.metanets import SMALL, metanet_for, small_metanet


class NoSymmetry(Exception):
    """A permutation of neurons treats two uses of a parameter differently."""


def random_permutations(
    graph: NeuralGraph, generator: torch.Generator, roles=("hidden",)
) -> dict[int, Tensor]:
    """A permutation of the neurons of every group that has one of the roles,
    none of them the identity."""
    permutations = {}
    for i, group in enumerate(graph.groups):
        if group.role in roles and not group.is_pinned and group.size > 1:
            order = torch.arange(group.size)
            while torch.equal(order, torch.arange(group.size)):
                order = torch.randperm(group.size, generator=generator)
            permutations[i] = order
    return permutations


def permute(
    graph: NeuralGraph, values: list[Tensor], permutations: dict[int, Tensor]
) -> list[Tensor]:
    """Per-parameter values with the neurons of some groups in another order.

    Raises KeyError if the permutation does not map edges to edges, NoSymmetry if it
    does not treat all uses of a parameter alike: then it is no symmetry of the
    topology.
    """
    biases, edges = graph.gather(values)

    def order(group: int) -> list[int]:
        if group in permutations:
            return permutations[group].tolist()
        return list(range(graph.groups[group].size))

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
    expected = (*moved_biases, *moved)
    if not all(map(torch.equal, (*again.biases, *again.edges), expected)):
        raise NoSymmetry("two uses of one parameter would differ")
    return permuted


def _moved(block: EdgeBlock, graph: NeuralGraph, order) -> list[int]:
    """For every edge of a block, flat, the edge that comes to its place."""
    targets = block.target_index or range(graph.groups[block.target].size)
    sources = block.source_index or range(graph.groups[block.source].size)
    _, n_target, n_source = block.shape
    edges = product(*map(range, block.shape))
    ends = [(targets[g * n_target + i], sources[g * n_source + j]) for g, i, j in edges]
    place = {end: k for k, end in enumerate(ends)}
    target_order = order(block.target)
    source_order = order(block.source)
    return [place[target_order[a], source_order[b]] for a, b in ends]


def random_values(graph: NeuralGraph, generator: torch.Generator) -> list[Tensor]:
    """Float64 values for every parameter, some of them below the cut-off of the
    preprocessing."""
    values = []
    for spec in graph.parameters:
        value = torch.randn(spec.shape, generator=generator, dtype=torch.float64)
        exponents = torch.empty_like(value).uniform_(-6, 0, generator=generator)
        values.append(value * 10.0**exponents)
    return values


def updates(metanet: nn.Module, graph: NeuralGraph, params, grads) -> list[Tensor]:
    """Deltas of the last of several steps; the parameters do not change.

    params: values per parameter. grads: the same for each step.
    """
    rule = MetanetRule(metanet, graph)
    state = rule.init(params)
    hyper = Hyper([1.0] * len(params), [0.1] * len(params))
    for gradients in grads:
        deltas, state = update_all(rule, gradients, state, params, hyper)
    return deltas


@torch.no_grad()
def assert_commutes(
    metanet: nn.Module,
    graph: NeuralGraph,
    moves: Iterable[Callable[[Sequence[Tensor]], list[Tensor]]],
    steps: int = 1,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> None:
    """Updates of moved parameters and gradients are the moved updates,
    and others than before (float64)."""
    generator = torch.Generator().manual_seed(seed)
    params = random_values(graph, generator)
    grads = [random_values(graph, generator) for _ in range(steps)]
    plain = updates(metanet, graph, params, grads)
    for move in moves:
        expected = move(plain)
        distances = [(e - p).abs().max() for e, p in zip(expected, plain, strict=True)]
        assert max(distances) > 1e-6
        after_move = updates(metanet, graph, move(params), [move(g) for g in grads])
        for e, f in zip(expected, after_move, strict=True):
            torch.testing.assert_close(f, e, rtol=0, atol=tolerance)


def assert_equivariant(
    metanet: nn.Module, graph: NeuralGraph, tolerance: float = 1e-10, seed: int = 0
) -> None:
    """Permuting hidden neurons permutes the updates in the same way (float64)."""
    permutations = random_permutations(graph, torch.Generator().manual_seed(seed))
    assert permutations, "the graph has hidden neurons to permute"
    move = partial(permute, graph, permutations=permutations)
    assert_commutes(metanet, graph, [move], steps=3, tolerance=tolerance, seed=seed)


def assert_metanet_respects(
    graph: NeuralGraph, symmetries: Sequence[Automorphism], products: int = 3
) -> None:
    """The updates of metanets commute with random products of symmetries.

    Those that read the graph take turns, as none of them commutes with what is no
    symmetry of it; an LSTM reads none, and commutes with any.
    """
    moves = [partial(a.move, graph) for a in subproducts(symmetries, products)]
    torch.manual_seed(0)
    assert_commutes(small_metanet("lstm"), graph, moves[:1])
    readers = [small_metanet(name) for name in SMALL if name != "lstm"]
    if chain_of(graph):
        readers.append(metanet_for("nfn", graph))
    for k, metanet in enumerate(readers):
        assert_commutes(metanet, graph, moves[k :: len(readers)] or moves)


# Functions of networks


def randomised(model: nn.Module) -> list[Tensor]:
    """Parameters without ties: norms begin with all ones and zeros,
    under which everything is symmetric."""
    generator = torch.Generator().manual_seed(1)
    return [
        p.detach() + 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for p in model.parameters()
    ]


@torch.no_grad()
def run(model: nn.Module, params: Sequence[Tensor], example: Any) -> Any:
    """What a network gives with some parameters; buffers stay as they are."""
    torch.manual_seed(0)
    names = [name for name, _ in model.named_parameters()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    inputs = example if isinstance(example, tuple) else (example,)
    values = {**dict(zip(names, params, strict=True)), **buffers}
    return functional_call(model, values, inputs)


def assert_function_respects(
    model: nn.Module,
    example: Any,
    graph: NeuralGraph,
    symmetries: Iterable[Automorphism],
    tolerance: float = 1e-11,
) -> None:
    """No symmetry of the graph changes what the network gives (float64, but for its
    tolerance)."""
    params = randomised(model)
    expected = run(model, params, example)
    for symmetry in symmetries:
        output = run(model, symmetry.move(graph, params), example)
        message = partial(_no_symmetry, symmetry, graph)
        torch.testing.assert_close(
            output, expected, rtol=100 * tolerance, atol=tolerance, msg=message
        )


def _no_symmetry(symmetry: Automorphism, graph: NeuralGraph, message: str) -> str:
    return f"no symmetry of the network: {symmetry.describe(graph)}\n{message}"
