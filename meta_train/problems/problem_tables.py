"""Tables of problems: CSV files with one problem per row.

Columns: list, name, objective (the name of a constructor of problems), data, network,
batch_size (empty for all examples) and steps. Data and networks are functions without
arguments, written as names or calls: `mlp((196, 48, 10), nn.Tanh)` is `partial(mlp,
(196, 48, 10), nn.Tanh)`. Arguments are literals, names, or functions written in the
same way.
"""

import ast
import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from meta_train.problems import images, supervised, text
from meta_train.problems.networks import convolutional, dense, sequential

NAMES = {}
for module in (images, supervised, text, convolutional, dense, sequential):
    NAMES |= vars(module)


def read_problems(path: Path, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The list and the problem of each row. names: values of names beside `NAMES`.

    Raises ValueError if a cell has another name, or is no literal, name or call.
    """
    values = {**NAMES, **names}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            place = f"{path.name}, {row['name']}"
            construct = values[row["objective"]]
            problem = construct(
                name=row["name"],
                data=cell_value(place, row["data"], values),
                build=cell_value(place, row["network"], values),
                batch_size=int(row["batch_size"]) if row["batch_size"] else None,
                steps=int(row["steps"]),
            )
            yield row["list"], problem


def cell_value(place: str, cell: str, values: Mapping[str, Any]) -> Any:
    """A function or literal. place: of the cell, for messages."""
    try:
        return _value_of(ast.parse(cell, mode="eval").body, values)
    except (AttributeError, KeyError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{place}: expected a literal, or a name or call of the functions that "
            f"`problem_tables` imports; got {cell!r} ({error})"
        ) from None


def _value_of(node: ast.expr, values: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(_value_of(node.value, values), node.attr)
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    function = _value_of(node.func, values)
    arguments = [_value_of(argument, values) for argument in node.args]
    options = {}
    for option in node.keywords:
        assert option.arg is not None
        options[option.arg] = _value_of(option.value, values)
    return partial(function, *arguments, **options)
