"""NG-GNN: message passing with PNA layers on the neural graph (Kofinas et al. 2024)."""

from ngopt.metanets.layers.graph_layer import GraphLayer
from ngopt.metanets.layers.pna import PNALayer
from tasks.models.graph_model import GraphModel, GraphModelConfig


class NGGNN(GraphModel):
    """The model "ng-gnn" (section 3, Eq. 3 and 4)."""

    name = "ng-gnn"

    def layer(self, config: GraphModelConfig, updates_edges: bool) -> GraphLayer:
        return PNALayer(config.width, config.log_degree, updates_edges)
