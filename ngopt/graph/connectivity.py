"""Connected components, longest paths and depths of the groups of a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ngopt.graph.groups_and_blocks import EdgeBlock, Topology


def longest_paths(count: int, blocks: Iterable[EdgeBlock]) -> list[int]:
    """For each of `count` groups the number of edges on the longest path to it.

    blocks: in the order of the forward pass, without those that lead back.
    """
    length = [0] * count
    for block in blocks:
        length[block.target] = max(length[block.target], length[block.source] + 1)
    return length


def relative_depths(layers: Sequence[int], component: Sequence[int]) -> list[float]:
    """The layer of each group in units of the last one in its component."""
    last: dict[int, int] = {}
    for layer, part in zip(layers, component, strict=True):
        last[part] = max(last.get(part, 1), layer)
    return [layer / last[part] for layer, part in zip(layers, component, strict=True)]


def components(graph: Topology) -> list[int]:
    """For every group the part of the graph that it is in; see `connected`."""
    return connected(len(graph.groups), graph.blocks)


def unconnected(graph: Topology) -> list[str]:
    """Names of the parameters outside the part of the graph that has the most elements."""
    component = components(graph)
    places = [(b.view, component[b.target]) for b in graph.weights]
    places += [(b.view, component[b.group]) for b in graph.biases]
    elements: Counter[int] = Counter()
    # elements that the network does not use may be in another part than the others
    parts: dict[int, set[int]] = {}
    for view, part in places:
        if view is not None:
            elements[part] += view.numel
            parts.setdefault(view.parameter, set()).add(part)
    largest = max(elements, key=elements.__getitem__, default=None)
    return [graph.parameters[i].name for i in sorted(parts) if largest not in parts[i]]


def connected(count: int, blocks: Iterable[EdgeBlock]) -> list[int]:
    """For each of `count` groups the part of the graph that it is in,
    as the number of one group of that part."""
    parent = list(range(count))

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for block in blocks:
        parent[root(block.target)] = root(block.source)
    return [root(group) for group in range(count)]
