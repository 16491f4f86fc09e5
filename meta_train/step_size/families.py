"""Families of random networks; `families.csv` says what is drawn, and how often.

An entry that is repeated in a column is drawn more often. Depths and widths are ranges.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn

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
    found = {}
    with Path(__file__).with_suffix(".csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = row["family"]
            found[name] = Family(
                BUILDERS[name],
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


BUILDERS: dict[str, Build] = {
    "mlp": networks.mlp,
    "deep mlp": networks.mlp,
    "function": networks.mlp,
    "contrast": networks.mlp,
    "autoencoder": networks.autoencoder,
    "cnn": image_networks.cnn,
    "denoiser": image_networks.denoiser,
    "vit": image_networks.vit,
    "gpt": networks.gpt,
    "lstm": partial(networks.Recurrent, layer=nn.LSTM),
    "gru": partial(networks.Recurrent, layer=nn.GRU),
    "experts": networks.Experts,
    "factors": networks.Factors,
    "bag": networks.Bag,
    "vectors": networks.Vectors,
    "linear": networks.mlp,
    "gated": networks.gated_mlp,
    "points": networks.PointSet,
    "separable cnn": image_networks.separable_cnn,
    "strided cnn": image_networks.strided_cnn,
    "mixer": image_networks.mixer,
    "game": games.Players,
}
FAMILIES = read_families()
