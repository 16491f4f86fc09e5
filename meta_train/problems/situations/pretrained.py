"""Pretrained networks; each belongs to one third of the situations, its list."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.situations.kinds import read_situations
from meta_train.problems.situations.problems import name_key
from meta_train.problems.supervised import SupervisedProblem
from ngopt.schedule import cosine_schedule

PRETRAINING_LR = 0.006  # of Adam with warm-up and cosine decay
WARMUP = 0.1  # share of the steps
PRETRAINING = 1.0  # share of the steps that are run; less in tests

PRETRAINED: dict[str, SupervisedProblem] = {}
for _, problem in read_situations("pretrained", globals()):
    PRETRAINED[problem.name] = problem


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
