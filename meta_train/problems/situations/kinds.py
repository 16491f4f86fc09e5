"""What several kinds of situations share: their type, data and networks."""

from __future__ import annotations

from functools import partial

from meta_train.problems.common import Build, classify
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
from meta_train.problems.supervised import SupervisedProblem
from meta_train.problems.text import VOCABULARY, next_characters

# To develop on, to validate on, and to test on once.
Kind = tuple[list[Problem], list[Problem], list[Problem]]

TEXT = partial(next_characters, 32)
SINES, PRODUCTS = partial(generated, sines), partial(generated, products)
DIRECTIONS, MOONS = partial(generated, directions), partial(generated, moons)

CNN = partial(paper_cnn, 1, (8, 16, 16))
GPT = partial(Gpt, VOCABULARY, 32, 64, 4, 2)
MIXER = partial(Mixer, 3, 16, 4, 32, 2)
RESNET = partial(residual_cnn, 1, (8, 16))
VIT = partial(VisionTransformer, 1, 14, 7, 32, 4, 2)


def read(name: str, build: Build, batch_size: int, steps: int) -> SupervisedProblem:
    """Predicts the next character of 32 each."""
    return classify(name, TEXT, build, batch_size, steps)
