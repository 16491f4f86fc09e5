"""What each parameter is for: roles, and the matrices that it holds."""

from ngopt.roles.from_graph import ParameterRole, parameter_roles
from ngopt.roles.logical_matrices import MatrixStack, matrices
from ngopt.roles.mup import mup_groups
from ngopt.roles.optimizer_groups import optimizer_groups

__all__ = [
    "MatrixStack",
    "ParameterRole",
    "matrices",
    "mup_groups",
    "optimizer_groups",
    "parameter_roles",
]
