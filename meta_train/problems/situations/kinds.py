"""The type of a kind of situations, and how kinds are read from tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from meta_train.problems.problem_tables import read_problems
from meta_train.problems.protocol import Problem
from meta_train.problems.situations import generated, real_tables, texts
from meta_train.problems.situations.problems import classify, regress

CONSTRUCTORS = {"classify": classify, "regress": regress}


class Kind(NamedTuple):
    """The problems of one kind in thirds; the third for tests is run only once.

    Networks, texts and synthetic targets belong to one third only.
    """

    developing: list[Problem]
    validating: list[Problem]
    testing: list[Problem]


def read_kinds(module: str, names: Mapping[str, Any]) -> dict[str, Kind]:
    """The kinds of the table beside a module; its lists are "kind: third".

    names: of the module, see `read_problems`.
    """
    kinds: dict[str, Kind] = {}
    known = vars(generated) | vars(real_tables) | vars(texts) | dict(names)
    for row in read_problems(Path(module).with_suffix(".csv"), known):
        name, _, third = row.list.partition(": ")
        kind = kinds.setdefault(name, Kind([], [], []))
        construct = CONSTRUCTORS[row.objective]
        problem = construct(row.name, row.data, row.build, row.batch_size, row.steps)
        getattr(kind, third).append(problem)
    return kinds
