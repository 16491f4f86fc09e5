"""One round of a graph network: messages between neurons, new nodes, new edges;
and a global feature."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from ngopt import chunking
from ngopt.chunking import concatenated
from ngopt.metanets.film_messages import FiLMStatistics
from ngopt.metanets.messages import (
    TO_SOURCES,
    TO_TARGETS,
    Incoming,
    Messages,
    Reduced,
    gathered,
)
from ngopt.metanets.parts import BlockParts, Members, Part, even_slices

# Inside the root of the standard deviation, so that its derivative is bounded where
# messages tie.
STD_EPSILON = 1e-5
AGGREGATORS = ("mean", "min", "max", "std")
SCALERS = ("identity", "amplification")


class Ends(NamedTuple):
    """What the two ends of the edges of a block bring to a layer.

    target: (groups, n_target, *batch, columns). source: (groups, n_source, *batch,
    columns).
    """

    target: Tensor
    source: Tensor

    def of_target(self, part: Part, columns: slice) -> Tensor:
        """(groups, n_target, 1, 1, *batch, columns)."""
        return self.target[part.groups, part.targets, None, None, ..., columns]

    def of_source(self, part: Part, columns: slice) -> Tensor:
        """(groups, 1, n_source, 1, *batch, columns)."""
        return self.source[part.groups, None, part.sources, None, ..., columns]

    def sums(self, part: Part) -> Tensor:
        """Of both ends, (groups, n_target, n_source, 1, *batch, columns)."""
        everything = slice(None)
        of_target = self.of_target(part, everything)
        return of_target + self.of_source(part, everything)


def batch_inside(values: Tensor, axes: int) -> Tensor:
    """(*batch, *axes, width) -> (*axes, *batch, width), so many of them, in this order
    of memory.

    What is broadcast or reduced over edges are long runs of memory then.
    """
    batch = values.dim() - axes - 1
    if not batch:
        return values
    return values.movedim(
        list(range(batch)), list(range(axes, axes + batch))
    ).contiguous()


class GraphLayer(nn.Module):
    """Base class of a round of messages along edges: new nodes and new edges, part by
    part.

    target, source: linear maps, of what the nodes bring to the edges that they end; the
    last
        `width` of their outputs are for new edges, the others for messages.

    Shapes: nodes one (*batch, n, width) a group; edges (groups, n_target, n_source,
    tiles, *batch, width), of a part of a block.
    """

    width: int
    target: nn.Linear
    source: nn.Linear

    def ends_of_messages(
        self, nodes: Sequence[Tensor], blocks: Sequence[BlockParts]
    ) -> list[Ends]:
        """What the nodes bring to the messages of every block."""
        return self._ends(nodes, blocks, slice(0, -self.width))

    def ends_of_edges(
        self, nodes: Sequence[Tensor], blocks: Sequence[BlockParts]
    ) -> list[Ends]:
        """What the nodes bring to the new edges of every block."""
        return self._ends(nodes, blocks, slice(-self.width, None))

    def _ends(
        self,
        nodes: Sequence[Tensor],
        blocks: Sequence[BlockParts],
        columns: slice,
    ) -> list[Ends]:
        found = []
        ends = (
            {parts.block.target for parts in blocks},
            {parts.block.source for parts in blocks},
        )
        targets, sources = (
            {group: _some_columns(layer, nodes[group], columns) for group in own}
            for layer, own in zip((self.target, self.source), ends, strict=True)
        )
        for parts in blocks:
            g, t, s = parts.block.shape
            target = select_neurons(targets[parts.block.target], parts.target)
            source = select_neurons(sources[parts.block.source], parts.source)
            pairs = (target.unflatten(-2, (g, t)), source.unflatten(-2, (g, s)))
            found.append(Ends(*(batch_inside(x, axes=2) for x in pairs)))
        return found

    def messages(
        self, edges: Tensor, ends: Ends, part: Part
    ) -> tuple[Reduced, Reduced]:
        """What the messages of a part bring to its targets and to its sources."""
        raise NotImplementedError

    def next_edges(self, edges: Tensor, ends: Ends, part: Part) -> Tensor:
        """The edges of a part after this layer."""
        raise NotImplementedError

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Sequence[Incoming]],
        members: Members,
    ) -> list[Tensor]:
        """The nodes after this layer, from what reaches each group from both sides.

        members: see `GraphParts`.
        """
        raise NotImplementedError


class PNALayer(GraphLayer):
    """One round of messages between neighbouring groups.

    message (Eq. 4):   m = scale(e) * phi([v_target, v_source]) + shift(e), for each direction
    nodes:             v + silu(norm(linear([v, aggregates of both directions])))
    edges (Eq. 3):     e + linear(silu(linear([v_target, e, v_source])))

    Aggregates are mean, min, max and std of the messages, each with the scalers
    identity and amplification, log(degree + 1) / log_degree (Corso et al. 2020).

    edges: whether it has new edges, which a last layer does not need where only nodes
    are read.
    """

    def __init__(self, width: int, log_degree: float, edges: bool = True):
        super().__init__()
        self.width, self.log_degree = width, log_degree
        self.film = nn.Linear(width, 4 * width)  # scale and shift, forward and backward
        # to both messages and the edge update
        self.target = nn.Linear(width, 3 * width)
        self.source = nn.Linear(width, 3 * width, bias=False)
        self.update = nn.Linear(
            (1 + 2 * len(AGGREGATORS) * len(SCALERS)) * width, width
        )
        self.norm = nn.LayerNorm(width)
        if edges:
            self.edge = nn.Linear(width, width)
            self.edge_out = nn.Linear(width, width)

    def messages(
        self, edges: Tensor, ends: Ends, part: Part
    ) -> tuple[Messages, Messages]:
        width, terms = self.width, self._terms(edges)
        found = []
        for number, axes in enumerate((TO_TARGETS, TO_SOURCES)):
            columns = slice(number * width, (number + 1) * width)
            target = ends.of_target(part, columns)
            source = ends.of_source(part, columns)
            scale, shift = terms[2 * number : 2 * number + 2]
            statistics = FiLMStatistics.apply(scale, shift, target, source, axes)
            degree = edges.shape[axes[0]] * edges.shape[axes[1]]
            found.append(Messages.of(degree, statistics))
        return found[0], found[1]

    def _terms(self, edges: Tensor) -> Sequence[Tensor]:
        """Scale and shift there, scale and shift back, (*, width) each."""
        if edges.dim() == 5:
            return self.film(edges).split(self.width, -1)
        # of a batch runs of memory are only long if each is a tensor of its own
        weights = self.film.weight.split(self.width)
        biases = self.film.bias.split(self.width)
        return [linear(edges, *pair) for pair in zip(weights, biases, strict=True)]

    def next_edges(self, edges: Tensor, ends: Ends, part: Part) -> Tensor:
        hidden = silu(self.edge(edges).add_(ends.sums(part)))
        return self.edge_out(hidden).add_(edges)

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Sequence[Incoming]],
        members: Members,
    ) -> list[Tensor]:
        found = []
        for node, *sides in zip(nodes, incoming, outgoing, strict=True):
            totals = [gathered(parts, node) if parts else None for parts in sides]
            pieces = []
            count = chunking.chunk_size(chunking.NEURONS, node.device)
            for some in even_slices(node.shape[-2], count):
                own = [
                    total if total is None else total.of_neurons(some)
                    for total in totals
                ]
                pieces.append(self._next(node[..., some, :], own))
            found.append(concatenated(pieces, -2) if pieces else node)
        return found

    def _next(self, node: Tensor, totals: Sequence[Messages | None]) -> Tensor:
        """Some nodes after this layer, from what reaches them from both sides."""
        update = self.update(
            torch.cat(
                [node, *(self._aggregate(node, total) for total in totals)],
                dim=-1,
            )
        )
        return node + silu(self.norm(update))

    def _aggregate(self, node: Tensor, total: Messages | None) -> Tensor:
        """All messages that reach some nodes -> (*batch, n, 8 width);
        zeros where there are none."""
        if total is None:
            columns = len(AGGREGATORS) * len(SCALERS) * self.width
            return node.new_zeros(*node.shape[:-1], columns)
        std = (total.var + STD_EPSILON).sqrt()
        aggregates = torch.cat([total.mean, total.low, total.high, std], dim=-1)
        if isinstance(total.degree, Tensor):
            aggregates = aggregates * (total.degree > 0)
            amplification = (total.degree + 1).log() / self.log_degree
        else:
            amplification = log(total.degree + 1) / self.log_degree
        return torch.cat([aggregates, amplification * aggregates], dim=-1)


def _some_columns(layer: nn.Linear, x: Tensor, columns: slice) -> Tensor:
    """Some outputs of a linear layer."""
    bias = None if layer.bias is None else layer.bias[columns]
    return linear(x, layer.weight[columns], bias)


def select_neurons(nodes: Tensor, index: Tensor | None) -> Tensor:
    """(*batch, n, width) -> the rows that a block names."""
    return nodes if index is None else nodes.index_select(-2, index)


class GlobalFeature(nn.Module):
    """One vector for each whole graph, which all its nodes and edges see and feed (Lim
    et al. 2024, Eq. 3 to 5).

    u <- u + linear(silu(linear([u, mean of nodes, mean of edges]))); nodes and edges
    then get a linear map of it each. `graph.members` says what belongs to which graph.

    Shapes: u and the means (*batch, graphs, width).
    """

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(3 * width, width)
        self.outer = nn.Linear(width, width)
        self.to_nodes = nn.Linear(width, width, bias=False)
        self.to_edges = nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor, nodes: Tensor, edges: Tensor) -> Tensor:
        return u + self.outer(silu(self.inner(torch.cat([u, nodes, edges], dim=-1))))


def sums_by_graph(
    rows: Sequence[Tensor], members: Sequence[Tensor], counts: Tensor
) -> Tensor:
    """Sums of rows (*batch, n, width) of each graph, (*batch, graphs, width).

    members: which graph each row is of, (n,). counts: (graphs, 1).
    """
    like = rows[0]
    total = like.new_zeros(*like.shape[:-2], len(counts), like.shape[-1])
    for some, own in zip(rows, members, strict=True):
        total = total.index_add(-2, own, some)
    return total
