"""Ladders: families of networks, each over width, depth, horizon and batch size.

A cell differs from the base of its family in one of these. Names of cells are
"ladder-<family>", the base, and "ladder-<family>-<axis>-<value>".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from meta_train.problems.images import CIFAR_16, FASHION, FASHION_14
from meta_train.problems.networks.convolutional import even_cnn
from meta_train.problems.networks.dense import PreNormMlp, mlp
from meta_train.problems.networks.sequential import CharacterRnn, Gpt, Vit
from meta_train.problems.situations.initialization import he_normal, orthogonal_tanh
from meta_train.problems.supervised import Data, SupervisedProblem, classify
from meta_train.problems.text import TEXT_32, VOCABULARY

AXES = "width", "depth", "steps", "batch"
HORIZONS = 100, 300, 1000, 3000


@dataclass(frozen=True)
class Family:
    """Networks of one kind on one data set.

    network: makes one of a width and a depth.
    widths, batches, depths, horizons: values of each axis, ascending; the second is the
        base's.
    """

    data: Data
    network: Callable[[int, int], nn.Module]
    widths: tuple[int, ...] = (16, 64, 256)
    batches: tuple[int, ...] = (16, 64, 256)
    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    horizons: tuple[int, ...] = HORIZONS

    @property
    def rungs(self) -> dict[str, tuple[int, ...]]:
        """The values of each axis."""
        values = self.widths, self.depths, self.horizons, self.batches
        return dict(zip(AXES, values, strict=True))

    def problem(self, axis: str, value: int) -> SupervisedProblem:
        """The problem with this value, those of the base elsewhere."""
        cell = {name: values[1] for name, values in self.rungs.items()}
        cell[axis] = value
        network = self.network, cell["width"], cell["depth"]
        return classify(self.data, cell["batch"], cell["steps"], *network)


def tanh_mlp(width: int, depth: int) -> nn.Module:
    return orthogonal_tanh(mlp, (196, *[width] * depth, 10), nn.Tanh)


def kaiming_cnn(width: int, depth: int) -> nn.Module:
    return he_normal(even_cnn, 3, width, depth)


FAMILIES = {
    "mlp": Family(FASHION_14, tanh_mlp, horizons=(*HORIZONS, 30_000)),
    "resmlp": Family(FASHION_14, partial(PreNormMlp, 196, 10)),
    "cnn": Family(CIFAR_16, kaiming_cnn, (8, 32, 128)),
    "cnn-bn": Family(CIFAR_16, partial(even_cnn, 3, norm=nn.BatchNorm2d), (8, 32, 128)),
    "gpt": Family(
        TEXT_32,
        lambda width, depth: Gpt(VOCABULARY, 32, width, 4, depth),
        batches=(4, 16, 64),
    ),
    "vit": Family(FASHION, lambda width, depth: Vit(1, 28, 7, width, 4, depth)),
    "lstm": Family(
        TEXT_32,
        lambda width, depth: CharacterRnn(nn.LSTM, VOCABULARY, 32, width, depth),
        batches=(4, 16, 64),
        depths=(1, 2, 4, 8),
    ),
}


def ladder(name: str, axis: str) -> dict[int, str]:
    """Names of the cells of a family, by their values of an axis."""
    values = FAMILIES[name].rungs[axis]
    cells = {value: f"ladder-{name}-{axis}-{value}" for value in values}
    return cells | {values[1]: f"ladder-{name}"}


LADDERS = {
    cell: family.problem(axis, value)
    for name, family in FAMILIES.items()
    for axis in AXES
    for value, cell in ladder(name, axis).items()
}
