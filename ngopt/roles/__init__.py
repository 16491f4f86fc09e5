"""What each parameter is for: roles, and the matrices that it holds."""

from ngopt.roles.from_graph import ParameterRole
from ngopt.roles.from_module import parameter_roles
from ngopt.roles.mup import mup_groups

__all__ = ["ParameterRole", "mup_groups", "parameter_roles"]
