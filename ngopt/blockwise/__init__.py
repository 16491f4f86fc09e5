"""Any optimizer on the matrices inside parameters: `ngopt.BlockwiseOptimizer`."""

from ngopt.blockwise.optimizer import BlockwiseOptimizer

__all__ = ["BlockwiseOptimizer"]
