"""Blocks of edges of value 1, which belong to no parameter."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ngopt.graph.tracing.edges import Block, Edges
from ngopt.graph.tracing.nodes import Nodes
from ngopt.graph.tracing.values import has_duplicates, row_numbers, unique_pairs


def unit_edge_blocks(edges: Edges, nodes: Nodes) -> Iterator[Block]:
    """Edges of value 1, each once: from one source to several targets, or from several
    sources to one target."""
    assert edges.sources is not None, "features of nodes are elements"
    ends = nodes.find(edges.sources), nodes.find(edges.targets)
    sources, targets = torch.broadcast_tensors(*ends)
    pairs, _ = unique_pairs(sources.flatten(), targets.flatten())
    groups = nodes.group_of(pairs)
    which = row_numbers(groups.T)
    for number in which.unique():
        own = pairs[:, which == number]
        for sources, targets in _stars_of_two_groups(own):
            n_sources = len(sources)
            n_targets = len(targets)
            # the number of centers, all at one end: one of the quotients is 1
            n = min(n_sources, n_targets)
            shape = (n, n_targets // n, n_sources // n)
            yield Block(None, sources, targets, shape, (), edges.kind, edges.path)


def _stars_of_two_groups(pairs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Sources and targets of blocks in which all centers have equally many edges."""
    sources, targets = pairs
    n_sources = len(sources.unique())
    n_targets = len(targets.unique())
    if n_sources <= n_targets:
        yield from _stars_around(sources, targets)
    else:
        for centers, others in _stars_around(targets, sources):
            yield others, centers


def _stars_around(centers: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Different centers, and the equally many others of each, one after the other."""
    nodes, owner, degrees = centers.unique(return_inverse=True, return_counts=True)
    if has_duplicates(others):  # shared ones: each center has a block of its own
        parts = torch.eye(len(nodes), dtype=torch.bool)
    else:
        # (parts, centers): centers of a block have equally many edges
        parts = degrees == degrees.unique()[:, None]
    for part in parts:
        members = part[owner]
        # stable: the others of a center stay in their order
        order = owner[members].argsort(stable=True)
        own = others[members]
        yield nodes[part], own[order]
