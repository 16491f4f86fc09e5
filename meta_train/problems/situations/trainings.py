"""Short and long trainings, extreme batch sizes, and bfloat16 parameters."""

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
from meta_train.problems.networks.sequential import CharacterRnn, Gpt, RowRnn
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
)
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.situations.texts import CODE, predict_characters
from meta_train.problems.supervised import first
from meta_train.problems.text import VOCABULARY


class BFloat16(nn.Module):
    """A network with bfloat16 parameters and float32 inputs and outputs."""

    def __init__(self, build: Callable[[], nn.Module]):
        super().__init__()
        self.model = build().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.bfloat16()).float()


GRU = partial(CharacterRnn, nn.GRU, VOCABULARY, 24, 48)
TIED_GPT = partial(Gpt, VOCABULARY, 32, 48, 2, 1, tied=True)
LSTM = partial(RowRnn, nn.LSTM, 14, 48)
FASHION_MLP = partial(mlp, (196, 64, 10))
MOONS_MLP = partial(mlp, (2, 16, 2))
PRODUCTS_MLP = partial(mlp, (8, 64, 64, 7), nn.GELU)
DIRECTIONS_MLP = partial(mlp, (12, 32, 3), nn.Tanh)

SHORT = Kind(
    developing=[
        classify("short-mlp-10", FASHION_14, FASHION_MLP, 64, 10),
        classify("short-cnn-30", MNIST_14, CNN, 64, 30),
        predict_characters("short-gpt-100", CODE[0], GPT, 16, 100),
        classify("short-moons-200", MOONS, MOONS_MLP, 64, 200),
    ],
    validating=[
        predict_characters("short-gru-10", CODE[1], GRU, 16, 10),
        classify("short-vit-30", FASHION_14, VIT, 64, 30),
        classify("short-resnet-100", FASHION_14, RESNET, 32, 100),
        regress("short-products-300", PRODUCTS, PRODUCTS_MLP, 64, 300),
    ],
    testing=[
        classify("short-mixer-10", CIFAR_16, SHALLOW_MIXER, 64, 10),
        predict_characters("short-gpt-30", CODE[2], TIED_GPT, 32, 30),
        classify("short-lstm-100", MNIST_14, LSTM, 64, 100),
        regress("short-directions-20", DIRECTIONS, DIRECTIONS_MLP, 128, 20),
    ],
)

SMALL_MLP = partial(mlp, (49, 32, 10))
SMALL_CNN = partial(plain_cnn, (1, 8, 16), (3, 3))
DISTANCES_MLP = partial(mlp, (6, 48, 48, 4), nn.SiLU)

LONG = Kind(
    developing=[classify("long-mlp-10000", MNIST_7, SMALL_MLP, 32, 10_000)],
    validating=[classify("long-cnn-10000", FASHION_7, SMALL_CNN, 32, 10_000)],
    testing=[regress("long-distances-10000", DISTANCES, DISTANCES_MLP, 32, 10_000)],
)

FIRST_MNIST_7 = partial(first, MNIST_7, 4000)
FIRST_FASHION_14 = partial(first, FASHION_14, 1000)
FIRST_FASHION_7 = partial(first, FASHION_7, 3000)
BRIGHTNESS = partial(lower_brightness, "mnist")
BRIGHTNESS_MLP = partial(mlp, (28, 48, 1), nn.GELU)
MNIST_MLP = partial(mlp, (49, 64, 10))
WIDE_MLP = partial(mlp, (49, 96, 10))

BATCHES = Kind(
    developing=[
        classify("batch-1", MNIST_7, SMALL_MLP, 1, 2000),
        classify("batch-full-m7", FIRST_MNIST_7, MNIST_MLP, None, 150),
    ],
    validating=[
        regress("batch-1-brightness", BRIGHTNESS, BRIGHTNESS_MLP, 1, 2000),
        classify("batch-full-fm14", FIRST_FASHION_14, WIDE_CNN, None, 100),
    ],
    testing=[
        classify("batch-2-cnn", MNIST_14, SHALLOW_CNN, 2, 1000),
        classify("batch-full-fm7", FIRST_FASHION_7, WIDE_MLP, None, 120),
    ],
)

BFLOAT16_MLP = partial(BFloat16, partial(mlp, (196, 96, 10)))
BFLOAT16_VIT = partial(BFloat16, VIT)
BFLOAT16_CNN = partial(BFloat16, SHALLOW_CNN)

BFLOAT16_PARAMETERS = Kind(
    developing=[classify("rounded-mlp", FASHION_14, BFLOAT16_MLP, 64, 400)],
    validating=[classify("rounded-vit", MNIST_14, BFLOAT16_VIT, 64, 150)],
    testing=[classify("rounded-cnn", FASHION_14, BFLOAT16_CNN, 64, 200)],
)

KINDS = {
    "short trainings": SHORT,
    "long trainings": LONG,
    "batches of one and all": BATCHES,
    "bfloat16 parameters": BFLOAT16_PARAMETERS,
}
