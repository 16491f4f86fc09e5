"""Which cases of a test always run."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick_first(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Cases of `pytest.mark.parametrize`; those that are not quick are thorough.

    values: a tuple has one value for each argument.
    """
    cases = []
    for value in values:
        marks = () if value in quick else pytest.mark.thorough
        arguments = value if isinstance(value, tuple) else (value,)
        cases.append(pytest.param(*arguments, marks=marks))
    return cases
