"""Problems: what optimizers are meta-trained and compared on.

A problem is anything with the methods of `Problem`; users give theirs on the command
line as `module:factory`, where the factory takes no arguments.
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
    """Names of problems, each once, with those of `LISTS` among them written out."""
    found = [name for one in given for name in LISTS.get(one, (one,))]
    return tuple(dict.fromkeys(found))


def load_problem(name: str) -> Problem:
    """A problem by its name in `PROBLEMS`, `SITUATIONS` or `META_TRAINING`,
    or made by the factory that `module:factory` names.

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
