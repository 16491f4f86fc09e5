"""One rule for every kind of function with weights: what it adds to the neural graph."""

from ngopt.graph.rules import (
    complex_numbers,
    convolutions,
    einsum,
    entries,
    entrywise,
    layers,
    norms,
    parameters,
    picked,
    pools,
    products,
    recurrent,
    writes,
)
from ngopt.graph.rules.registry import RULES, register_rule

__all__ = [
    "RULES",
    "complex_numbers",
    "convolutions",
    "einsum",
    "entries",
    "entrywise",
    "layers",
    "norms",
    "parameters",
    "picked",
    "pools",
    "products",
    "recurrent",
    "register_rule",
    "writes",
]
