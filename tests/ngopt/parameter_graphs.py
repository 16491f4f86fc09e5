"""What tests ask of parameter graphs."""

from collections import Counter

from ngopt.graph import to_edge_list


def edges_of(graph):
    """(source, target, kind, position, parameter, element) of every edge."""
    edges = to_edge_list(graph)
    rows = zip(
        edges.sources,
        edges.targets,
        edges.block,
        edges.parameter,
        edges.element,
        strict=True,
    )
    return [
        (
            int(s),
            int(t),
            graph.blocks[b].kind,
            graph.blocks[b].position,
            int(p[0]),
            int(e[0]),
        )
        for s, t, b, p, e in rows
    ]


def kinds_of(graph):
    """How many nodes and how many edges there are of each kind."""
    nodes, edges = Counter(), Counter()
    for group in graph.groups:
        nodes[group.kind] += group.size
    for edge in edges_of(graph):
        edges[edge[2]] += 1
    return dict(nodes), dict(edges)
