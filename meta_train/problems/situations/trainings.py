"""How long, on how much at once, and in which dtype."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from meta_train.problems.common import (
    CIFAR_16,
    FASHION_7,
    FASHION_14,
    MNIST_7,
    MNIST_14,
)
from meta_train.problems.images import lower_brightness
from meta_train.problems.networks.convolutional import plain_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import CharacterReader, Gpt, RowReader
from meta_train.problems.situations.kinds import (
    CNN,
    DIRECTIONS,
    DISTANCES,
    GPT,
    MOONS,
    PRODUCTS,
    RESNET,
    SHALLOW_CNN,
    SHALLOW_MIXER,
    VIT,
    WIDE_CNN,
    Kind,
    read,
)
from meta_train.problems.situations.problems import classify, fit
from meta_train.problems.supervised import first
from meta_train.problems.text import VOCABULARY


class Rounded(nn.Module):
    """A network with bfloat16 parameters, of float32 inputs."""

    def __init__(self, build: Callable[[], nn.Module]):
        super().__init__()
        self.model = build().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.bfloat16()).float()


_SHORT: Kind = (
    [
        classify("short-mlp-10", FASHION_14, partial(mlp, (196, 64, 10)), 64, 10),
        classify("short-cnn-30", MNIST_14, CNN, 64, 30),
        read("short-gpt-100", 0, GPT, 16, 100),
        classify("short-moons-200", MOONS, partial(mlp, (2, 16, 2)), 64, 200),
    ],
    [
        read(
            "short-gru-10",
            1,
            partial(CharacterReader, nn.GRU, VOCABULARY, 24, 48),
            16,
            10,
        ),
        classify("short-vit-30", FASHION_14, VIT, 64, 30),
        classify("short-resnet-100", FASHION_14, RESNET, 32, 100),
        fit(
            "short-products-300",
            PRODUCTS,
            partial(mlp, (8, 64, 64, 7), nn.GELU),
            64,
            300,
        ),
    ],
    [
        classify("short-mixer-10", CIFAR_16, SHALLOW_MIXER, 64, 10),
        read(
            "short-gpt-30", 2, partial(Gpt, VOCABULARY, 32, 48, 2, 1, tied=True), 32, 30
        ),
        classify(
            "short-lstm-100", MNIST_14, partial(RowReader, nn.LSTM, 14, 48), 64, 100
        ),
        fit(
            "short-directions-20",
            DIRECTIONS,
            partial(mlp, (12, 32, 3), nn.Tanh),
            128,
            20,
        ),
    ],
)


_LONG: Kind = (
    [classify("long-mlp-10000", MNIST_7, partial(mlp, (49, 32, 10)), 32, 10_000)],
    [
        classify(
            "long-cnn-10000",
            FASHION_7,
            partial(plain_cnn, (1, 8, 16), (3, 3)),
            32,
            10_000,
        )
    ],
    [
        fit(
            "long-distances-10000",
            DISTANCES,
            partial(mlp, (6, 48, 48, 4), nn.SiLU),
            32,
            10_000,
        )
    ],
)


_BATCHES: Kind = (
    [
        classify("batch-1", MNIST_7, partial(mlp, (49, 32, 10)), 1, 2000),
        classify(
            "batch-full-m7",
            partial(first, MNIST_7, 4000),
            partial(mlp, (49, 64, 10)),
            None,
            150,
        ),
    ],
    [
        fit(
            "batch-1-brightness",
            partial(lower_brightness, "mnist"),
            partial(mlp, (28, 48, 1), nn.GELU),
            1,
            2000,
        ),
        classify(
            "batch-full-fm14", partial(first, FASHION_14, 1000), WIDE_CNN, None, 100
        ),
    ],
    [
        classify("batch-2-cnn", MNIST_14, SHALLOW_CNN, 2, 1000),
        classify(
            "batch-full-fm7",
            partial(first, FASHION_7, 3000),
            partial(mlp, (49, 96, 10)),
            None,
            120,
        ),
    ],
)


_ROUNDED: Kind = (
    [
        classify(
            "rounded-mlp",
            FASHION_14,
            partial(Rounded, partial(mlp, (196, 96, 10))),
            64,
            400,
        )
    ],
    [classify("rounded-vit", MNIST_14, partial(Rounded, VIT), 64, 150)],
    [classify("rounded-cnn", FASHION_14, partial(Rounded, SHALLOW_CNN), 64, 200)],
)


KINDS: dict[str, Kind] = {
    "short trainings": _SHORT,
    "long trainings": _LONG,
    "batches of one and all": _BATCHES,
    "bfloat16 parameters": _ROUNDED,
}
