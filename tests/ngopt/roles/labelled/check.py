"""Prints what the graph gets wrong in labelled networks:
`python -m tests.ngopt.roles.labelled.check gpt2 bloom`, or all without names."""

import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngopt import build_graph
from ngopt.roles.from_graph import roles_of
from ngopt.roles.logical_matrices import MatrixStack, matrices_of_graph
from tests.ngopt.roles.labelled import (
    of_decoders,
    of_diffusion,
    of_graphs,
    of_sequences,
    of_vision,
    of_written,
)
from tests.ngopt.roles.labelled.expand import (
    LABELS,
    Label,
    elements_of,
    labels_of,
    wrong_elements,
)

MODULES = of_decoders, of_diffusion, of_graphs, of_sequences, of_vision, of_written
BUILDERS = {name: f for module in MODULES for name, f in vars(module).items()}


def network(name: str) -> tuple[nn.Module, Any]:
    """The labelled network and an example input. Raises ImportError without its
    package."""
    with warnings.catch_warnings():  # of other packages
        warnings.simplefilter("ignore")
        return BUILDERS[name]()


@dataclass(frozen=True)
class Mistakes:
    """Numbers of elements of a network, and of wrong ones, with lines that say which.

    wrong: role or matrix. wrong_heads: matrices of single heads, of parameters whose
    labels have heads.
    """

    elements: int
    wrong: int
    wrong_heads: int
    lines: list[str]


def mistakes(name: str) -> Mistakes:
    """What the graph gets wrong in a labelled network."""
    model, example = network(name)
    params = dict(model.named_parameters())
    shapes = {key: tuple(p.shape) for key, p in params.items()}
    labels = labels_of(name, shapes)
    graph = build_graph(model, example)
    of_graph = roles_of(graph)
    roles = {role.name: role.role for role in of_graph}
    wrong = wrong_heads = 0
    lines = []
    whole = matrices_of_graph(graph, of_graph)
    by_head = matrices_of_graph(graph, of_graph, heads=1)
    for key, shape in shapes.items():
        label, count = labels[key], prod(shape)
        numbers = torch.arange(count).reshape(shape)
        if label["role"] != roles[key]:
            wrong += count
            lines.append(f"{key} {shape}: {label['role']} expected; got {roles[key]}")
        elif whole[key]:
            line, bad = _compared(label, numbers, whole[key], heads_apart=False)
            wrong += bad
            lines += [f"{key} {shape}: {line}"] * bool(bad)
            if any("heads" in entry for entry in label.get("matrices", ())):
                line, bad = _compared(label, numbers, by_head[key], heads_apart=True)
                wrong_heads += bad
                lines += [f"{key} {shape}: by head: {line}"] * bool(bad)
    elements = sum(map(prod, shapes.values()))
    return Mistakes(elements, wrong, wrong_heads, lines)


def _compared(
    label: Label, numbers: Tensor, stacks: Sequence[MatrixStack], heads_apart: bool
) -> tuple[str, int]:
    """A line about matrices that differ from a label's, and their elements."""
    expected = elements_of(label, numbers.shape, heads_apart)
    count = sum(x.size for x in expected)
    assert count == numbers.numel(), f"{count} of {numbers.numel()} are labelled"
    got = [matrix.numpy() for stack in stacks for matrix in stack.read(numbers)]
    wrong = len(wrong_elements(expected, got))
    return f"{wrong} elements: {_sizes(expected)} expected; got {_sizes(got)}", wrong


def _sizes(matrices: Sequence[np.ndarray]) -> str:
    counts = Counter(f"{len(x)} x {len(x[0])}" for x in matrices)
    return ", ".join(f"{n} of {size}" for size, n in counts.items())


def main(names: Sequence[str]) -> None:
    total = wrong = 0
    for name in names or sorted(path.stem for path in LABELS.glob("*.json")):
        try:
            result = mistakes(name)
        except ImportError as error:
            print(f"{name:24}  skipped: {error}")
            continue
        except ValueError as error:
            print(f"{name:24}  {error}")
            continue
        total += result.elements
        wrong += result.wrong
        print(
            f"{name:24}  {result.wrong:>8,} of {result.elements:>8,} elements wrong, "
            f"{result.wrong_heads:>8,} by head",
            flush=True,
        )
        for line in result.lines:
            print(f"    {line}")
    print(f"{wrong:,} of {total:,} elements wrong")


if __name__ == "__main__":
    main(sys.argv[1:])
