"""NG-T: relational attention on the neural graph (Kofinas et al. 2024)."""

from ngopt.metanets.layers.attention import RelationalLayer
from ngopt.metanets.layers.graph_layer import GraphLayer
from tasks.models.graph_model import GraphModel, GraphModelConfig


class NGT(GraphModel):
    """The model "ng-t" (Eq. 5)."""

    name = "ng-t"

    def layer(self, config: GraphModelConfig, updates_edges: bool) -> GraphLayer:
        return RelationalLayer(
            config.width, config.heads, config.complete_up_to, updates_edges
        )
