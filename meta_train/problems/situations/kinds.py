"""What several kinds of situations share: their type, data and networks."""

from __future__ import annotations

from functools import partial

from meta_train.problems.common import Build
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
from meta_train.problems.situations.problems import classify
from meta_train.problems.situations.texts import CODE, windows
from meta_train.problems.supervised import SupervisedProblem
from meta_train.problems.text import VOCABULARY

# To develop on, to validate on, and to test on once.
Kind = tuple[list[Problem], list[Problem], list[Problem]]

# Targets of one third alone.
SINES, PRODUCTS = partial(generated, sines), partial(generated, products)
DIRECTIONS, DISTANCES = partial(generated, directions), partial(generated, distances)
PROJECTIONS, MOONS = partial(generated, projections), partial(generated, moons)

# Networks of one third alone.
CNN = partial(paper_cnn, 1, (8, 16, 16))
WIDE_CNN = partial(paper_cnn, 1, (12, 16, 24))
SHALLOW_CNN = partial(plain_cnn, (1, 12, 24), (5, 3))
GPT = partial(Gpt, VOCABULARY, 32, 64, 4, 2)
MIXER = partial(Mixer, 3, 16, 4, 32, 2)
SHALLOW_MIXER = partial(Mixer, 3, 16, 4, 48, 1)
RESNET = partial(residual_cnn, 1, (8, 16))
VIT = partial(VisionTransformer, 1, 14, 7, 32, 4, 2)
SHALLOW_VIT = partial(VisionTransformer, 1, 14, 7, 48, 3, 1)


def read(
    name: str, third: int, build: Build, batch_size: int, steps: int
) -> SupervisedProblem:
    """Predicts the next character of 32 each, in the text of a third."""
    return classify(name, partial(windows, CODE[third], 32), build, batch_size, steps)
