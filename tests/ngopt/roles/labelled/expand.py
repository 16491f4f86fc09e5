"""From labels to the numbers of elements, (rows, columns) of each matrix."""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

LABELS = Path(__file__).parent.parent / "labels"

Label = Mapping[str, Any]


def labels_of(name: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Label]:
    """The label of each parameter. Raises ValueError unless there is exactly one, and
    if a label is of no parameter."""
    patterns = json.loads((LABELS / f"{name}.json").read_text())["parameters"]
    unused = set(patterns)
    labels = {}
    for parameter in shapes:
        fits = [x for x in patterns if _matches(parameter, x)]
        if len(fits) != 1:
            raise ValueError(f"{name}: {parameter}: expected one label; got {fits}")
        labels[parameter] = patterns[fits[0]]
        unused -= {fits[0]}
    if unused:
        raise ValueError(f"{name}: labels of no parameter: {sorted(unused)}")
    return labels


def _matches(parameter: str, pattern: str) -> bool:
    parts, expected = parameter.split("."), pattern.split(".")
    return len(parts) == len(expected) and all(map(fnmatchcase, parts, expected))


def elements_of(
    label: Label, shape: Sequence[int], heads_apart: bool
) -> list[np.ndarray]:
    """The numbers of the elements of each matrix, (rows, columns)."""
    numbers = np.arange(prod(shape)).reshape(shape)
    default: Label = {}
    if label["role"] == "embedding":
        default = {"axes": "tokens dimension", "rows": ["dimension"]}
    matrices = []
    for entry in label.get("matrices", [default]):
        matrices += _elements_of_entry(entry, numbers, heads_apart)
    return matrices


def _elements_of_entry(
    entry: Label, numbers: np.ndarray, heads_apart: bool
) -> list[np.ndarray]:
    if "part" in entry:
        dimension, start, stop = entry["part"]
        numbers = np.take(numbers, range(start, stop), dimension)
    default = " ".join(f"axis{d}" for d in range(numbers.ndim))
    brackets = _brackets(entry.get("axes", default))
    assert len(brackets) == numbers.ndim, (entry, numbers.shape)
    names, lengths = [], []
    for axes, n in zip(brackets, numbers.shape, strict=True):
        names += axes
        lengths += _lengths(axes, n, entry.get("sizes", {}))
    numbers = numbers.reshape(lengths)
    for axis, (start, stop) in entry.get("where", {}).items():
        numbers = np.take(numbers, range(start, stop), names.index(axis))
    apart = list(entry.get("apart", []))
    rows = entry.get("rows", [x for x in brackets[0] if x not in apart])
    rest = [x for x in names if x not in (*apart, *rows)]
    columns = entry.get("columns", rest)
    assert sorted([*apart, *rows, *columns]) == sorted(names), entry
    if heads_apart:
        heads = entry.get("heads", [])
        apart += heads
        rows = [x for x in rows if x not in heads]
        columns = [x for x in columns if x not in heads]
    order = [names.index(x) for x in (*apart, *rows, *columns)]
    in_order = numbers.transpose(order)
    first = in_order.shape[: len(apart)]
    height = prod(in_order.shape[len(apart) : len(apart) + len(rows)])
    return [in_order[i].reshape(height, -1) for i in product(*map(range, first))]


def _brackets(axes: str) -> list[list[str]]:
    """ "(head size) in" -> [["head", "size"], ["in"]]"""
    brackets: list[list[str]] = []
    is_inside = False
    for word in axes.replace("(", " ( ").replace(")", " ) ").split():
        if word in "()":
            is_inside = word == "("
            brackets += [[]] * is_inside
        elif is_inside:
            brackets[-1].append(word)
        else:
            brackets.append([word])
    return brackets


def _lengths(axes: Sequence[str], n: int, sizes: Mapping[str, int]) -> list[int]:
    known = prod(sizes[x] for x in axes if x in sizes)
    assert n % known == 0, (axes, n, sizes)
    lengths = [sizes.get(x, n // known) for x in axes]
    assert prod(lengths) == n, (axes, n, sizes)
    return lengths


def canonical(matrix: np.ndarray) -> bytes:
    """Equal for matrices with the same rows and columns in any order."""
    matrix = matrix[np.argsort(matrix.min(1))][:, np.argsort(matrix.min(0))]
    return repr(matrix.shape).encode() + np.ascontiguousarray(matrix).tobytes()


def wrong_elements(
    expected: Sequence[np.ndarray], got: Sequence[np.ndarray]
) -> np.ndarray:
    """Numbers of the elements whose matrix is not an expected one, sorted."""
    known = {canonical(matrix) for matrix in got}
    wrong = [x.ravel() for x in expected if canonical(x) not in known]
    return np.sort(np.concatenate([np.array([], int), *wrong]))
