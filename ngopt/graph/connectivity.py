"""Connected components, longest paths and depths of the groups of a graph."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ngopt.graph.groups_and_blocks import EdgeBlock, Topology


def components(graph: Topology) -> list[int]:
    """For every group the number of its connected component; see `connected`."""
    return connected(len(graph.groups), graph.blocks)


def connected(count: int, blocks: Iterable[EdgeBlock]) -> list[int]:
    """For each of `count` groups its connected component, as the number of one group of
    it."""
    parent = list(range(count))

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for block in blocks:
        parent[root(block.target)] = root(block.source)
    return list(map(root, range(count)))


def unconnected(graph: Topology) -> list[str]:
    """Names of the parameters outside the component that has the most elements."""
    component = components(graph)
    elements: Counter[int] = Counter()
    # elements that the network does not use may be in a component of their own
    connected_to: dict[int, set[int]] = {}
    places = [(block.elements, block.target) for block in graph.weights]
    places += [(bias.view, bias.group) for bias in graph.biases]
    for view, group in places:
        number = component[group]
        elements[number] += view.numel
        connected_to.setdefault(view.parameter, set()).add(number)
    largest = max(elements, key=elements.__getitem__, default=None)
    names = []
    for parameter in sorted(connected_to):
        if largest not in connected_to[parameter]:
            names.append(graph.parameters[parameter].name)
    return names


def longest_paths(count: int, blocks: Iterable[EdgeBlock]) -> list[int]:
    """For each of `count` groups the number of edges on the longest path to it.

    blocks: in the order of the forward pass, without recurrent ones.
    """
    length = [0] * count
    for block in blocks:
        length[block.target] = max(length[block.target], length[block.source] + 1)
    return length


def relative_depths(layers: Sequence[int], component: Sequence[int]) -> list[float]:
    """For each group its layer divided by the last layer of its component."""
    last: dict[int, int] = {}
    for layer, number in zip(layers, component, strict=True):
        last[number] = max(last.get(number, 1), layer)
    depths = []
    for layer, number in zip(layers, component, strict=True):
        depths.append(layer / last[number])
    return depths
