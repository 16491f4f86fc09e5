"""One round of messages along the edges of a neural graph: the interface of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import linear

from ngopt.metanets.graph_data.graph_tensors import BlockTensors, EdgeChunk, GraphIds
from ngopt.metanets.layers.aggregation import Aggregate, Incoming


class EndTerms(NamedTuple):
    """What the two ends of the edges of a block bring to a layer.

    target: (groups, n_target, *batch, columns). source: (groups, n_source, *batch,
    columns).
    """

    target: Tensor
    source: Tensor

    def of_target(self, part: EdgeChunk, columns: slice) -> Tensor:
        """(groups, n_target, 1, 1, *batch, columns)."""
        return self.target[part.groups, part.targets, None, None, ..., columns]

    def of_source(self, part: EdgeChunk, columns: slice) -> Tensor:
        """(groups, 1, n_source, 1, *batch, columns)."""
        return self.source[part.groups, None, part.sources, None, ..., columns]

    def sums(self, part: EdgeChunk) -> Tensor:
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

    def message_terms(
        self, nodes: Sequence[Tensor], blocks: Sequence[BlockTensors]
    ) -> list[EndTerms]:
        """What the nodes bring to the messages of every block."""
        return self._ends(nodes, blocks, slice(0, -self.width))

    def edge_update_terms(
        self, nodes: Sequence[Tensor], blocks: Sequence[BlockTensors]
    ) -> list[EndTerms]:
        """What the nodes bring to the new edges of every block."""
        return self._ends(nodes, blocks, slice(-self.width, None))

    def _ends(
        self,
        nodes: Sequence[Tensor],
        blocks: Sequence[BlockTensors],
        columns: slice,
    ) -> list[EndTerms]:
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
            found.append(EndTerms(*(batch_inside(x, axes=2) for x in pairs)))
        return found

    def messages(
        self, edges: Tensor, ends: EndTerms, part: EdgeChunk
    ) -> tuple[Aggregate, Aggregate]:
        """What the messages of a part bring to its targets and to its sources."""
        raise NotImplementedError

    def next_edges(self, edges: Tensor, ends: EndTerms, part: EdgeChunk) -> Tensor:
        """The edges of a part after this layer."""
        raise NotImplementedError

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Sequence[Incoming]],
        members: GraphIds,
    ) -> list[Tensor]:
        """The nodes after this layer, from what reaches each group from both sides.

        members: see `GraphTensors`.
        """
        raise NotImplementedError


def _some_columns(layer: nn.Linear, x: Tensor, columns: slice) -> Tensor:
    """Some outputs of a linear layer."""
    bias = None if layer.bias is None else layer.bias[columns]
    return linear(x, layer.weight[columns], bias)


def select_neurons(nodes: Tensor, index: Tensor | None) -> Tensor:
    """(*batch, n, width) -> the rows that a block names."""
    return nodes if index is None else nodes.index_select(-2, index)
