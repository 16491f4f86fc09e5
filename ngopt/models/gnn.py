"""NG-GNN: PNA with FiLM messages and edge updates on the blocks of a neural graph (Kofinas et al. 2024, section 3).

Departures from the paper's description: messages flow both ways along every edge, each way with its
own weights and aggregation, instead of transposed features on the edges; nodes and edges have
residual connections, and nodes a LayerNorm; positions are those of `encoders.node_positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ngopt.features import NUM_FEATURES
from ngopt.graph.core import NeuralGraph
from ngopt.models.feedforward import FeedForward, UpdateMLP
from ngopt.models.graph_network import GraphNetwork, Scattered
from ngopt.models.metanet import Metanet
from ngopt.models.parts import GraphParts, parts_of
from ngopt.models.sources import Source


@dataclass(frozen=True)
class GNNConfig:
    """width: features of nodes, edges and messages. layers: of message passing.

    d_out: features that the GNN gives the FF for each parameter. kernel: largest (height, width) of
    a kernel on one edge. log_degree: mean of log(degree + 1) over the graphs of meta-training, the
    constant of the amplification scaler (Corso et al. 2020, Eq. 5). graph_every: steps of an
    optimizer between two looks at the graph. hidden, output_scale,
    magnitude_scale, nominal_step: as in `FeedForwardConfig`.
    """

    width: int = 32
    layers: int = 2
    d_out: int = 8
    kernel: tuple[int, int] = (3, 3)
    log_degree: float = 4.0
    graph_every: int = 1
    hidden: tuple[int, ...] = (32, 32)
    output_scale: float = 0.01
    magnitude_scale: float = 0.001
    nominal_step: float = 1e-3


class NeuralGraphGNN(Metanet):
    """The metanet "ng-gnn": features go through the GNN; the FF sees them and the GNN's output.

    Values that are not finite do not enter the messages: they stay with the parameter they belong to.

    Shapes: features (*batch, numel, 14), in the order of `NeuralGraph.flatten` -> (*batch, numel).
    """

    name = "ng-gnn"
    Config = GNNConfig

    def __init__(self, config: GNNConfig | None = None):
        config = config or GNNConfig()
        super().__init__(config)
        self.gnn = GraphNetwork(
            NUM_FEATURES, config.d_out, config.width, config.layers, config.kernel, config.log_degree
        )
        scales = config.output_scale, config.magnitude_scale
        self.head = UpdateMLP(NUM_FEATURES, config.hidden, *scales, d_context=config.d_out)

    @classmethod
    def from_feedforward(cls, feedforward: FeedForward) -> NeuralGraphGNN:
        """An NG-GNN that predicts what the FF predicts: its head ignores the GNN's output at first."""
        old = feedforward.config
        metanet = cls(
            GNNConfig(
                hidden=old.hidden,
                output_scale=old.output_scale,
                magnitude_scale=old.magnitude_scale,
                nominal_step=old.nominal_step,
            )
        )
        state = feedforward.head.state_dict()
        first = state["layers.0.weight"]  # (hidden, 14)
        state["layers.0.weight"] = torch.cat([first, first.new_zeros(len(first), metanet.config.d_out)], dim=1)
        metanet.head.load_state_dict(state)
        return metanet

    @property
    def graph_every(self) -> int:
        return self.config.graph_every

    @property
    def d_context(self) -> int:
        return self.config.d_out

    def parts(self, graph: NeuralGraph, like: Tensor, limit: int | None = None) -> GraphParts:
        return parts_of(graph, self.config.kernel, like, limit)

    def context(
        self,
        source: Source,
        parts: GraphParts,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        found = Scattered(parts, source.batch, out)
        for place, values in self.gnn.pieces(source, parts):
            found.put(place, values)
        return found.all()

    def updates(self, features: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        return self.head(features, context)
