"""Texts of the standard library: code, docstrings and documentation, by thirds."""

import ast
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch

from meta_train.problems.networks.sequential import Gpt
from meta_train.problems.supervised import Splits
from meta_train.problems.text import (
    FILES,
    VOCABULARY,
    encoded,
    source,
    window_starts,
    windows_of,
)

LENGTH = 32  # characters of a window
CYCLE = 5  # blocks, of which one is for validation and one for test
EVALUATED = 1024  # maximum number of windows of validation and of test
LONG_DOCSTRINGS = "_pyio.py", "turtle.py", "typing.py", "unittest/mock.py"

Text = Callable[[], str]

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def windows(text: Text) -> Splits:
    """Windows of a text, to predict each next character from those before."""
    codes = encoded(text())
    ends = torch.tensor([len(codes)])
    starts = window_starts(ends, LENGTH + 1, CYCLE, EVALUATED)
    return windows_of(codes, starts, LENGTH)


def code(third: int) -> str:
    """The code of every third of `FILES`."""
    return "".join(map(source, FILES[third::3]))


def lower_case() -> str:
    """The first half of the files of `code(0)` in lower case."""
    files = FILES[::3]
    half = files[: len(files) // 2]
    return "".join(map(source, half)).lower()


def mixed_case() -> str:
    """The second half of the files of `code(0)`."""
    files = FILES[::3]
    return "".join(map(source, files[len(files) // 2 :]))


def docstrings() -> str:
    """The docstrings of `code(1)` and of the files of `LONG_DOCSTRINGS`."""
    texts = []
    for file in (*FILES[1::3], *LONG_DOCSTRINGS):
        for node in _definitions(ast.parse(source(file))):
            docstring = ast.get_docstring(node)
            if docstring:
                texts.append(docstring)
    return "\n\n".join(texts)


def statements() -> str:
    """`code(1)` without docstrings and comments."""
    files = []
    for file in FILES[1::3]:
        tree = ast.parse(source(file))
        for node in _definitions(tree):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        files.append(ast.unparse(tree))
    return "\n".join(files)


def _definitions(tree: ast.Module) -> Iterator[Definition]:
    """The module, its classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            yield node


def documentation() -> str:
    """Python's language reference, as printed by `help()`."""
    assignment = ast.parse(source("pydoc_data/topics.py")).body[0]
    assert isinstance(assignment, ast.Assign)
    return "\n".join(ast.literal_eval(assignment.value).values())


CODE_0 = partial(windows, partial(code, 0))
CODE_1 = partial(windows, partial(code, 1))
CODE_2 = partial(windows, partial(code, 2))
LOWER_CASE = partial(windows, lower_case)
MIXED_CASE = partial(windows, mixed_case)
DOCSTRINGS = partial(windows, docstrings)
STATEMENTS = partial(windows, statements)
DOCUMENTATION = partial(windows, documentation)


def text_gpt(width: int, heads: int, depth: int, tied: bool = False) -> Gpt:
    """A GPT for the windows of `texts`."""
    return Gpt(VOCABULARY, LENGTH, width, heads, depth, tied)
