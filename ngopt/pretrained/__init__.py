"""Weights of learned optimizers: bundled ones, and weights files."""

from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from ngopt.pretrained.weights_file import (
    as_learned,
    has_hash,
    list_pretrained,
    load_pretrained,
    save_pretrained,
    weights_hash,
)

__all__ = [
    "LearnedOptimizer",
    "as_learned",
    "has_hash",
    "list_pretrained",
    "load_pretrained",
    "save_pretrained",
    "weights_hash",
]
