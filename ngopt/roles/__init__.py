"""What each parameter is for: roles, and the matrices that it holds."""

from ngopt.roles.from_graph import ParameterRole
from ngopt.roles.from_module import parameter_roles

__all__ = ["ParameterRole", "parameter_roles"]
