"""Relational attention, the layer of NG-T (Kofinas et al. 2024, Eq. 5; Diao & Loynd
2023): along edges, block by block, with one softmax over all edges of a neuron."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ngopt.metanets.graph_data.graph_tensors import EdgeChunk, GraphIds
from ngopt.metanets.layers import aggregation
from ngopt.metanets.layers.aggregation import (
    TO_SOURCES,
    TO_TARGETS,
    Axes,
    Incoming,
    by_neuron,
)
from ngopt.metanets.layers.graph_layer import EndTerms, GraphLayer

# Logit of masked neurons; finite, so that differences are numbers.
MASKED = -1e30


class SoftmaxSums(NamedTuple):
    """Numerator and denominator of an attention's softmax, to which values can be
    added.

    Attributes:
        high: The largest logit, `(*batch, n, heads)`.
        total: Sum of exp(logit - high), the same.
        value: Sum of exp(logit - high) * value, `(*batch, n, width)`.
    """

    high: Tensor
    total: Tensor
    value: Tensor

    @classmethod
    def of(
        cls, logits: Tensor, values: Tensor, axes: Axes, of_head: Tensor
    ) -> "SoftmaxSums":
        """Sums over two axes.

        Args:
            logits: `(groups, a, b, tiles, *batch, heads)`.
            values: The same with width.
            of_head: Which columns are of each head, (heads, width).
        """
        high = logits.detach().amax(axes, keepdim=True)
        weight = (logits - high).exp()
        weighted = (weight @ of_head) * values
        total = weight.sum(axes, keepdim=True)
        value = weighted.sum(axes, keepdim=True)
        return cls(by_neuron(high), by_neuron(total), by_neuron(value))

    def merged(self, other: "SoftmaxSums") -> "SoftmaxSums":
        """Sums over both sets of values, for the same neurons."""
        high = torch.maximum(self.high, other.high)
        ours = (self.high - high).exp()
        theirs = (other.high - high).exp()
        total = ours * self.total + theirs * other.total
        value = _by_head(ours, self.value) + _by_head(theirs, other.value)
        return SoftmaxSums(high, total, value)

    @classmethod
    def scattered(
        cls, several: "Sequence[SoftmaxSums]", index: Tensor, n: int
    ) -> "SoftmaxSums":
        highs, totals, values = aggregation.concatenated_columns(several)
        high = aggregation.scatter_extreme(highs, index, n, "amax", MASKED)
        weight = (highs - high.index_select(-2, index)).exp()
        total = aggregation.scatter_sum(weight * totals, index, n)
        value = aggregation.scatter_sum(_by_head(weight, values), index, n)
        return cls(high, total, value)

    def mean(self) -> Tensor:
        """The values, weighted by the softmax, `(*batch, n, width)`; 0 without
        values."""
        has_values = self.total > 0
        total = torch.where(has_values, self.total, 1)
        return _by_head(has_values / total, self.value)


class RelationalLayer(GraphLayer):
    """One round of relational attention (Diao & Loynd 2023, Eq. 5 to 14) with modulated
    values.

    Neuron i attends to neurons j along edges e, in each direction with its own weights:

        query  W v_i + W e
        key    W v_j + W e
        value  (W_scale e) * (W v_j) + W_shift e     (Kofinas et al. 2024, Eq. 5)
        nodes  u = norm(v + linear(attention)), norm(u + mlp(u))
        edges  u = norm(e + linear(relu(linear([v_target, e, v_source])))),
               norm(u + mlp(u))

    Shapes: as in `GraphLayer`.

    Args:
        complete_up_to: In graphs of at most this many neurons, each neuron also attends
            to all others, as along an edge without features.
        edges: As in `PNALayer`. The edge update has no term of the reverse edge: there
            is none.

    Raises:
        ValueError: If heads do not divide the width.
    """

    of_head: Tensor

    def __init__(
        self, width: int, heads: int, complete_up_to: int = 0, edges: bool = True
    ):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"RelationalLayer: heads: expected a divisor of width {width}; "
                f"got {heads}"
            )
        self.width = width
        self.heads = heads
        self.complete_up_to = complete_up_to
        # products with it are faster than passes over the few columns of every head
        of_head = torch.eye(heads).repeat_interleave(width // heads, 1)
        self.register_buffer("of_head", of_head, persistent=False)
        # query, key, scale and shift; to targets, then to sources
        self.edge_terms = nn.Linear(width, 8 * width)
        # query to targets; key and value to sources; the edge update
        self.target = nn.Linear(width, 4 * width)
        # key and value to targets; query to sources; the edge update
        self.source = nn.Linear(width, 4 * width, bias=False)
        if complete_up_to:
            self.everywhere = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.node_norm = nn.LayerNorm(width)
        self.node_mlp = Residual(width)
        if edges:
            self.edge = nn.Linear(width, width)
            self.edge_out = nn.Linear(width, width)
            self.edge_norm = nn.LayerNorm(width)
            self.edge_mlp = Residual(width)

    def messages(
        self, edges: Tensor, terms: EndTerms, chunk: EdgeChunk
    ) -> tuple[SoftmaxSums, SoftmaxSums]:
        # to query, key, scale and shift, at targets, then at sources, (*, width) each.
        # One product each: gradients of views of one product would be copied together,
        # and have strides
        weights = self.edge_terms.weight.chunk(8)
        biases = self.edge_terms.bias.chunk(8)
        of_edges = []
        for weight, bias in zip(weights, biases, strict=True):
            of_edges.append(F.linear(edges, weight, bias))
        targets, sources = terms.at_ends(chunk)
        query, key_back, value_back = targets.split(self.width, -1)
        key, value, query_back = sources.split(self.width, -1)
        to_targets = query, key, value
        to_sources = query_back, key_back, value_back
        forward = self._attention(of_edges[:4], to_targets, TO_TARGETS)
        backward = self._attention(of_edges[4:], to_sources, TO_SOURCES)
        return forward, backward

    def next_edges(self, edges: Tensor, terms: EndTerms, chunk: EdgeChunk) -> Tensor:
        target, source = terms.at_ends(chunk)
        hidden = self.edge(edges).add_(target + source).relu()
        return self.edge_mlp(self.edge_norm(edges + self.edge_out(hidden)))

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Sequence[Incoming]],
        graph_ids: GraphIds,
    ) -> list[Tensor]:
        parts = []
        for to_targets, to_sources in zip(incoming, outgoing, strict=True):
            parts.append([*to_targets, *to_sources])
        if self.complete_up_to and isinstance(graph_ids, Tensor):
            index, is_node = padded(graph_ids, self.complete_up_to)
            if index.numel():  # some graph is small
                sums = self._all_to_all(nodes[0][index], is_node)
                of_nodes = SoftmaxSums(*(x[is_node] for x in sums))
                parts[0].append(Incoming(of_nodes, index[is_node]))
        elif self.complete_up_to and not isinstance(graph_ids, Tensor):
            self._add_complete_by_group(parts, nodes, graph_ids)
        new = []
        for node, of_group in zip(nodes, parts, strict=True):
            mean = torch.zeros_like(node)
            if of_group:
                mean = aggregation.aggregated(of_group, node).mean()
            new.append(self.node_mlp(self.node_norm(node + self.out(mean))))
        return new

    def _add_complete_by_group(
        self,
        parts: Sequence[list[Incoming]],
        nodes: Sequence[Tensor],
        graph_ids: Sequence[int],
    ) -> None:
        """Adds attention between all neurons of each small graph."""
        for graph in set(graph_ids):
            groups = [i for i, number in enumerate(graph_ids) if number == graph]
            sizes = [nodes[i].shape[-2] for i in groups]
            if not 0 < sum(sizes) <= self.complete_up_to:
                continue
            sums = self._all_to_all(torch.cat([nodes[i] for i in groups], -2))
            of_groups = zip(*(x.split(sizes, -2) for x in sums), strict=True)
            for i, sums_of_group in zip(groups, of_groups, strict=True):
                parts[i].append(Incoming(SoftmaxSums(*sums_of_group), None))

    def _attention(
        self, edge_terms: Sequence[Tensor], node_terms: Sequence[Tensor], axes: Axes
    ) -> SoftmaxSums:
        """edge_terms: to query, key, scale and shift. node_terms: query, key, value."""
        to_query, to_key, scale, shift = edge_terms
        query, key, value = node_terms
        products = ((query + to_query) * (key + to_key)) @ self.of_head.T
        logits = products / sqrt(self.width / self.heads)
        values = torch.addcmul(shift, scale, value)
        return SoftmaxSums.of(logits, values, axes, self.of_head)

    def _all_to_all(self, nodes: Tensor, is_node: Tensor | None = None) -> SoftmaxSums:
        """Attention between all nodes (*batch, n, width). is_node: others are padding,
        (*batch, n)."""
        terms = self.everywhere(nodes).unflatten(-1, (3, self.heads, -1))
        terms = terms.transpose(-4, -2)  # (*batch, heads, 3, n, d)
        query, key, value = terms.unbind(-3)
        logits = query @ key.mT / sqrt(query.shape[-1])
        if is_node is not None:
            logits = logits.masked_fill(~is_node[..., None, None, :], MASKED)
        high = logits.detach().amax(-1, keepdim=True)
        weight = (logits - high).exp()
        sums = high, weight.sum(-1, keepdim=True), weight @ value
        return SoftmaxSums(*(x.transpose(-3, -2).flatten(-2) for x in sums))


class Residual(nn.Module):
    """x -> norm(x + linear(relu(linear(x))))."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.outer(self.inner(x).relu()))


def _by_head(weight: Tensor, value: Tensor) -> Tensor:
    """(*, heads) * (*, width)."""
    of_heads = value.unflatten(-1, (weight.shape[-1], -1))
    return (weight.unsqueeze(-1) * of_heads).flatten(-2)


def padded(graph_ids: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The nodes of the graphs of at most `limit` nodes, one graph a row.

    Returns numbers of nodes (graphs, most), 0 where padded, and which of these are
    nodes, bool.

    Args:
        graph_ids: Graph of every node, (n,).
    """
    counts = torch.bincount(graph_ids)
    starts = counts.cumsum(0) - counts
    is_small = counts <= limit
    small = counts[is_small].unsqueeze(1)
    most = int(small.max()) if len(small) else 0
    column = torch.arange(most, device=graph_ids.device)
    is_node = column < small
    order = graph_ids.argsort(stable=True)
    place = torch.where(is_node, starts[is_small].unsqueeze(1) + column, 0)
    return torch.where(is_node, order[place], 0), is_node
