"""NG-GNN and NG-T (Kofinas et al. 2024) that predict a step size from a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from meta_train.step_size.graph_batches import KERNEL, Batch
from ngopt.base.step_predictor import MAX_LOG2
from ngopt.metanets.layers.aggregation import scatter_extreme, scatter_sum
from ngopt.metanets.layers.attention import RelationalLayer
from ngopt.metanets.layers.graph_layer import GraphLayer
from ngopt.metanets.layers.graph_network import GraphNetwork, GraphNetworkOptions
from ngopt.metanets.layers.pna import PNALayer


@dataclass(frozen=True)
class Sizes:
    """Of a `GraphPredictor`. hidden: of its head."""

    layer: Literal["ng-gnn", "ng-t"] = "ng-gnn"
    width: int = 8
    layers: int = 2
    heads: int = 4
    hidden: int = 16
    log_degree: float = 3.0


class GraphPredictor(nn.Module):
    """Maps networks to log2 multipliers of the step size.

    The states of neurons are averaged over each layer. Means and maxima over layers,
    with other features of the training, go through a head with one hidden layer. Its
    output is 0 initially, and within +-`MAX_LOG2`.

    d_in: features of an element. others: of a training.

    Shapes: a `Batch` of b networks and features (b, others) -> (b,).
    """

    def __init__(self, d_in: int, others: int, sizes: Sizes):
        super().__init__()
        layers: list[GraphLayer] = []
        for number in range(sizes.layers):
            updates_edges = number + 1 < sizes.layers
            if sizes.layer == "ng-gnn":
                layer = PNALayer(sizes.width, sizes.log_degree, updates_edges)
            else:
                layer = RelationalLayer(sizes.width, sizes.heads, edges=updates_edges)
            layers.append(layer)
        options = GraphNetworkOptions(activations=True)
        self.network = GraphNetwork(d_in, None, sizes.width, layers, KERNEL, options)
        self.norm = nn.LayerNorm(2 * sizes.width)
        self.hidden = nn.Linear(2 * sizes.width + others, sizes.hidden)
        self.out = nn.Linear(sizes.hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, batch: Batch, others: Tensor) -> Tensor:
        (nodes,), _ = self.network.states(batch, batch.tensors)
        pooled = self.norm(self.pooled(nodes, batch))
        hidden = torch.tanh(self.hidden(torch.cat([pooled, others], 1)))
        return MAX_LOG2 * torch.tanh(self.out(hidden).squeeze(1) / MAX_LOG2)

    def pooled(self, nodes: Tensor, batch: Batch) -> Tensor:
        """(b, 2 width) of all neurons (n, width)."""
        count = len(batch.group_sizes)
        sums = scatter_sum(nodes, batch.groups, count)
        means = sums / batch.group_sizes
        networks = len(batch.group_counts)
        total = scatter_sum(means, batch.networks, networks)
        largest = scatter_extreme(means, batch.networks, networks, "amax")
        return torch.cat([total / batch.group_counts, largest], 1)
