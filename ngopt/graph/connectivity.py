"""Connected components, longest paths and depths of the groups of a graph."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from ngopt.graph.groups_and_blocks import EdgeBlock, Topology

AnyGraph = TypeVar("AnyGraph", bound=Topology)


def components(graph: Topology) -> list[int]:
    """For every group its connected component, as the number of one group of it."""
    parent = list(range(len(graph.groups)))

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for block in graph.blocks:
        parent[root(block.target)] = root(block.source)
    return list(map(root, range(len(parent))))


def elements_by_component(graph: Topology) -> dict[int, Counter[int]]:
    """How many elements of each parameter, by its position, are in each connected
    component, by its number."""
    component = components(graph)
    places = [(block.elements, block.target) for block in graph.weights]
    places += [(bias.view, bias.group) for bias in graph.biases]
    elements: dict[int, Counter[int]] = defaultdict(Counter)
    for view, group in places:
        elements[component[group]][view.parameter] += view.numel
    return elements


def unconnected(graph: Topology) -> list[str]:
    """Names of the parameters outside the component that has the most elements."""
    elements = elements_by_component(graph).values()
    # elements that the network does not use may be in a component of their own
    largest = max(elements, key=Counter.total, default=Counter())
    outside = set().union(*elements) - largest.keys()
    return [graph.parameters[i].name for i in sorted(outside)]


def longest_paths(count: int, blocks: Iterable[EdgeBlock]) -> list[int]:
    """For each of `count` groups the number of edges on the longest path to it.

    blocks: in the order of the forward pass; recurrent ones are left out.
    """
    length = [0] * count
    for block in blocks:
        if block.target != block.source:
            length[block.target] = max(length[block.target], length[block.source] + 1)
    return length


def with_depths(graph: AnyGraph, layers: Sequence[int]) -> AnyGraph:
    """A graph in which the depth of each group is its layer divided by the last layer
    of its component."""
    component = components(graph)
    last: dict[int, int] = {}
    for layer, number in zip(layers, component, strict=True):
        last[number] = max(last.get(number, 1), layer)
    groups = []
    for group, layer, number in zip(graph.groups, layers, component, strict=True):
        groups.append(replace(group, depth=layer / last[number]))
    return replace(graph, groups=tuple(groups))
