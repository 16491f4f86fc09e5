"""Update rules by name: the default, bundled weights, and weights files."""

from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from ngopt.pretrained.weights_file import (
    as_rule,
    header_of,
    list_pretrained,
    load_pretrained,
    save_pretrained,
    weights_hash,
)

__all__ = [
    "LearnedOptimizer",
    "as_rule",
    "header_of",
    "list_pretrained",
    "load_pretrained",
    "save_pretrained",
    "weights_hash",
]
