"""NG-T: a relational transformer on the blocks of a neural graph (Kofinas et al. 2024,
section 3; Diao & Loynd 2023).

Departures from the paper's description: neurons attend along the edges that exist, both
ways, so that the cost is linear in the parameters, and to all neurons only in small
networks; positions are those of `encoders.node_positions`.
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
from ngopt.metanets.layers.attention import RelationalLayer
from ngopt.metanets.layers.graph_network import GraphNetwork


@dataclass(frozen=True)
class TransformerConfig(GraphMetanetConfig):
    """width: features of nodes and edges. layers: of attention. heads: of each, a
    divisor of width.

    complete_up_to: networks of so many neurons are fully connected: all neurons attend
    to all. Others as in `GraphMetanetConfig`.
    """

    width: int = 32
    layers: int = 2
    heads: int = 4
    complete_up_to: int = 1024


class NeuralGraphTransformer(GraphMetanet):
    """The metanet "ng-t": features go through the transformer; the FF sees them and its
    output.

    Values that are not finite do not enter the attention:
    they stay with the parameter they belong to.

    Shapes: features (*batch, numel, 14), in the order of `NeuralGraph.flatten` ->
    (*batch, numel).
    """

    name = "ng-t"
    Config = TransformerConfig

    def __init__(self, config: TransformerConfig | None = None):
        config = config or TransformerConfig()
        super().__init__(config)
        layers = [
            RelationalLayer(config.width, config.heads, config.complete_up_to)
            for _ in range(config.layers)
        ]
        self.transformer = GraphNetwork(
            NUM_FEATURES, config.d_out, config.width, layers, config.kernel
        )

    def pieces(
        self, source: FeatureSource, parts: GraphTensors
    ) -> Iterator[tuple[Place, Tensor]]:
        return self.transformer.pieces(source, parts)
