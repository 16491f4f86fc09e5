"""Problems on which optimizers are meta-trained and compared.

A problem is an object with the methods of `Problem`. On the command line a user's
problem is `module:factory`, where the factory takes no arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from meta_train.problems.catalogue import (
    DEVELOPMENT,
    LISTS,
    META_TEST,
    META_TRAINING,
    META_VALIDATION,
    PAPER,
    PROBLEMS,
)
from meta_train.problems.protocol import Metrics, Problem, mean_metrics
from meta_train.problems.situations import SITUATIONS

__all__ = [
    "DEVELOPMENT",
    "LISTS",
    "META_TEST",
    "META_TRAINING",
    "META_VALIDATION",
    "PAPER",
    "PROBLEMS",
    "SITUATIONS",
    "Metrics",
    "Problem",
    "load_problem",
    "mean_metrics",
    "problem_names",
]


def problem_names(given: Iterable[str]) -> tuple[str, ...]:
    """Names of problems, each once; names of `LISTS` are replaced by their problems."""
    names = []
    for name in given:
        names.extend(LISTS.get(name, (name,)))
    return tuple(dict.fromkeys(names))


def load_problem(name: str) -> Problem:
    """The problem with this name, or the result of the factory `module:factory`.

    Names are keys of `PROBLEMS`, `SITUATIONS` and `META_TRAINING`.

    Raises ValueError if there is neither.
    """
    known: dict[str, Problem] = {**PROBLEMS, **SITUATIONS, **META_TRAINING}
    if name in known:
        return known[name]
    module, separator, factory = name.partition(":")
    try:
        if separator:
            return getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"problem '{name}': {error}") from error
    raise ValueError(
        f"problem '{name}': expected one of {', '.join(known)}, or 'module:factory'"
    )
