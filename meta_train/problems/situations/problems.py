"""Constructors of situations; batches depend on the problem's name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.generated import EVALUATED
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    Objective,
    SupervisedProblem,
    at_most,
    maker,
)

# Share of the targets' variance that is added to reported squared errors. Differences
# between much smaller errors then do not matter.
FLOOR = 1e-4


def squared_errors_with_floor(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error plus `FLOOR` times the variance of the targets, ()."""
    variance = targets.var(0, correction=0).mean()
    return F.mse_loss(outputs, targets) + FLOOR * variance


REGRESS_WITH_FLOOR = Objective(squared_errors_with_floor)


def name_key(name: str) -> int:
    """An integer for a name, as part of a seed."""
    return crc32(name.encode())


class Situation(SupervisedProblem):
    """A supervised problem whose batches depend on its name."""

    @property
    def stream(self) -> tuple[int, ...]:
        return (name_key(self.name),)


classify = maker(Situation, CLASSIFY)
"""Cross entropy; arguments: data, batch size (None: all examples), steps, network and
its arguments."""
regress = maker(Situation, REGRESS, REGRESS_WITH_FLOOR)
"""Squared errors, arguments as of `classify`; evaluation adds the floor."""


@dataclass(frozen=True, eq=False)
class SampledProblem:
    """A problem whose batches are random samples that depend on its name.

    evaluated: maximum number of samples in evaluation.
    """

    evaluated: ClassVar[int] = EVALUATED
    build: Callable[[], nn.Module]
    batch_size: int
    steps: int
    name: str = field(default="", kw_only=True)

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return self.build()

    def batch(self, seed: int, step: int) -> Any:
        with seeded(seed, 1, step, name_key(self.name)):
            return self.draw_batch(step)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        with seeded(0, 4, split == "test"):
            return self.measure(model, at_most(self.evaluated, limit))

    def measure(self, model: nn.Module, count: int) -> Metrics:
        """Metrics on so many samples, drawn as in `draw_batch`."""
        raise NotImplementedError

    def draw_batch(self, step: int) -> Any:
        """The batch of a step, with torch's generator as source of randomness."""
        raise NotImplementedError
