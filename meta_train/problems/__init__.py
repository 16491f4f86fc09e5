"""Problems on which optimizers are meta-trained and compared.

A problem is an object with the methods of `Problem`. On the command line a user's
problem is `module:factory`, where the factory takes no arguments.
"""

import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import chain
from typing import Any

from meta_train.problems.catalogue import LISTS, PROBLEMS
from meta_train.problems.protocol import Metrics, Problem, mean_metrics
from ngopt.importing import load_object

__all__ = [
    "LISTS",
    "PROBLEMS",
    "Metrics",
    "Problem",
    "load_problem",
    "mean_metrics",
    "problem_names",
]


MOST_NAMES = 3  # in messages
REQUIRED = ("name", "steps", "init", "batch", "loss", "evaluate")
"""Of a `Problem`."""


def problem_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of problems, each once; names of `LISTS` are replaced by their problems."""
    problems = chain.from_iterable(LISTS.get(name, (name,)) for name in names)
    return tuple(dict.fromkeys(problems))


def load_problem(name: str) -> Problem:
    """The problem of `PROBLEMS`, or the result of the factory `module:factory`.

    Raises ValueError if there is neither, or if the factory needs arguments or returns
    something else. Errors of the factory itself are raised as they are.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]
    if ":" in name:
        return _from_factory(name)
    if name in LISTS:
        problems = LISTS[name]
        raise ValueError(
            f"problem '{name}': expected one problem; got a list of {len(problems)}. "
            f"Pass names of problems: {', '.join(problems[:MOST_NAMES])}, ..."
        )
    nearest = get_close_matches(name, PROBLEMS, n=5, cutoff=0.4)
    raise ValueError(
        f"problem '{name}': expected a known name or module:factory. "
        + (f"Nearest: {', '.join(nearest)}. " if nearest else "")
        + "All names: python -m meta_train.problems --names"
    )


def _from_factory(path: str) -> Problem:
    """The result of the factory "module:factory"."""
    try:
        factory = load_object(path)
    except ValueError as error:
        raise ValueError(f"problem '{path}': {error}") from error
    if not callable(factory):
        raise ValueError(
            f"problem '{path}': expected a function or class without arguments; got "
            f"{factory!r}"
        )
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ValueError(
            f"problem '{path}': expected a factory without arguments; got one with a "
            f"{str(error).removeprefix('missing a ')}. Wrap it in a function without "
            "arguments."
        ) from error
    problem: Any = factory()
    missing = [name for name in REQUIRED if not hasattr(problem, name)]
    if missing:
        got = f"{type(problem).__name__} without {', '.join(missing)}"
        raise ValueError(
            f"problem '{path}': expected an object with {', '.join(REQUIRED)}; got "
            f"{repr(problem) if len(missing) == len(REQUIRED) else got}. See 'Add a "
            "problem' in docs/extending.md."
        )
    return problem
