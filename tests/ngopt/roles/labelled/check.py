"""Prints what the graph gets wrong in labelled networks:
`python -m tests.ngopt.roles.labelled.check gpt2 bloom`, or all without names."""

import sys
from collections.abc import Sequence
from importlib import import_module
from math import prod
from pkgutil import iter_modules
from typing import Any

import numpy as np
from torch import nn

from ngopt import parameter_roles
from ngopt.roles.from_graph import ParameterRole
from tests.ngopt.roles import labelled
from tests.ngopt.roles.labelled.expand import (
    LABELS,
    elements_of,
    labels_of,
    wrong_elements,
)


def network(name: str) -> tuple[nn.Module, Any]:
    """The labelled network and an example input. Raises ImportError without its
    package."""
    for module in iter_modules(labelled.__path__, f"{labelled.__name__}."):
        if module.name.rpartition(".")[2].startswith("of_"):
            build = getattr(import_module(module.name), name, None)
            if build is not None:
                return build()
    raise ValueError(f"no function '{name}' in modules of_* of {labelled.__name__}")


def elements_of_role(role: ParameterRole, shape: Sequence[int]) -> list[np.ndarray]:
    """The numbers of elements of the matrices of a role, (rows, columns) each."""
    numbers = np.arange(prod(shape))
    found = []
    for block in role.blocks:
        strides = [stride * numbers.itemsize for stride in block.view.strides]
        after = numbers[block.view.offset :]
        stack = np.lib.stride_tricks.as_strided(after, block.view.shape, strides)
        found += [matrix.reshape(len(matrix), -1) for matrix in stack]
    return found


def mistakes(name: str) -> tuple[int, int, list[str]]:
    """(elements, wrong ones, one line per wrong parameter) of a labelled network."""
    model, example = network(name)
    params = dict(model.named_parameters())
    shapes = {key: tuple(p.shape) for key, p in params.items()}
    labels = labels_of(name, shapes)
    roles = parameter_roles(model, example)
    total = wrong = 0
    lines = []
    for key, shape in shapes.items():
        total += prod(shape)
        expected, got = labels[key]["role"], roles[key].role
        if expected != got:
            wrong += prod(shape)
            lines.append(f"{key} {shape}: {expected} expected; got {got}")
        elif roles[key].blocks:
            matrices = elements_of(labels[key], shape, heads_apart=True)
            count = sum(x.size for x in matrices)
            assert count == prod(shape), f"{key}: {count} of {prod(shape)} labelled"
            split = elements_of_role(roles[key], shape)
            numbers = wrong_elements(matrices, split)
            if len(numbers):
                wrong += len(numbers)
                sizes = sorted({x.shape for x in matrices})
                others = sorted({x.shape for x in split})
                lines.append(
                    f"{key} {shape}: {len(numbers)} elements: "
                    f"{len(matrices)} of {sizes} expected; got {len(split)} of {others}"
                )
    return total, wrong, lines


def main(names: Sequence[str]) -> None:
    for name in names or sorted(path.stem for path in LABELS.glob("*.json")):
        try:
            total, wrong, lines = mistakes(name)
        except ImportError as error:
            print(f"{name:24}  skipped: {error}")
            continue
        print(f"{name:24}  {wrong:>8,} of {total:>8,} elements wrong")
        for line in lines:
            print(f"    {line}")


if __name__ == "__main__":
    main(sys.argv[1:])
