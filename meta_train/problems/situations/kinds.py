"""The type of a kind of situations, and how situations are read from tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from meta_train.problems.problem_tables import read_problems
from meta_train.problems.protocol import Problem
from meta_train.problems.situations import generated, problems, real_tables, texts

NAMES = vars(problems) | vars(generated) | vars(real_tables) | vars(texts)


class Kind(NamedTuple):
    """The problems of one kind in thirds; the third for tests is run only once.

    Networks, texts and synthetic targets belong to one third only.
    """

    developing: list[Problem]
    validating: list[Problem]
    testing: list[Problem]


def read_situations(table: str, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`read_problems` of a table of this folder."""
    return read_problems(Path(__file__).with_name(f"{table}.csv"), {**NAMES, **names})
