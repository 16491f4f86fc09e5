"""Texts of the standard library: code, docstrings and documentation, by thirds."""

import ast
from collections.abc import Callable, Iterator, Sequence
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
THIRDS = FILES[::3], FILES[1::3], FILES[2::3]
HALF = len(THIRDS[0]) // 2
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


def code(files: Sequence[str]) -> str:
    return "".join(map(source, files))


def lower_case() -> str:
    """The first half of the first third in lower case."""
    return code(THIRDS[0][:HALF]).lower()


def mixed_case() -> str:
    """The second half of the first third."""
    return code(THIRDS[0][HALF:])


def docstrings() -> str:
    """The docstrings of the second third and of the files of `LONG_DOCSTRINGS`."""
    texts = []
    for file in (*THIRDS[1], *LONG_DOCSTRINGS):
        for node in _definitions(ast.parse(source(file))):
            docstring = ast.get_docstring(node)
            if docstring:
                texts.append(docstring)
    return "\n\n".join(texts)


def statements() -> str:
    """The second third without docstrings and comments."""
    files = []
    for file in THIRDS[1]:
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


CODE_0, CODE_1, CODE_2 = (partial(windows, partial(code, files)) for files in THIRDS)
LOWER_CASE = partial(windows, lower_case)
MIXED_CASE = partial(windows, mixed_case)
DOCSTRINGS = partial(windows, docstrings)
STATEMENTS = partial(windows, statements)
DOCUMENTATION = partial(windows, documentation)


def text_gpt(width: int, heads: int, depth: int, tied: bool = False) -> Gpt:
    """A GPT for the windows of `texts`."""
    return Gpt(VOCABULARY, LENGTH, width, heads, depth, tied)
