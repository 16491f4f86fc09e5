"""What situations are made of: their data, and how they are written down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from meta_train.problems.images import images
from meta_train.problems.networks.convolutional import paper_cnn, residual_cnn
from meta_train.problems.networks.sequential import Gpt, Mixer, VisionTransformer
from meta_train.problems.protocol import Problem
from meta_train.problems.situations.generated import (
    directions,
    generated,
    moons,
    products,
    sines,
)
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    Splits,
    SupervisedProblem,
)
from meta_train.problems.text import VOCABULARY, next_characters

Data = Callable[[], Splits]
Build = Callable[[], nn.Module]
# To develop on, to validate on, and to test on once.
Kind = tuple[list[Problem], list[Problem], list[Problem]]

MNIST_7 = partial(images, "mnist", 4)
MNIST_14 = partial(images, "mnist", 2)
FASHION_7 = partial(images, "fashion-mnist", 4)
FASHION_14 = partial(images, "fashion-mnist", 2)
CIFAR_16 = partial(images, "cifar10", 2)
GRAY_8 = partial(images, "cifar10", 4, gray=True)
TEXT = partial(next_characters, 32)
SINES, PRODUCTS = partial(generated, sines), partial(generated, products)
DIRECTIONS, MOONS = partial(generated, directions), partial(generated, moons)

CNN = partial(paper_cnn, 1, (8, 16, 16))
GPT = partial(Gpt, VOCABULARY, 32, 64, 4, 2)
MIXER = partial(Mixer, 3, 16, 4, 32, 2)
RESNET = partial(residual_cnn, 1, (8, 16))
VIT = partial(VisionTransformer, 1, 14, 7, 32, 4, 2)


def classify(
    name: str, data: Data, build: Build, batch_size: int | None, steps: int
) -> SupervisedProblem:
    return SupervisedProblem(name, data, build, CLASSIFY, batch_size, steps)


def read(name: str, build: Build, batch_size: int, steps: int) -> SupervisedProblem:
    """Predicts the next character of 32 each."""
    return classify(name, TEXT, build, batch_size, steps)


def fit(
    name: str, data: Data, build: Build, batch_size: int | None, steps: int
) -> SupervisedProblem:
    """Squared errors."""
    return SupervisedProblem(name, data, build, REGRESS, batch_size, steps)
