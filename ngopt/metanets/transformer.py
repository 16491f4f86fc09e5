"""NG-T: a relational transformer on the blocks of a neural graph (Kofinas et al. 2024,
section 3, Eq. 5; Diao & Loynd 2023).

Departures from the paper's description: neurons attend along the edges that exist, both
ways, so that the cost is linear in the parameters, and to all neurons only in small
networks; positions are those of `node_positions`.
"""

from dataclasses import dataclass

from ngopt.metanets.graph_metanet import MessagePassingConfig, MessagePassingMetanet
from ngopt.metanets.layers.attention import RelationalLayer


@dataclass(frozen=True)
class TransformerConfig(MessagePassingConfig):
    """heads: of each layer, a divisor of width.

    Attributes:
        complete_up_to: In networks of at most this many neurons, all attend to all.
            Others as in `MessagePassingConfig`.
    """

    heads: int = 4
    complete_up_to: int = 1024


class NeuralGraphTransformer(MessagePassingMetanet):
    """The metanet "ng-t": the FF's context is the output of a transformer."""

    name = "ng-t"
    config: TransformerConfig
    Config = TransformerConfig
    network_name = "transformer"

    def layer(self) -> RelationalLayer:
        c = self.config
        return RelationalLayer(c.width, c.heads, c.complete_up_to)
