"""Constructors and kinds of situations; batches depend on the problem's name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.problem_tables import read_problems
from meta_train.problems.protocol import Metrics, Problem
from meta_train.problems.situations import generated, real_tables, texts
from meta_train.problems.situations.generated import EVALUATED
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    Objective,
    SupervisedProblem,
    at_most,
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


def supervised(
    name: str, kind: type[SupervisedProblem] = SupervisedProblem, **options: Any
) -> SupervisedProblem:
    """A problem whose batches depend on its name; options: of `SupervisedProblem`."""
    return kind(name, stream=(name_key(name),), **options)


def supervised_by_batch(batch_size: int, **options: Any) -> SupervisedProblem:
    """The loss depends on the batch size, so evaluation has that of training."""
    return supervised(batch_size=batch_size, evaluation_batch=batch_size, **options)


classify = partial(supervised, objective=CLASSIFY)
"""A problem with the cross entropy as its loss."""
regress = partial(supervised, objective=REGRESS, evaluation=REGRESS_WITH_FLOOR)
"""A regression with squared errors; evaluation adds `FLOOR` of the variance."""


@dataclass(frozen=True, eq=False)
class SampledProblem:
    """A problem whose batches are random samples that depend on its name.

    evaluated: maximum number of samples in evaluation.
    """

    evaluated: ClassVar[int] = EVALUATED
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


NAMES = globals() | vars(generated) | vars(real_tables) | vars(texts)


class Kind(NamedTuple):
    """The problems of one kind in thirds; the third for tests is run only once.

    Networks, texts and synthetic targets belong to one third only.
    """

    developing: list[Problem]
    validating: list[Problem]
    testing: list[Problem]


def read_situations(table: str, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`read_problems` of a table of this folder."""
    return read_problems(Path(__file__).with_name(f"{table}.csv"), {**NAMES, **names})
