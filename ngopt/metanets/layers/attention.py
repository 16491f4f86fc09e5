"""Attention along the edges of a neural graph, block by block,
with a softmax over all that a neuron sees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ngopt.metanets.graph_data.graph_tensors import EdgeChunk, GraphIds
from ngopt.metanets.layers.aggregation import (
    TO_SOURCES,
    TO_TARGETS,
    Incoming,
    added,
    by_neuron,
    extremes,
    joined_index,
)
from ngopt.metanets.layers.graph_layer import EndTerms, GraphLayer

# Logit of what a neuron does not see; finite, so that differences are numbers.
UNSEEN = -1e30


class SoftmaxSums(NamedTuple):
    """What some neurons see, as a sum that can be continued.

    high: the largest logit, (*batch, n, heads). total: sum of exp(logit - high), the
    same. value: sum of exp(logit - high) * value, (*batch, n, width).
    """

    high: Tensor
    total: Tensor
    value: Tensor

    @classmethod
    def of(
        cls,
        logits: Tensor,
        values: Tensor,
        axes: tuple[int, int],
        of_head: Tensor,
    ) -> SoftmaxSums:
        """Over two axes. logits: (groups, a, b, tiles, *batch, heads). values: the same
        with width.
        of_head: which columns are of each head, (heads, width)."""
        high = logits.detach().amax(axes, keepdim=True)
        weight = (logits - high).exp()
        weighted = (weight @ of_head) * values
        found = (
            high,
            weight.sum(axes, keepdim=True),
            weighted.sum(axes, keepdim=True),
        )
        return cls(*map(by_neuron, found))

    def joined(self, other: SoftmaxSums) -> SoftmaxSums:
        """Of the same neurons, what both have seen."""
        high = torch.maximum(self.high, other.high)
        ours = (self.high - high).exp()
        theirs = (other.high - high).exp()
        total = ours * self.total + theirs * other.total
        value = _by_head(ours, self.value) + _by_head(theirs, other.value)
        return SoftmaxSums(high, total, value)

    def beside(self, others: Sequence[SoftmaxSums]) -> SoftmaxSums:
        """Of neurons that follow each other."""
        columns = zip(self, *others, strict=True)
        return (
            SoftmaxSums(*(torch.cat(column, -2) for column in columns))
            if others
            else self
        )

    def mean(self) -> Tensor:
        """The values, weighted by the softmax, (*batch, n, width); 0 where nothing was
        seen."""
        seen = self.total > 0
        return _by_head(seen / torch.where(seen, self.total, 1), self.value)


class RelationalLayer(GraphLayer):
    """One round of relational attention (Diao & Loynd 2023, Eq. 5 to 14) with modulated
    values.

    For neuron i and what it sees, edge e to or from neuron j (each direction with its
    own weights):

    query      W v_i + W e
    key        W v_j + W e
    value      (W_scale e) * (W v_j) + W_shift e       (Kofinas et al. 2024, Eq. 5)
    nodes      u = norm(v + linear(attention)), norm(u + mlp(u))
    edges      u = norm(e + linear(relu(linear([v_target, e, v_source])))), norm(u + mlp(u))

    complete_up_to: in a graph of so many neurons each also sees every neuron, as along
    an edge
        without features. The edge update has no term of the reverse edge: there is
        none.
    edges: whether it has new edges, as in `PNALayer`.

    Shapes: nodes one (*batch, n, width) a group; edges (groups, n_target, n_source,
    tiles, *batch, width), of a part of a block.

    Raises ValueError if heads do not divide the width.
    """

    of_head: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        complete_up_to: int = 0,
        edges: bool = True,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"RelationalLayer: heads: expected a divisor of width {width}; got {heads}"
            )
        self.width, self.heads, self.complete_up_to = (
            width,
            heads,
            complete_up_to,
        )
        # products with it are faster than passes over the few columns of every head
        of_head = torch.eye(heads).repeat_interleave(width // heads, 1)
        self.register_buffer("of_head", of_head, persistent=False)
        # query, key, scale and shift, there and back
        self.edge_terms = nn.Linear(width, 8 * width)
        # query there; key and value back; the edge update
        self.target = nn.Linear(width, 4 * width)
        # key and value there; query back; the same
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
        self, edges: Tensor, ends: EndTerms, part: EdgeChunk
    ) -> tuple[SoftmaxSums, SoftmaxSums]:
        there, back = self._edge_terms(edges)
        query, key_back, value_back = (
            ends.of_target(part, self._columns(k)) for k in range(3)
        )
        key, value, query_back = (
            ends.of_source(part, self._columns(k)) for k in range(3)
        )
        return (
            self._attended(there, query, key, value, TO_TARGETS),
            self._attended(back, query_back, key_back, value_back, TO_SOURCES),
        )

    def next_edges(self, edges: Tensor, ends: EndTerms, part: EdgeChunk) -> Tensor:
        hidden = self.edge(edges).add_(ends.sums(part)).relu()
        return self.edge_mlp(self.edge_norm(edges + self.edge_out(hidden)))

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming[SoftmaxSums]]],
        outgoing: Sequence[Sequence[Incoming[SoftmaxSums]]],
        members: GraphIds,
    ) -> list[Tensor]:
        seen = [[*one, *other] for one, other in zip(incoming, outgoing, strict=True)]
        if self.complete_up_to:
            self._add_complete(nodes, members, seen)
        return [
            self._next_node(node, own) for node, own in zip(nodes, seen, strict=True)
        ]

    def _add_complete(
        self,
        nodes: Sequence[Tensor],
        members: GraphIds,
        seen: Sequence[list[Incoming[SoftmaxSums]]],
    ) -> None:
        """Adds what the neurons of small graphs see of all neurons."""
        if isinstance(members, Tensor):
            seen[0].append(self._complete_by_node(nodes[0], members))
        else:
            self._complete_by_group(nodes, members, seen)

    def _complete_by_group(
        self,
        nodes: Sequence[Tensor],
        members: Sequence[int],
        seen: Sequence[list[Incoming[SoftmaxSums]]],
    ) -> None:
        """The same, group by group."""
        for member in set(members):
            some = [i for i, own in enumerate(members) if own == member]
            sizes = [nodes[i].shape[-2] for i in some]
            if sum(sizes) > self.complete_up_to:
                continue
            found = self._all_to_all(torch.cat([nodes[i] for i in some], -2))
            columns = (x.split(sizes, -2) for x in found)
            for i, own in zip(some, zip(*columns, strict=True), strict=True):
                seen[i].append(Incoming(SoftmaxSums(*own), None))

    def _complete_by_node(
        self, nodes: Tensor, members: Tensor
    ) -> Incoming[SoftmaxSums]:
        """What the neurons of small graphs see of all of theirs. nodes: (n, width)."""
        index, is_node = padded(members, self.complete_up_to)
        found = self._all_to_all(nodes[index], is_node)
        return Incoming(SoftmaxSums(*(x[is_node] for x in found)), index[is_node])

    def _next_node(self, node: Tensor, seen: Sequence[Incoming[SoftmaxSums]]) -> Tensor:
        mean = _together(seen, node).mean() if seen else torch.zeros_like(node)
        return self.node_mlp(self.node_norm(node + self.out(mean)))

    def _edge_terms(self, edges: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """To query, key, scale and shift, there and back, (*, width) each.

        A product each: views of one would have gradients that are copied together, and
        strides.
        """
        weights = self.edge_terms.weight.chunk(8)
        biases = self.edge_terms.bias.chunk(8)
        found = [F.linear(edges, *both) for both in zip(weights, biases, strict=True)]
        return found[:4], found[4:]

    def _attended(
        self,
        terms: Sequence[Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        axes: tuple[int, int],
    ) -> SoftmaxSums:
        """terms: of the edges to query, key and value."""
        to_query, to_key, scale, shift = terms
        logits = self._logits(query + to_query, key + to_key)
        values = torch.addcmul(shift, scale, value)
        return SoftmaxSums.of(logits, values, axes, self.of_head)

    def _logits(self, query: Tensor, key: Tensor) -> Tensor:
        """(*, width) -> (*, heads)."""
        products = (query * key) @ self.of_head.T
        return products / sqrt(self.width / self.heads)

    def _all_to_all(self, nodes: Tensor, is_node: Tensor | None = None) -> SoftmaxSums:
        """What neurons see of all. nodes: (*batch, n, width). is_node: which of them
        are any, (*batch, n)."""
        terms = self.everywhere(nodes).unflatten(-1, (3, self.heads, -1))
        # (*batch, heads, n, d)
        query, key, value = (x.transpose(-3, -2) for x in terms.unbind(-3))
        logits = query @ key.mT / sqrt(query.shape[-1])
        if is_node is not None:
            is_hidden = ~is_node[..., None, None, :]
            logits = logits.masked_fill(is_hidden, UNSEEN)
        high = logits.detach().amax(-1, keepdim=True)
        weight = (logits - high).exp()
        found = high, weight.sum(-1, keepdim=True), weight @ value
        return SoftmaxSums(*(x.transpose(-3, -2).flatten(-2) for x in found))

    def _columns(self, number: int) -> slice:
        return slice(number * self.width, (number + 1) * self.width)


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
    heads = weight.shape[-1]
    return (weight.unsqueeze(-1) * value.unflatten(-1, (heads, -1))).flatten(-2)


def _together(parts: Sequence[Incoming[SoftmaxSums]], node: Tensor) -> SoftmaxSums:
    """What the neurons of a group see of all that several blocks bring."""
    if all(part.index is None for part in parts):
        return reduce(SoftmaxSums.joined, [part.messages for part in parts])
    n = node.shape[-2]
    index = joined_index(parts, n, node.device)
    columns = zip(*(part.messages for part in parts), strict=True)
    highs, totals, values = (torch.cat(column, -2) for column in columns)
    high = extremes(highs, index, n, "amax", UNSEEN)
    weight = (highs - high.index_select(-2, index)).exp()
    total = added(weight * totals, index, n)
    return SoftmaxSums(high, total, added(_by_head(weight, values), index, n))


def padded(members: Tensor, up_to: int) -> tuple[Tensor, Tensor]:
    """The nodes of the graphs that have no more than so many, a graph a row.

    members: which graph every node is of, (n,).

    Returns numbers of nodes (graphs, most), and which of these are nodes, bool; others
    are 0.
    """
    counts = torch.bincount(members)
    starts = counts.cumsum(0) - counts
    is_small = counts <= up_to
    some = counts[is_small].unsqueeze(1)
    most = int(some.max()) if len(some) else 0
    column = torch.arange(most, device=members.device)
    is_node = column < some
    order = members.argsort(stable=True)
    place = torch.where(is_node, starts[is_small].unsqueeze(1) + column, 0)
    return torch.where(is_node, order[place], 0), is_node
