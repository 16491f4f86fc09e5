"""NGOptimizer.

`optimizer` has the class, `binding` its graph and update rule, `graph_source` the ways
to the graph, `graph_parameters` what a rule needs of the parameters.
"""

from ngopt.optimizer.optimizer import NGOptimizer

__all__ = ["NGOptimizer"]
