"""Ladders: families of networks, each over width, depth, horizon and batch size.

A cell differs from the base of its family in one of these. Names of cells are
"ladder-<family>", the base, and "ladder-<family>-<axis>-<value>".
"""

from collections.abc import Callable, Mapping
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

WIDTH, DEPTH, STEPS, BATCH = AXES = "width", "depth", "steps", "batch"
DEPTHS = 2, 4, 8, 16, 32
HORIZONS = 100, 300, 1000, 3000


@dataclass(frozen=True)
class Family:
    """Networks of one kind on one data set.

    network: makes one of a width and a depth.
    rungs: values of each axis, ascending.
    """

    data: Data
    network: Callable[[int, int], nn.Module]
    rungs: Mapping[str, tuple[int, ...]]

    @property
    def base(self) -> dict[str, int]:
        """The second value of each axis, which the other ladders have."""
        return {axis: values[1] for axis, values in self.rungs.items()}

    def problem(self, values: Mapping[str, int]) -> SupervisedProblem:
        """The problem with these values, those of the base elsewhere."""
        cell = {**self.base, **values}
        network = self.network, cell[WIDTH], cell[DEPTH]
        return classify(self.data, cell[BATCH], cell[STEPS], *network)


def family(
    data: Data,
    network: Callable[[int, int], nn.Module],
    widths: tuple[int, ...] = (16, 64, 256),
    batches: tuple[int, ...] = (16, 64, 256),
    depths: tuple[int, ...] = DEPTHS,
    horizons: tuple[int, ...] = HORIZONS,
) -> Family:
    rungs = {WIDTH: widths, DEPTH: depths, STEPS: horizons, BATCH: batches}
    return Family(data, network, rungs)


def tanh_mlp(width: int, depth: int) -> nn.Module:
    return orthogonal_tanh(mlp, (196, *[width] * depth, 10), nn.Tanh)


def kaiming_cnn(width: int, depth: int) -> nn.Module:
    return he_normal(even_cnn, 3, width, depth)


FAMILIES = {
    "mlp": family(FASHION_14, tanh_mlp, horizons=(*HORIZONS, 30_000)),
    "resmlp": family(FASHION_14, partial(PreNormMlp, 196, 10)),
    "cnn": family(CIFAR_16, kaiming_cnn, (8, 32, 128)),
    "cnn-bn": family(CIFAR_16, partial(even_cnn, 3, norm=nn.BatchNorm2d), (8, 32, 128)),
    "gpt": family(
        TEXT_32,
        lambda width, depth: Gpt(VOCABULARY, 32, width, 4, depth),
        batches=(4, 16, 64),
    ),
    "vit": family(FASHION, lambda width, depth: Vit(1, 28, 7, width, 4, depth)),
    "lstm": family(
        TEXT_32,
        lambda width, depth: CharacterRnn(nn.LSTM, VOCABULARY, 32, width, depth),
        batches=(4, 16, 64),
        depths=(1, 2, 4, 8),
    ),
}


def ladder(name: str, axis: str) -> dict[int, str]:
    """Names of the cells of a family, by their values of an axis."""
    chosen = FAMILIES[name]
    cells = {}
    for value in chosen.rungs[axis]:
        is_base = value == chosen.base[axis]
        cells[value] = f"ladder-{name}" + f"-{axis}-{value}" * (not is_base)
    return cells


def _all_cells() -> dict[str, SupervisedProblem]:
    cells = {}
    for name, each in FAMILIES.items():
        for axis in AXES:
            for value, cell in ladder(name, axis).items():
                cells[cell] = each.problem({axis: value})
    return cells


LADDERS = _all_cells()
