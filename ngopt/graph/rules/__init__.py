"""One rule for every kind of function with weights: what it adds to the neural graph."""

from ngopt.graph.rules import (
    attention,
    bare_parameters,
    complex_numbers,
    convolutions,
    einsum,
    indexing,
    linear,
    norms,
    pointwise,
    recurrent,
    reductions,
    reshaping,
    writes,
)
from ngopt.graph.rules.registry import RULES, register_rule

__all__ = [
    "RULES",
    "attention",
    "bare_parameters",
    "complex_numbers",
    "convolutions",
    "einsum",
    "indexing",
    "linear",
    "norms",
    "pointwise",
    "recurrent",
    "reductions",
    "register_rule",
    "reshaping",
    "writes",
]
