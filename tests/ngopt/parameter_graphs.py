"""Edges and kinds of parameter graphs."""

from collections import Counter

from ngopt.graph import to_edge_list


def edges_of(graph):
    """(source, target, kind, position, parameter, element) of every edge."""
    edges = to_edge_list(graph)
    blocks = [graph.blocks[number] for number in edges.block.tolist()]
    ends = edges.sources.tolist(), edges.targets.tolist()
    slots = edges.parameter[:, 0].tolist(), edges.element[:, 0].tolist()
    return [
        (source, target, block.kind, block.position, parameter, element)
        for source, target, block, parameter, element in zip(
            *ends, blocks, *slots, strict=True
        )
    ]


def kinds_of(graph):
    """How many nodes and how many edges there are of each kind."""
    nodes, edges = Counter(), Counter()
    for group in graph.groups:
        nodes[group.kind] += group.size
    for edge in edges_of(graph):
        edges[edge[2]] += 1
    return dict(nodes), dict(edges)
