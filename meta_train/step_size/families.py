"""Families of random networks; `families.csv` says what is drawn, and how often.

An entry that is repeated in a column is drawn more often. Depths and widths are ranges.
Networks are functions of `NetworkSettings`, written as in `problem_tables`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from meta_train.problems.problem_tables import cell_value
from meta_train.step_size import games, image_networks, networks
from meta_train.step_size.networks import NetworkSettings

Build = Callable[[NetworkSettings], nn.Module]


class Family(NamedTuple):
    """A row of the table. weight: how often it is drawn, relative to others."""

    build: Build
    weight: float
    tasks: list[str]
    norms: list[str]
    depths: tuple[int, int]
    widths: tuple[int, int]
    activations: list[str]


def read_families() -> dict[str, Family]:
    names = vars(networks) | vars(image_networks) | vars(games)
    found = {}
    with Path(__file__).with_suffix(".csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = row["family"]
            found[name] = Family(
                cell_value(f"families.csv, {name}", row["network"], names),
                float(row["weight"]),
                row["tasks"].split("|"),
                row["norms"].split("|"),
                _range(row["depths"]),
                _range(row["widths"]),
                row["activations"].split("|"),
            )
    return found


def _range(cell: str) -> tuple[int, int]:
    low, high = cell.split()
    return int(low), int(high)


FAMILIES = read_families()
