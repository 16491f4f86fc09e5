"""NG-GNN: PNA with FiLM messages and edge updates on the blocks of a neural graph
(Kofinas et al. 2024, section 3, Eq. 3 and 4).

Departures from the paper's description: messages flow both ways along every edge, each
way with its own weights and aggregation, instead of transposed features on the edges;
nodes and edges have residual connections, and nodes a LayerNorm; positions are those of
`node_positions`.
"""

from dataclasses import dataclass

from ngopt.metanets.graph_metanet import MessagePassingConfig, MessagePassingMetanet
from ngopt.metanets.layers.pna import PNALayer


@dataclass(frozen=True)
class GNNConfig(MessagePassingConfig):
    """log_degree: the constant of the amplification scaler (Corso et al. 2020, Eq. 5).
    Theirs is the mean of log(degree + 1) over the training graphs, which is 2.4 to 3.4
    on our networks of meta-training; 4.0 was chosen, and is part of the weights. Others
    as in `MessagePassingConfig`.
    """

    log_degree: float = 4.0


class NeuralGraphGNN(MessagePassingMetanet):
    """The metanet "ng-gnn": the FF's context is the output of a GNN."""

    name = "ng-gnn"
    config: GNNConfig
    Config = GNNConfig
    network_name = "gnn"

    def layer(self) -> PNALayer:
        return PNALayer(self.config.width, self.config.log_degree)
