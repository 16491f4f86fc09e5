"""The type of a kind of situations; data and networks that several kinds share."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from meta_train.problems.networks.convolutional import (
    paper_cnn,
    plain_cnn,
    residual_cnn,
)
from meta_train.problems.networks.sequential import Gpt, Mixer, VisionTransformer
from meta_train.problems.protocol import Problem
from meta_train.problems.situations.generated import (
    directions,
    distances,
    generated,
    moons,
    products,
    projections,
    sines,
)
from meta_train.problems.text import VOCABULARY


class Kind(NamedTuple):
    """The problems of one kind in thirds; the third for tests is run only once."""

    developing: list[Problem]
    validating: list[Problem]
    testing: list[Problem]


# Each is used in one third only, and so are the networks below.
SINES = partial(generated, sines)
PRODUCTS = partial(generated, products)
DIRECTIONS = partial(generated, directions)
DISTANCES = partial(generated, distances)
PROJECTIONS = partial(generated, projections)
MOONS = partial(generated, moons)

CNN = partial(paper_cnn, 1, (8, 16, 16))
WIDE_CNN = partial(paper_cnn, 1, (12, 16, 24))
SHALLOW_CNN = partial(plain_cnn, (1, 12, 24), (5, 3))
GPT = partial(Gpt, VOCABULARY, 32, 64, 4, 2)
MIXER = partial(Mixer, 3, 16, 4, 32, 2)
SHALLOW_MIXER = partial(Mixer, 3, 16, 4, 48, 1)
RESNET = partial(residual_cnn, 1, (8, 16))
VIT = partial(VisionTransformer, 1, 14, 7, 32, 4, 2)
SHALLOW_VIT = partial(VisionTransformer, 1, 14, 7, 48, 3, 1)
