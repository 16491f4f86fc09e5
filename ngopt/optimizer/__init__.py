"""NGOptimizer, and what it is made of: arguments, groups, graph wiring, state dicts."""

from ngopt.optimizer.optimizer import NGOptimizer

__all__ = ["NGOptimizer"]
