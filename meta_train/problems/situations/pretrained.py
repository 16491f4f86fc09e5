"""Pretrained networks; each belongs to one third of the situations."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.common import FASHION_14, MNIST_14
from meta_train.problems.networks.convolutional import group_norm, strided_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import CharacterRnn, Gpt
from meta_train.problems.protocol import by_name
from meta_train.problems.situations.problems import classify, name_key
from meta_train.problems.situations.texts import (
    CODE_2,
    LENGTH,
    docstrings,
    lower_case,
    predict_characters,
)
from meta_train.problems.text import VOCABULARY
from ngopt.schedule import cosine_schedule

PRETRAINING_LR = 0.006  # of Adam with warm-up and cosine decay
WARMUP = 0.1  # share of the steps
PRETRAINING = 1.0  # share of the steps that are run; less in tests

CNN = partial(strided_cnn, (1, 12, 24, 32), nn.BatchNorm2d, nn.ReLU)
OTHER_CNN = partial(strided_cnn, (1, 16, 32), group_norm, nn.GELU)
MLP = partial(mlp, (196, 96, 96, 10))
OTHER_MLP = partial(mlp, (196, 128, 64, 10), nn.GELU)
GRU = partial(CharacterRnn, nn.GRU, VOCABULARY, 24, 64)


def _gpt(width: int, heads: int, depth: int) -> partial[Gpt]:
    return partial(Gpt, VOCABULARY, LENGTH, width, heads, depth)


PRETRAINED = by_name(
    [
        classify("cnn-digits", MNIST_14, CNN, 64, 300),
        classify("mlp-digits", MNIST_14, MLP, 64, 400),
        predict_characters("gpt-lower-case", lower_case, _gpt(48, 4, 2), 16, 400),
        classify("mlp-clothes", FASHION_14, OTHER_MLP, 64, 400),
        predict_characters("gpt-docstrings", docstrings, _gpt(40, 4, 2), 16, 450),
        classify("cnn-clothes", FASHION_14, OTHER_CNN, 64, 400),
        predict_characters("gpt-code", CODE_2, _gpt(64, 4, 1), 16, 600),
        predict_characters("gru-code", CODE_2, GRU, 16, 500),
    ]
)


@cache
def weights(name: str) -> dict[str, Tensor]:
    """Weights of a network of `PRETRAINED`; training takes some seconds."""
    problem = PRETRAINED[name]
    seed = name_key(name)
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
    """A trained network of `PRETRAINED`."""
    # the caller's random numbers do not depend on whether the weights are cached
    with seeded(0, 6):
        model = PRETRAINED[name].build()
        model.load_state_dict(weights(name))
    return model
