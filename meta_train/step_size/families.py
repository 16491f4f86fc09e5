"""Families of random networks; `families.csv` says what is drawn, and how often.

An entry that is repeated in a column is drawn more often. Depths and widths are ranges.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import nn

from meta_train.step_size import games, image_networks, networks
from meta_train.step_size.tasks import Task

PATCH, SIDE = 4, 14  # of images in pixels
EXPERTS = 4
HEAD = 12  # neurons of an attention head at least


class Settings(Protocol):
    """What a network is built from."""

    @property
    def seed(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def norm(self) -> str: ...
    @property
    def skip(self) -> bool: ...
    @property
    def depth(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def task(self) -> Task: ...


Build = Callable[[Settings], nn.Module]


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


def _layer(s: Settings) -> networks.LayerSettings:
    act = networks.ACTIVATIONS[s.activation]
    return networks.LayerSettings(s.width, act, s.norm, s.skip)


def _inputs(s: Settings) -> int:
    return s.task.inputs[0].numel()


def mlp(s: Settings) -> nn.Module:
    model = networks.mlp(_inputs(s), s.task.outputs, s.depth, _layer(s))
    if s.activation == "sine":
        networks.initialize_siren(model)
    return model


def autoencoder(s: Settings) -> nn.Module:
    return networks.autoencoder(_inputs(s), s.depth, _layer(s))


def cnn(s: Settings) -> nn.Module:
    return networks.cnn(s.task.outputs, s.depth, _layer(s))


def denoiser(s: Settings) -> nn.Module:
    return networks.denoiser(s.depth, _layer(s))


def gated(s: Settings) -> nn.Module:
    return networks.gated_mlp(_inputs(s), s.task.outputs, s.depth, _layer(s))


def points(s: Settings) -> nn.Module:
    size = s.task.inputs.shape[-1]
    return networks.PointSet(size, s.task.outputs, s.depth, _layer(s))


def separable(s: Settings) -> nn.Module:
    return image_networks.separable_cnn(s.task.outputs, s.depth, _layer(s))


def strided(s: Settings) -> nn.Module:
    return image_networks.strided_cnn(s.task.outputs, s.depth, _layer(s))


def mixer(s: Settings) -> nn.Module:
    outputs = s.task.outputs
    return image_networks.mixer(SIDE, PATCH, outputs, s.depth, _layer(s))


def players(s: Settings) -> nn.Module:
    size = s.task.outputs
    return games.Players(_inputs(s) - size, size, s.depth, _layer(s))


def _blocks(s: Settings, causal: bool) -> nn.Module:
    heads = max(s.width // HEAD, 1)
    while s.width % heads:
        heads -= 1
    is_fused = s.seed % 2 == 0  # queries, keys and values are one matrix
    blocks = nn.Sequential()
    for _ in range(s.depth):
        attention = networks.Attention(s.width, heads, causal, is_fused)
        blocks.append(networks.Block(attention, _layer(s)))
    return blocks


def vit(s: Settings) -> nn.Module:
    embed = networks.Patches(SIDE, PATCH, s.width)
    head = networks.MeanHead(s.width, s.task.outputs)
    return nn.Sequential(embed, _blocks(s, causal=False), head)


def gpt(s: Settings) -> nn.Module:
    length = s.task.inputs.shape[1]
    embed = networks.Tokens(s.task.outputs, length, s.width)
    head = networks.WordHead(s.width, s.task.outputs, s.norm)
    if s.skip:  # tied embeddings
        head.linear.weight = embed.words.weight
    return nn.Sequential(embed, _blocks(s, causal=True), head)


def recurrent(s: Settings, layer: type[nn.Module]) -> nn.Module:
    return networks.Recurrent(layer, s.task.outputs, s.width, s.depth)


def experts(s: Settings) -> nn.Module:
    return networks.Experts(_inputs(s), s.task.outputs, EXPERTS, _layer(s))


def factors(s: Settings) -> nn.Module:
    return networks.Factors(s.task.outputs, s.width)


def bag(s: Settings) -> nn.Module:
    words = 1 + int(max(s.task.inputs.max(), s.task.validation_inputs.max()))
    return networks.Bag(words, s.width, s.task.outputs)


def vectors(s: Settings) -> nn.Module:
    return networks.Vectors(_inputs(s), s.task.outputs)


BUILDERS: dict[str, Build] = {
    "mlp": mlp,
    "deep mlp": mlp,
    "function": mlp,
    "contrast": mlp,
    "autoencoder": autoencoder,
    "cnn": cnn,
    "denoiser": denoiser,
    "vit": vit,
    "gpt": gpt,
    "lstm": partial(recurrent, layer=nn.LSTM),
    "gru": partial(recurrent, layer=nn.GRU),
    "experts": experts,
    "factors": factors,
    "bag": bag,
    "vectors": vectors,
    "linear": mlp,
    "gated": gated,
    "points": points,
    "separable cnn": separable,
    "strided cnn": strided,
    "mixer": mixer,
    "game": players,
}
FAMILIES = read_families()
