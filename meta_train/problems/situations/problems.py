"""How the problems of this list are made: each has its own stream of batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.common import Build, Data
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    Objective,
    SupervisedProblem,
)

# Of the variance of targets without noise. It is added to squared errors that are
# reported, so that errors far below it count as equal.
FLOOR = 1e-4


def squared_errors_with_floor(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error plus `FLOOR` of the variance of the targets (b, ...), ()."""
    variance = targets.var(0, correction=0).mean()
    return F.mse_loss(outputs, targets) + FLOOR * variance


REGRESS_WITH_FLOOR = Objective(squared_errors_with_floor)


def name_key(name: str) -> int:
    """An integer that stands for a name in the key of a seed."""
    return crc32(name.encode())


def supervised(
    name: str,
    data: Data,
    build: Build,
    objective: Objective,
    batch_size: int | None,
    steps: int,
    **options: Any,
) -> SupervisedProblem:
    """A problem whose batches depend on its name; options: of `SupervisedProblem`."""
    options = {"stream": (name_key(name),), **options}
    return SupervisedProblem(name, data, build, objective, batch_size, steps, **options)


def classify(
    name: str, data: Data, build: Build, batch_size: int | None, steps: int
) -> SupervisedProblem:
    """Cross entropy."""
    return supervised(name, data, build, CLASSIFY, batch_size, steps)


def fit(
    name: str, data: Data, build: Build, batch_size: int | None, steps: int
) -> SupervisedProblem:
    """Squared errors; evaluation adds `FLOOR` of the targets' variance."""
    return supervised(
        name, data, build, REGRESS, batch_size, steps, evaluation=REGRESS_WITH_FLOOR
    )


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters are."""
    return next(model.parameters()).device


@dataclass(frozen=True, eq=False)
class DrawnProblem:
    """A problem whose batches are drawn from a distribution, and depend on its name."""

    name: str
    build: Callable[[], nn.Module]
    batch_size: int
    steps: int

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return self.build()

    def batch(self, seed: int, step: int) -> Any:
        with seeded(seed, 1, step, name_key(self.name)):
            return self.draw_batch(step)

    def draw_batch(self, step: int) -> Any:
        """The batch of a step, from torch's generator."""
        raise NotImplementedError
