"""One round of a graph network: messages between neurons, new nodes, new edges;
and a global feature."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from ngopt import chunking
from ngopt.chunking import concatenated
from ngopt.metanets.graph_data.graph_tensors import (
    EdgeChunk,
    GraphIds,
    even_slices,
)
from ngopt.metanets.layers.aggregation import (
    TO_SOURCES,
    TO_TARGETS,
    Incoming,
    MessageStatistics,
    gathered,
)
from ngopt.metanets.layers.film_messages import FiLMStatistics
from ngopt.metanets.layers.graph_layer import EndTerms, GraphLayer

# Inside the root of the standard deviation, so that its derivative is bounded where
# messages tie.
STD_EPSILON = 1e-5
AGGREGATORS = ("mean", "min", "max", "std")
SCALERS = ("identity", "amplification")


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
        self, edges: Tensor, ends: EndTerms, part: EdgeChunk
    ) -> tuple[MessageStatistics, MessageStatistics]:
        width, terms = self.width, self._terms(edges)
        found = []
        for number, axes in enumerate((TO_TARGETS, TO_SOURCES)):
            columns = slice(number * width, (number + 1) * width)
            target = ends.of_target(part, columns)
            source = ends.of_source(part, columns)
            scale, shift = terms[2 * number : 2 * number + 2]
            statistics = FiLMStatistics.apply(scale, shift, target, source, axes)
            degree = edges.shape[axes[0]] * edges.shape[axes[1]]
            found.append(MessageStatistics.of(degree, statistics))
        return found[0], found[1]

    def _terms(self, edges: Tensor) -> Sequence[Tensor]:
        """Scale and shift there, scale and shift back, (*, width) each."""
        if edges.dim() == 5:
            return self.film(edges).split(self.width, -1)
        # of a batch runs of memory are only long if each is a tensor of its own
        weights = self.film.weight.split(self.width)
        biases = self.film.bias.split(self.width)
        return [linear(edges, *pair) for pair in zip(weights, biases, strict=True)]

    def next_edges(self, edges: Tensor, ends: EndTerms, part: EdgeChunk) -> Tensor:
        hidden = silu(self.edge(edges).add_(ends.sums(part)))
        return self.edge_out(hidden).add_(edges)

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Sequence[Incoming]],
        members: GraphIds,
    ) -> list[Tensor]:
        found = []
        for node, *sides in zip(nodes, incoming, outgoing, strict=True):
            totals = [gathered(parts, node) if parts else None for parts in sides]
            pieces = []
            count = chunking.amount(chunking.NEURONS, node.device)
            for some in even_slices(node.shape[-2], count):
                own = [
                    total if total is None else total.of_neurons(some)
                    for total in totals
                ]
                pieces.append(self._next(node[..., some, :], own))
            found.append(concatenated(pieces, -2) if pieces else node)
        return found

    def _next(self, node: Tensor, totals: Sequence[MessageStatistics | None]) -> Tensor:
        """Some nodes after this layer, from what reaches them from both sides."""
        update = self.update(
            torch.cat(
                [node, *(self._aggregate(node, total) for total in totals)],
                dim=-1,
            )
        )
        return node + silu(self.norm(update))

    def _aggregate(self, node: Tensor, total: MessageStatistics | None) -> Tensor:
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
