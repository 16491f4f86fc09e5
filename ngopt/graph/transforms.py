"""Graphs made from graphs: parameters in another order, and disjoint unions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from ngopt.graph.groups_and_blocks import View
from ngopt.graph.neural_graph import NeuralGraph


def reordered(graph: NeuralGraph, order: Sequence[int]) -> NeuralGraph:
    """The same graph with its parameters in another order.

    order: the present position of each.
    """
    if list(order) == list(range(len(graph.parameters))):
        return graph
    new = sorted(range(len(order)), key=order.__getitem__)
    blocks = (replace(b, view=_renumbered(b.view, new)) for b in graph.blocks)
    biases = (replace(b, view=_renumbered(b.view, new)) for b in graph.biases)
    return replace(
        graph,
        parameters=tuple(graph.parameters[i] for i in order),
        blocks=tuple(blocks),
        biases=tuple(biases),
        inferred=graph.inferred and tuple(graph.inferred[i] for i in order),
    )


def _renumbered(view: View | None, new: Sequence[int]) -> View | None:
    """The same elements of a parameter that has a new number; new: of each old one."""
    return view and replace(view, parameter=new[view.parameter])


def join_graphs(*graphs: NeuralGraph) -> NeuralGraph:
    """The disjoint union: parameters, groups and blocks of each graph after those of
    the one before.

    Graphs of different networks make one batch so; no node of one has an edge to
    another's.
    """
    return reduce(_join, graphs)


def _join(first: NeuralGraph, second: NeuralGraph) -> NeuralGraph:
    count = len(first.parameters)
    new = range(count, count + len(second.parameters))
    g = len(first.groups)
    old = first.membership
    inferred = [
        part.inferred or (False,) * len(part.parameters) for part in (first, second)
    ]
    blocks = (
        replace(
            b,
            view=_renumbered(b.view, new),
            source=b.source + g,
            target=b.target + g,
        )
        for b in second.blocks
    )
    biases = (
        replace(b, view=_renumbered(b.view, new), group=b.group + g)
        for b in second.biases
    )
    return NeuralGraph(
        (*first.parameters, *second.parameters),
        (*first.groups, *second.groups),
        (*first.blocks, *blocks),
        (*first.biases, *biases),
        (*first.unplaced, *second.unplaced),
        (
            *old,
            *(max(old) + 1 + m for m in second.members or [0] * len(second.groups)),
        ),
        (*inferred[0], *inferred[1]),
    )
