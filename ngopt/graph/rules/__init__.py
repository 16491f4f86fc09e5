"""One rule for every kind of function with weights: what it adds to the neural graph."""

from ngopt.graph.rules import (
    complex_numbers,
    einsum,
    entries,
    entrywise,
    layers,
    maps,
    norms,
    parameters,
    picked,
    products,
    recurrent,
    reductions,
    writes,
)
from ngopt.graph.rules.registry import RULES, register_rule

__all__ = [
    "RULES",
    "complex_numbers",
    "einsum",
    "entries",
    "entrywise",
    "layers",
    "maps",
    "norms",
    "parameters",
    "picked",
    "products",
    "recurrent",
    "reductions",
    "register_rule",
    "writes",
]
