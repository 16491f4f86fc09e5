"""NG-GNN: PNA with FiLM messages and edge updates on the blocks of a neural graph
(Kofinas et al. 2024, section 3).

Departures from the paper's description: messages flow both ways along every edge, each
way with its own weights and aggregation, instead of transposed features on the edges;
nodes and edges have residual connections, and nodes a LayerNorm; positions are those of
`encoders.node_positions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.graph_data.context_writer import Place
from ngopt.metanets.graph_data.feature_sources import FeatureSource
from ngopt.metanets.graph_data.graph_tensors import GraphTensors
from ngopt.metanets.graph_metanet import GraphMetanet, GraphMetanetConfig
from ngopt.metanets.layers.graph_network import GraphNetwork
from ngopt.metanets.layers.pna import PNALayer


@dataclass(frozen=True)
class GNNConfig(GraphMetanetConfig):
    """width: features of nodes, edges and messages. layers: of message passing.

    log_degree: the constant of the amplification scaler (Corso et al. 2020, Eq. 5).
    Theirs is the mean of log(degree + 1) over the training graphs, which is 2.4 to 3.4
    on our networks of meta-training; 4.0 was chosen, and is part of the weights. Others
    as in `GraphMetanetConfig`.
    """

    width: int = 32
    layers: int = 2
    log_degree: float = 4.0


class NeuralGraphGNN(GraphMetanet):
    """The metanet "ng-gnn": features go through the GNN; the FF sees them and the GNN's
    output.

    Values that are not finite do not enter the messages:
    they stay with the parameter they belong to.

    Shapes: features (*batch, numel, 14), in the order of `NeuralGraph.flatten` ->
    (*batch, numel).
    """

    name = "ng-gnn"
    Config = GNNConfig

    def __init__(self, config: GNNConfig | None = None):
        config = config or GNNConfig()
        super().__init__(config)
        layers = [
            PNALayer(config.width, config.log_degree) for _ in range(config.layers)
        ]
        self.gnn = GraphNetwork(
            NUM_FEATURES, config.d_out, config.width, layers, config.kernel
        )

    def pieces(
        self, source: FeatureSource, parts: GraphTensors
    ) -> Iterator[tuple[Place, Tensor]]:
        return self.gnn.pieces(source, parts)
