"""Graphs from graphs: parameters in another order, and disjoint unions."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from ngopt.graph.neural_graph import NeuralGraph


def reordered(graph: NeuralGraph, order: Sequence[int]) -> NeuralGraph:
    """The same graph with its parameters in another order.

    order: the present position of each parameter.
    """
    if list(order) == list(range(len(graph.parameters))):
        return graph
    new = sorted(range(len(order)), key=order.__getitem__)
    parameters = tuple(graph.parameters[i] for i in order)
    inferred = graph.inferred and tuple(graph.inferred[i] for i in order)
    moved = renumbered(graph, new, range(len(graph.groups)))
    return replace(moved, parameters=parameters, inferred=inferred)


def join_graphs(*graphs: NeuralGraph) -> NeuralGraph:
    """The disjoint union, which is a batch of graphs of different networks.

    Parameters, groups and blocks of each graph come after those of the one before.
    """

    def join(first: NeuralGraph, second: NeuralGraph) -> NeuralGraph:
        p, g = len(first.parameters), len(first.groups)
        parameters = range(p, p + len(second.parameters))
        second = renumbered(second, parameters, range(g, g + len(second.groups)))
        next_id = max(first.membership) + 1
        graph_ids = tuple(next_id + graph_id for graph_id in second.membership)
        return NeuralGraph(
            first.parameters + second.parameters,
            first.groups + second.groups,
            first.blocks + second.blocks,
            first.biases + second.biases,
            first.unplaced + second.unplaced,
            first.membership + graph_ids,
            _inferred(first) + _inferred(second),
            {**first.reasons, **second.reasons},
        )

    return reduce(join, graphs)


def _inferred(graph: NeuralGraph) -> tuple[bool, ...]:
    return graph.inferred or (False,) * len(graph.parameters)


def renumbered(
    graph: NeuralGraph, parameters: Sequence[int], groups: Sequence[int]
) -> NeuralGraph:
    """The graph whose blocks and biases have new numbers of parameters and groups.

    parameters, groups: the new number of each. The lists of both stay as they are.
    """
    blocks = []
    for block in graph.blocks:
        view = block.view
        if view is not None:
            view = replace(view, parameter=parameters[view.parameter])
        source, target = groups[block.source], groups[block.target]
        blocks.append(replace(block, view=view, source=source, target=target))
    biases = []
    for bias in graph.biases:
        view = replace(bias.view, parameter=parameters[bias.view.parameter])
        biases.append(replace(bias, view=view, group=groups[bias.group]))
    return replace(graph, blocks=tuple(blocks), biases=tuple(biases))
