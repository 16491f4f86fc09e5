"""One vector for a whole graph, from the states of its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from ngopt.graph import NeuralGraph


class Pooling(nn.Module):
    """Means of nodes that several learned queries attend to, and the mean of the outputs.

    A departure from the papers' concatenated output nodes,
    so that all depths and widths can be read.

    Shapes: states (*batch, n, width), one a group -> (*batch, `size`).
    """

    def __init__(self, width: int, queries: int):
        super().__init__()
        self.queries = nn.Linear(width, queries, bias=False)
        self.size = (queries + 1) * width

    def forward(self, states: Sequence[Tensor], graph: NeuralGraph) -> Tensor:
        nodes = torch.cat(list(states), -2)
        weights = (self.queries(nodes) / sqrt(nodes.shape[-1])).softmax(-2)
        seen = weights.mT @ nodes  # (*batch, queries, width)
        rows = zip(states, graph.groups, strict=True)
        outputs = torch.cat(
            [state for state, group in rows if group.role == "output"], -2
        )
        return torch.cat([seen.flatten(-2), outputs.mean(-2)], -1)
