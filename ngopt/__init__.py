"""ngopt: a torch optimizer without a learning rate to tune, and graphs of networks.

Nothing in the default is learned. Bundled research weights are learned optimizers.
"""

from ngopt.graph import NeuralGraph, build_graph, register_rule
from ngopt.optimizer import NGOptimizer
from ngopt.pretrained import list_pretrained, load_pretrained
from ngopt.roles import parameter_roles

__version__ = "0.1.0"

__all__ = [
    "NGOptimizer",
    "NeuralGraph",
    "build_graph",
    "list_pretrained",
    "load_pretrained",
    "parameter_roles",
    "register_rule",
]
