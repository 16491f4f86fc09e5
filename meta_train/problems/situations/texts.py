"""Texts of the standard library: code, docstrings, documentation; each of one third."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache, partial

import torch

from meta_train.problems.supervised import Splits
from meta_train.problems.text import FILES, Windows, encoded, source, window_starts

CYCLE = 5  # of so many blocks one is for validation, one for test
MORE = "_pyio.py", "turtle.py", "typing.py", "unittest/mock.py"  # with long docstrings
EVALUATED = 1024  # the most windows of validation and of test

Text = Callable[[], str]

DEFINITIONS = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


@cache
def windows(text: Text, length: int) -> Splits:
    """Windows of a text, to predict every next character from those before."""
    codes = encoded(text())
    ends = torch.tensor([len(codes)])
    parts = window_starts(ends, length + 1, CYCLE, EVALUATED)
    return Splits(*(Windows(codes, starts, length) for starts in parts))


def code(third: int, half: int | None = None) -> str:
    """Every third of `FILES`, or half of these files."""
    return "".join(map(source, _files(third, half)))


def lower_case(third: int, half: int) -> str:
    """Half of the files of `code` in lower case."""
    return code(third, half).lower()


def docstrings(third: int) -> str:
    """The docstrings of `code` and of the files of `MORE`."""
    trees = [ast.parse(source(file)) for file in (*_files(third), *MORE)]
    nodes = (node for tree in trees for node in ast.walk(tree))
    found = (ast.get_docstring(n) for n in nodes if isinstance(n, DEFINITIONS))
    return "\n\n".join(filter(None, found))


def statements(third: int) -> str:
    """`code` without docstrings and comments."""
    trees = [ast.parse(source(file)) for file in _files(third)]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return "\n".join(map(ast.unparse, trees))


def documentation() -> str:
    """Python's language reference, which `help()` prints."""
    assignment = ast.parse(source("pydoc_data/topics.py")).body[0]
    assert isinstance(assignment, ast.Assign)
    return "\n".join(ast.literal_eval(assignment.value).values())


def _files(third: int, half: int | None = None) -> tuple[str, ...]:
    files = FILES[third::3]
    middle = len(files) // 2
    return {None: files, 0: files[:middle], 1: files[middle:]}[half]


CODE = tuple(partial(code, third) for third in range(3))
LOWER_CASE, MIXED_CASE = partial(lower_case, 0, 0), partial(code, 0, 1)
DOCSTRINGS, STATEMENTS = partial(docstrings, 1), partial(statements, 1)
