"""Base class of message passing layers."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import linear

from ngopt.metanets.graph_data.graph_tensors import BlockTensors, EdgeChunk, GraphIds
from ngopt.metanets.layers.aggregation import Aggregate, Incoming


class EndTerms(NamedTuple):
    """Linear maps of the nodes at both ends of the edges of a block.

    Attributes:
        target: `(groups, n_target, *batch, columns)`.
        source: `(groups, n_source, *batch, columns)`.
    """

    target: Tensor
    source: Tensor

    def at_ends(self, chunk: EdgeChunk) -> tuple[Tensor, Tensor]:
        """Of the targets of a chunk, `(groups, n_target, 1, 1, *batch, columns)`, and
        of its sources, `(groups, 1, n_source, 1, *batch, columns)`."""
        target = self.target[chunk.groups, chunk.targets, None, None]
        source = self.source[chunk.groups, None, chunk.sources, None]
        return target, source


class GraphLayer(nn.Module):
    """Base class of a round of messages along edges: new nodes and new edges, chunk by
    chunk.

    Shapes: nodes `(*batch, n, width)` of each group; edges `(groups, n_target,
    n_source, tiles, *batch, width)`, of a chunk.

    Attributes:
        target, source: Linear maps of the nodes at the ends of edges. The last `width`
            outputs are for new edges, the others for messages.
    """

    width: int
    target: nn.Linear
    source: nn.Linear

    def end_terms(
        self, nodes: Sequence[Tensor], columns: slice, blocks: Sequence[BlockTensors]
    ) -> list[EndTerms]:
        """Some columns of the terms of the nodes at the ends of every block."""
        targets: dict[int, Tensor] = {}  # by group
        sources: dict[int, Tensor] = {}
        terms = []
        for block in blocks:
            i = block.block.target
            j = block.block.source
            if i not in targets:
                targets[i] = _some_outputs(self.target, nodes[i], columns)
            if j not in sources:
                sources[j] = _some_outputs(self.source, nodes[j], columns)
            g, t, s = block.block.shape
            target = select_neurons(targets[i], block.target).unflatten(-2, (g, t))
            source = select_neurons(sources[j], block.source).unflatten(-2, (g, s))
            terms.append(EndTerms(batch_inside(target, 2), batch_inside(source, 2)))
        return terms

    def messages(
        self, edges: Tensor, terms: EndTerms, chunk: EdgeChunk
    ) -> tuple[Aggregate, Aggregate]:
        """The messages of a chunk, aggregated at its targets and at its sources."""
        raise NotImplementedError

    def next_edges(self, edges: Tensor, terms: EndTerms, chunk: EdgeChunk) -> Tensor:
        """The edges of a chunk after this layer."""
        raise NotImplementedError

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Sequence[Incoming]],
        graph_ids: GraphIds,
    ) -> list[Tensor]:
        """The nodes after this layer, from the messages to each group.

        Args:
            incoming: Along edges to the group.
            outgoing: Back along edges from the group.
            graph_ids: See `GraphTensors`.
        """
        raise NotImplementedError


def batch_inside(values: Tensor, axes: int) -> Tensor:
    """`(*batch, *axes, width)` -> `(*axes, *batch, width)`, in this order of memory.

    Args:
        axes: Their number. Broadcasts and reductions over edges then run over long
            rows.
    """
    batch = list(range(values.dim() - axes - 1))
    if not batch:
        return values
    return values.movedim(batch, list(range(axes, axes + len(batch)))).contiguous()


def flat_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(*, d_in) -> (*, d_out), on accelerators by one kernel that adds the bias. torch
    adds it in the product only for one or two axes before the last; elsewhere that is
    another pass over the result."""
    if x.is_cpu:
        return linear(x, weight, bias)
    return linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


def _some_outputs(layer: nn.Linear, x: Tensor, columns: slice) -> Tensor:
    bias = None if layer.bias is None else layer.bias[columns]
    return linear(x, layer.weight[columns], bias)


def select_neurons(nodes: Tensor, index: Tensor | None) -> Tensor:
    """Rows `(*batch, n, width)` of an index; all without one."""
    return nodes if index is None else nodes.index_select(-2, index)
