"""Neural graphs: networks as groups of neurons and blocks of edges."""

from ngopt.graph.activation_symmetry import Canonical, canonical, symmetries
from ngopt.graph.build import build_graph
from ngopt.graph.drawing.draw import draw
from ngopt.graph.groups_and_blocks import Bias, EdgeBlock, NeuronGroup, ParameterSpec
from ngopt.graph.neural_graph import GraphValues, NeuralGraph
from ngopt.graph.rules.registry import register_layer_rule
from ngopt.graph.tracing.capture import Inputs
from ngopt.graph.tracing.values import Neurons
from ngopt.graph.transforms import join_graphs
from ngopt.graph.views.edge_list import EdgeList, to_edge_list
from ngopt.graph.views.networkx_and_pyg import to_networkx, to_pyg
from ngopt.graph.views.parameter_graph import parameter_graph

__all__ = [
    "Bias",
    "Canonical",
    "EdgeBlock",
    "EdgeList",
    "GraphValues",
    "Inputs",
    "NeuralGraph",
    "NeuronGroup",
    "Neurons",
    "ParameterSpec",
    "build_graph",
    "canonical",
    "draw",
    "join_graphs",
    "parameter_graph",
    "register_layer_rule",
    "symmetries",
    "to_edge_list",
    "to_networkx",
    "to_pyg",
]
