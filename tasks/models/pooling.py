"""Pooling of the node states of a graph to one vector."""

from collections.abc import Iterable, Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from ngopt.graph import NeuralGraph


class AttentionPooling(nn.Module):
    """Attention-weighted means of all nodes, by learned queries, and the states of the
    output nodes.

    The output states are concatenated, as in the papers, if all networks have the same
    number of outputs; else averaged.

    outputs: that number, or None.

    Shapes: states (*batch, n, width), one per group -> (*batch, `size`).
    Raises ValueError for a network with another number of outputs.
    """

    def __init__(self, width: int, queries: int, outputs: int | None):
        super().__init__()
        self.queries = nn.Linear(width, queries, bias=False)
        self.outputs = outputs
        self.size = (queries + (outputs or 1)) * width

    def forward(self, states: Sequence[Tensor], graph: NeuralGraph) -> Tensor:
        nodes = torch.cat(list(states), -2)
        weights = (self.queries(nodes) / sqrt(nodes.shape[-1])).softmax(-2)
        means = weights.mT @ nodes  # (*batch, queries, width)
        output_states = [
            state
            for state, group in zip(states, graph.groups, strict=True)
            if group.role == "output"
        ]
        output = torch.cat(output_states, -2)
        count = output.shape[-2]
        if self.outputs not in (None, count):
            raise ValueError(
                f"pooling: expected networks of {self.outputs} outputs, "
                f"as in training; got {count}"
            )
        pooled = output.mean(-2) if self.outputs is None else output.flatten(-2)
        return torch.cat([means.flatten(-2), pooled], -1)


def common_outputs(graphs: Iterable[NeuralGraph]) -> int | None:
    """The number of outputs if it is the same in all graphs, else None."""
    counts = {
        sum(group.size for group in graph.groups if group.role == "output")
        for graph in graphs
    }
    return counts.pop() if len(counts) == 1 else None
