"""NGOptimizer.

A step is made by `optimizer` (the class), `param_groups` (checks of settings) and
`binding` (the parameters in their graph, and the rule that updates them). The graph is
from `graph_source`.
"""

from ngopt.optimizer.optimizer import NGOptimizer

__all__ = ["NGOptimizer"]
