"""Networks that are trained before a problem begins, others for each third."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from harness.random import seeded
from harness.schedules import cosine_schedule
from meta_train.problems.common import FASHION_14, MNIST_14, Build
from meta_train.problems.networks.convolutional import group_norm, strided_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import CharacterReader, Gpt
from meta_train.problems.situations.problems import classify, name_key
from meta_train.problems.situations.texts import (
    CODE,
    DOCSTRINGS,
    LOWER_CASE,
    Text,
    windows,
)
from meta_train.problems.supervised import SupervisedProblem
from meta_train.problems.text import VOCABULARY

PRETRAINING_LR = 0.006  # of Adam with warm-up and cosine
WARMUP = 0.1  # share of the steps
PRETRAINING = 1.0  # share of the steps
LENGTH = 32  # characters

CNN = partial(strided_cnn, (1, 12, 24, 32), nn.BatchNorm2d, nn.ReLU)
OTHER_CNN = partial(strided_cnn, (1, 16, 32), group_norm, nn.GELU)
OTHER_MLP = partial(mlp, (196, 128, 64, 10), nn.GELU)
GRU = partial(CharacterReader, nn.GRU, VOCABULARY, 24, 64)


def _gpt(width: int, heads: int, depth: int) -> partial[Gpt]:
    return partial(Gpt, VOCABULARY, LENGTH, width, heads, depth)


def _reader(name: str, text: Text, build: Build, steps: int) -> SupervisedProblem:
    return classify(name, partial(windows, text, LENGTH), build, 16, steps)


PRETRAINED = {
    problem.name: problem
    for problem in (
        classify("cnn-digits", MNIST_14, CNN, 64, 300),
        classify("mlp-digits", MNIST_14, partial(mlp, (196, 96, 96, 10)), 64, 400),
        _reader("gpt-lower-case", LOWER_CASE, _gpt(48, 4, 2), 400),
        classify("mlp-clothes", FASHION_14, OTHER_MLP, 64, 400),
        _reader("gpt-docstrings", DOCSTRINGS, _gpt(40, 4, 2), 450),
        classify("cnn-clothes", FASHION_14, OTHER_CNN, 64, 400),
        _reader("gpt-code", CODE[2], _gpt(64, 4, 1), 600),
        _reader("gru-code", CODE[2], GRU, 500),
    )
}


@cache
def weights(name: str) -> dict[str, Tensor]:
    """The weights of a network of `PRETRAINED` after some seconds of Adam."""
    problem, seed = PRETRAINED[name], name_key(name)
    model = problem.init(seed)
    optimizer = torch.optim.Adam(model.parameters(), PRETRAINING_LR)
    steps = round(PRETRAINING * problem.steps)
    schedule = cosine_schedule(optimizer, steps, WARMUP)
    for step in range(steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            problem.loss(model, problem.batch(seed, step)).backward()
        optimizer.step()
        schedule.step()
    return model.state_dict()


def pretrained(name: str) -> nn.Module:
    """A network of `PRETRAINED`, trained."""
    # the caller's random numbers do not depend on whether the weights are cached
    with seeded(0, 6):
        model = PRETRAINED[name].build()
        model.load_state_dict(weights(name))
    return model
