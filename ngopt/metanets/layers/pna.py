"""PNA with FiLM messages, the layer of NG-GNN (Kofinas et al. 2024, Eq. 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from ngopt import chunking
from ngopt.chunking import concatenated
from ngopt.metanets.graph_data.graph_tensors import EdgeChunk, GraphIds
from ngopt.metanets.layers.aggregation import (
    TO_SOURCES,
    TO_TARGETS,
    Incoming,
    MessageStatistics,
    total_statistics,
)
from ngopt.metanets.layers.film_messages import FiLMStatistics
from ngopt.metanets.layers.graph_layer import EndTerms, GraphLayer

# Added to the variance, so that the derivative of the standard deviation is bounded
# where all messages are equal.
STD_EPSILON = 1e-5
AGGREGATORS = ("mean", "min", "max", "std")
SCALERS = ("identity", "amplification")


class PNALayer(GraphLayer):
    """One round of messages between neighbouring groups.

    message (Eq. 4)  m = scale(e) * phi([v_target, v_source]) + shift(e), both ways
    nodes            v + silu(norm(linear([v, aggregates of both directions])))
    edges (Eq. 3)    e + linear(silu(linear([v_target, e, v_source])))

    Aggregates are mean, min, max and std of the messages, each with the scalers
    identity and amplification, log(degree + 1) / log_degree (Corso et al. 2020).

    edges: whether it has new edges. A last layer does not need them if only nodes are
    read.
    """

    def __init__(self, width: int, log_degree: float, edges: bool = True):
        super().__init__()
        self.width, self.log_degree = width, log_degree
        self.film = nn.Linear(width, 4 * width)  # scale and shift, forward and backward
        # to both messages and the edge update
        self.target = nn.Linear(width, 3 * width)
        self.source = nn.Linear(width, 3 * width, bias=False)
        aggregates = len(AGGREGATORS) * len(SCALERS)
        self.update = nn.Linear((1 + 2 * aggregates) * width, width)
        self.norm = nn.LayerNorm(width)
        if edges:
            self.edge = nn.Linear(width, width)
            self.edge_out = nn.Linear(width, width)

    def messages(
        self, edges: Tensor, terms: EndTerms, chunk: EdgeChunk
    ) -> tuple[MessageStatistics, MessageStatistics]:
        width, film = self.width, self._film_terms(edges)
        both = []
        for number, axes in enumerate((TO_TARGETS, TO_SOURCES)):
            columns = slice(number * width, (number + 1) * width)
            target = terms.of_target(chunk, columns)
            source = terms.of_source(chunk, columns)
            scale, shift = film[2 * number : 2 * number + 2]
            statistics = FiLMStatistics.apply(scale, shift, target, source, axes)
            degree = edges.shape[axes[0]] * edges.shape[axes[1]]
            both.append(MessageStatistics.of(degree, statistics))
        return both[0], both[1]

    def _film_terms(self, edges: Tensor) -> Sequence[Tensor]:
        """Scale and shift to targets, scale and shift to sources, (*, width) each."""
        if edges.dim() == 5:
            return self.film(edges).split(self.width, -1)
        # with a batch, rows are long only if each term is a tensor of its own
        weights = self.film.weight.split(self.width)
        biases = self.film.bias.split(self.width)
        return [linear(edges, *pair) for pair in zip(weights, biases, strict=True)]

    def next_edges(self, edges: Tensor, terms: EndTerms, chunk: EdgeChunk) -> Tensor:
        hidden = silu(self.edge(edges).add_(terms.sums(chunk)))
        return self.edge_out(hidden).add_(edges)

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Sequence[Incoming]],
        graph_ids: GraphIds,
    ) -> list[Tensor]:
        new = []
        for node, *sides in zip(nodes, incoming, outgoing, strict=True):
            totals = []
            for parts in sides:
                totals.append(total_statistics(parts, node) if parts else None)
            pieces = []
            limit = chunking.chunk_size(chunking.NEURONS, node.device)
            for some in chunking.even_slices(node.shape[-2], limit):
                own = [None if x is None else x.of_neurons(some) for x in totals]
                pieces.append(self._next_nodes(node[..., some, :], own))
            new.append(concatenated(pieces, -2) if pieces else node)
        return new

    def _next_nodes(
        self, nodes: Tensor, totals: Sequence[MessageStatistics | None]
    ) -> Tensor:
        """totals: of the messages from both sides."""
        columns = [nodes]
        for total in totals:
            columns.append(self._aggregates(nodes, total))
        update = self.update(torch.cat(columns, dim=-1))
        return nodes + silu(self.norm(update))

    def _aggregates(self, nodes: Tensor, total: MessageStatistics | None) -> Tensor:
        """(*batch, n, 8 width); zeros without messages."""
        if total is None:
            columns = len(AGGREGATORS) * len(SCALERS) * self.width
            return nodes.new_zeros(*nodes.shape[:-1], columns)
        std = (total.var + STD_EPSILON).sqrt()
        aggregates = torch.cat([total.mean, total.low, total.high, std], dim=-1)
        if isinstance(total.degree, Tensor):
            aggregates = aggregates * (total.degree > 0)
            amplification = (total.degree + 1).log() / self.log_degree
        else:
            amplification = log(total.degree + 1) / self.log_degree
        return torch.cat([aggregates, amplification * aggregates], dim=-1)
