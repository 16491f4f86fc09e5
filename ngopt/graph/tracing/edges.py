"""Edges and features of nodes, as rules add them and as blocks of the graph.

Edges of value 1 belong to no parameter; `unit_edge_blocks` divides them into blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import View
from ngopt.graph.tracing.nodes import Nodes
from ngopt.graph.tracing.values import (
    Elements,
    has_duplicates,
    row_numbers,
    unique_pairs,
)


@dataclass(frozen=True)
class Edges:
    """Edges whose values are elements of a parameter, or features of nodes.

    sources, targets: labels of nodes that broadcast to one shape (*axes). Without
    sources, elements are features of the targets.
    elements: (*axes, *slots); None for edges of value 1.
    path: the operands and options of the function. Edges of the same path have the same
    activations of their sources.
    """

    elements: Elements | None
    sources: Tensor | None
    targets: Tensor
    kind: str
    path: tuple


@dataclass(frozen=True)
class Block:
    """A regular piece of `Edges`: an `EdgeBlock` or `Bias` of node numbers.

    No node occurs twice in an end, and each end is in one group.
    sources: (groups * n_source,). targets: (groups * n_target,). view: (*shape,
    *slot_shape), where shape is (groups, n_target, n_source); or (n, *slot_shape) for
    features of n targets.
    """

    view: View | None
    sources: Tensor | None
    targets: Tensor
    shape: tuple[int, ...]
    slot_shape: tuple[int, ...]
    kind: str
    path: tuple


def unit_edge_blocks(edges: Edges, nodes: Nodes) -> Iterator[Block]:
    """Edges of value 1, each once: from one source to several targets, or from several
    sources to one target."""
    assert edges.sources is not None, "features of nodes are elements"
    ends = nodes.find(edges.sources), nodes.find(edges.targets)
    sources, targets = torch.broadcast_tensors(*ends)
    pairs, _ = unique_pairs(sources.flatten(), targets.flatten())
    which = row_numbers(nodes.group_of(pairs).T)
    for number in which.unique():
        part = pairs[:, which == number]
        # centers at the end of fewer nodes, with equally many edges in a block
        from_sources = len(part[0].unique()) <= len(part[1].unique())
        centers, others = part if from_sources else part.flip(0)
        for star in _stars_around(centers, others):
            sources, targets = star if from_sources else reversed(star)
            # the number of centers, all at one end: one of the quotients is 1
            n = min(len(sources), len(targets))
            shape = (n, len(targets) // n, len(sources) // n)
            yield Block(None, sources, targets, shape, (), edges.kind, edges.path)


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
        yield nodes[part], others[members][order]
