"""ngopt: a torch optimizer without a learning rate to tune, and graphs of networks.

Nothing in the default is learned. Bundled research weights are learned optimizers.
"""

from ngopt.audit import audit
from ngopt.blockwise import BlockwiseOptimizer
from ngopt.functional import UpdateRule
from ngopt.graph import NeuralGraph, build_graph, register_layer_rule
from ngopt.metanets import Metanet
from ngopt.optimizer import NGOptimizer
from ngopt.pretrained import list_pretrained, load_pretrained, save_pretrained
from ngopt.roles import matrices, mup_groups, optimizer_groups, parameter_roles
from ngopt.soap.config import SoapConfig

__version__ = "1.0.0rc1"

__all__ = [
    "BlockwiseOptimizer",
    "Metanet",
    "NGOptimizer",
    "NeuralGraph",
    "SoapConfig",
    "UpdateRule",
    "audit",
    "build_graph",
    "list_pretrained",
    "load_pretrained",
    "matrices",
    "mup_groups",
    "optimizer_groups",
    "parameter_roles",
    "register_layer_rule",
    "save_pretrained",
]
