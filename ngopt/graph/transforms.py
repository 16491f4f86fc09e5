"""Graphs from graphs: parameters in another order, and disjoint unions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from ngopt.graph.groups_and_blocks import Bias, EdgeBlock, View
from ngopt.graph.neural_graph import NeuralGraph


def reordered(graph: NeuralGraph, order: Sequence[int]) -> NeuralGraph:
    """The same graph with its parameters in another order.

    order: the present position of each parameter.
    """
    if list(order) == list(range(len(graph.parameters))):
        return graph
    new = sorted(range(len(order)), key=order.__getitem__)
    blocks, biases = _moved(graph, new, 0)
    parameters = tuple(graph.parameters[i] for i in order)
    inferred = graph.inferred and tuple(graph.inferred[i] for i in order)
    return replace(
        graph, parameters=parameters, blocks=blocks, biases=biases, inferred=inferred
    )


def join_graphs(*graphs: NeuralGraph) -> NeuralGraph:
    """The disjoint union, which is a batch of graphs of different networks.

    Parameters, groups and blocks of each graph come after those of the one before.
    """
    return reduce(_join, graphs)


def _join(first: NeuralGraph, second: NeuralGraph) -> NeuralGraph:
    count = len(first.parameters)
    new = range(count, count + len(second.parameters))
    blocks, biases = _moved(second, new, len(first.groups))
    next_member = max(first.membership) + 1
    members = tuple(next_member + member for member in second.membership)
    return NeuralGraph(
        first.parameters + second.parameters,
        first.groups + second.groups,
        first.blocks + blocks,
        first.biases + biases,
        first.unplaced + second.unplaced,
        first.membership + members,
        _inferred(first) + _inferred(second),
    )


def _inferred(graph: NeuralGraph) -> tuple[bool, ...]:
    return graph.inferred or (False,) * len(graph.parameters)


def _moved(
    graph: NeuralGraph, new: Sequence[int], first_group: int
) -> tuple[tuple[EdgeBlock, ...], tuple[Bias, ...]]:
    """Blocks and biases after renumbering.

    new: the new number of each parameter. first_group: the new number of group 0.
    """
    blocks = []
    for block in graph.blocks:
        view = None if block.view is None else _renumbered(block.view, new)
        source = block.source + first_group
        target = block.target + first_group
        blocks.append(replace(block, view=view, source=source, target=target))
    biases = []
    for bias in graph.biases:
        view = _renumbered(bias.view, new)
        biases.append(replace(bias, view=view, group=bias.group + first_group))
    return tuple(blocks), tuple(biases)


def _renumbered(view: View, new: Sequence[int]) -> View:
    return replace(view, parameter=new[view.parameter])
