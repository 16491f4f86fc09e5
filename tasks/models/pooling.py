"""One vector for a whole graph, from the states of its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from ngopt.graph import NeuralGraph


class AttentionPooling(nn.Module):
    """Means of nodes that several learned queries attend to, and the outputs.

    These one after the other, as in the papers, where all networks have as many; else
    their mean.

    outputs: how many all have; None where that differs.

    Shapes: states (*batch, n, width), one a group -> (*batch, `size`).
    Raises ValueError for a network of another number of outputs.
    """

    def __init__(self, width: int, queries: int, outputs: int | None):
        super().__init__()
        self.queries = nn.Linear(width, queries, bias=False)
        self.outputs = outputs
        self.size = (queries + (outputs or 1)) * width

    def forward(self, states: Sequence[Tensor], graph: NeuralGraph) -> Tensor:
        nodes = torch.cat(list(states), -2)
        weights = (self.queries(nodes) / sqrt(nodes.shape[-1])).softmax(-2)
        seen = weights.mT @ nodes  # (*batch, queries, width)
        rows = zip(states, graph.groups, strict=True)
        outputs = [state for state, group in rows if group.role == "output"]
        told = self._told(torch.cat(outputs, -2))
        return torch.cat([seen.flatten(-2), told], -1)

    def _told(self, outputs: Tensor) -> Tensor:
        """What the outputs' nodes say."""
        if self.outputs is None:
            return outputs.mean(-2)
        count = outputs.shape[-2]
        if count != self.outputs:
            raise ValueError(
                f"expected networks of {self.outputs} outputs, as those before; got {count}"
            )
        return outputs.flatten(-2)


def common_outputs(graphs: Iterable[NeuralGraph]) -> int | None:
    """How many outputs all graphs have; None where that differs."""
    counts = {
        sum(group.size for group in graph.groups if group.role == "output")
        for graph in graphs
    }
    return counts.pop() if len(counts) == 1 else None
