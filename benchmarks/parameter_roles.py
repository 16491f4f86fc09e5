"""Counts how many inferred roles of parameters agree with labels by hand.

    python -m benchmarks.parameter_roles --output results/parameter_roles.json

Roles are inferred from the traced graph, and from parameters alone with and without
their names. Networks are those of torchvision and tiny transformers. Labels are in
`parameter_roles.csv`: roles of parameters whose names match a regular expression.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.graph_building import FAMILIES
from benchmarks.networks import TRANSFORMERS
from benchmarks.records import Record, parser_of, table, write
from benchmarks.shapes import torchvision_model
from ngopt import build_graph
from ngopt.roles.from_graph import ParameterRole, parameter_roles, roles_of


def network(name: str) -> tuple[nn.Module, Any]:
    """A network of the table and its inputs."""
    if name in TRANSFORMERS:
        return TRANSFORMERS[name]()
    return torchvision_model(name), torch.randn(2, 3, 224, 224)


@cache
def patterns(network: str) -> list[tuple[str, str]]:
    """Regular expressions of names, and roles by hand."""
    found = []
    with Path(__file__).with_suffix(".csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if network in row["networks"].split("|"):
                found.append((row["pattern"], row["role"]))
    return found


def label(network: str, parameter: str) -> str:
    """The role of a parameter by hand; the first pattern that matches applies."""
    for pattern, role in patterns(network):
        if re.fullmatch(pattern, parameter):
            return role
    raise KeyError(f"labels: expected a pattern for '{parameter}' of {network}")


def matching(labels: Iterable[str], roles: Iterable[ParameterRole]) -> int:
    """The number of roles that equal their labels."""
    count = 0
    for own, inferred in zip(labels, roles, strict=True):
        count += own == inferred.role
    return count


def measure(name: str) -> Record:
    """The record of one network; `apart`: matrices of the trace, one for each view."""
    model, example = network(name)
    labels = [label(name, parameter) for parameter, _ in model.named_parameters()]
    graph = build_graph(model, example)
    start = perf_counter()
    traced = roles_of(graph)
    seconds = perf_counter() - start
    named = parameter_roles(model.named_parameters())
    unnamed = parameter_roles(model.parameters())
    return {
        "network": name,
        "parameters": len(labels),
        "traced": matching(labels, traced),
        "named": matching(labels, named.values()),
        "unnamed": matching(labels, unnamed.values()),
        "apart": sum(block.view.shape[0] for role in traced for block in role.blocks),
        "roles_ms": 1000 * seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    names = (*FAMILIES, *TRANSFORMERS)
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = list(map(measure, tqdm(options.networks, unit="network")))
    print(table(records))
    write(options.output, records=records)


if __name__ == "__main__":
    main()
