"""Label noise, and targets that drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from meta_train.problems.common import FASHION_14, MNIST_7, MNIST_14
from meta_train.problems.networks.convolutional import paper_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.generated import EVALUATED, at_most, fixed
from meta_train.problems.situations.kinds import VIT, Kind
from meta_train.problems.situations.problems import classify
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    Batch,
    Examples,
    Objective,
    Splits,
)
from tasks.common.random import seeded


@dataclass(frozen=True)
class Mislabelled:
    """Examples of which some have a random label, the same one every time.

    labels: (len(examples),) int64, the random labels; -1 where the label is right.
    """

    examples: Examples
    labels: Tensor

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Tensor) -> Batch:
        inputs, targets = self.examples.batch(indices)
        wrong = self.labels[indices]
        return inputs, torch.where(wrong < 0, targets, wrong)


@cache
def mislabelled(data: Callable[[], Splits], share: float, limit: int) -> Splits:
    """The first examples with wrong labels in training, and right ones to evaluate."""
    train, validation, test = first(data, limit)
    generator = torch.Generator().manual_seed(8)
    labels = torch.randint(10, (limit,), generator=generator)
    is_right = torch.rand(limit, generator=generator) >= share
    wrong = Mislabelled(train, labels.masked_fill(is_right, -1))
    return Splits(wrong, validation, test)


@dataclass(frozen=True)
class First:
    """So many examples, the first."""

    examples: Examples
    count: int

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor) -> Batch:
        return self.examples.batch(indices)


def first(data: Callable[[], Splits], count: int) -> Splits:
    """Splits of which only the first examples are trained on."""
    train, validation, test = data()
    return Splits(First(train, count), validation, test)


@dataclass(frozen=True, eq=False)
class DriftProblem:
    """Targets that move with time; what counts is how well the last ones are met.

    draw: (examples, time) -> a batch. Time goes from 0 to 1 in the problem's steps.
    """

    name: str
    draw: Callable[[int, float], Batch]
    build: Callable[[], nn.Module]
    objective: Objective
    batch_size: int
    steps: int

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return self.build()

    def batch(self, seed: int, step: int) -> Batch:
        with seeded(seed, 1, step):
            return self.draw(self.batch_size, step / self.steps)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return self.objective.loss(model(inputs), targets)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        with seeded(0, 4, split == "test"):
            inputs, targets = self.draw(at_most(EVALUATED, limit), 1.0)
        outputs = model(inputs)
        accuracy = None
        if self.objective.accuracy is not None:
            accuracy = self.objective.accuracy(outputs, targets).item()
        return Metrics(self.objective.loss(outputs, targets).item(), accuracy)


def turned(pair: Tensor, turns: float) -> Tensor:
    """A rotation from the first of a pair (2, ...) towards the second, (...)."""
    angle = torch.tensor(2 * torch.pi * turns)
    return angle.cos() * pair[0] + angle.sin() * pair[1]


def turning(count: int, time: float, turns: float, width: int) -> Batch:
    """Targets (b, 1) of a linear function whose direction turns; inputs (b, width)."""
    x = torch.randn(count, width)
    target = x @ turned(fixed(2, width, seed=9), turns * time)
    return x, target[:, None] + 0.3 * torch.randn(count, 1)


def moving_centres(count: int, time: float, turns: float, width: int) -> Batch:
    """Four classes (b,) whose centres go round; inputs (b, width)."""
    labels = torch.randint(4, (count,))
    centres = turned(fixed(2, 4, width, seed=10), turns * time)
    return centres[labels] + 1.5 * torch.randn(count, width), labels


def changing_teacher(count: int, time: float, turns: float, width: int) -> Batch:
    """Targets (b, 2) of a network whose weights move; inputs (b, width)."""
    x = torch.randn(count, width)
    first_layer = turned(fixed(2, width, 16, seed=11) / width**0.5, turns * time)
    hidden = (x @ first_layer).relu()
    return x, hidden @ fixed(16, 2, seed=12) / 4


TURNING = partial(turning, turns=0.4, width=20)
MOVING = partial(moving_centres, turns=0.5, width=16)
CHANGING = partial(changing_teacher, turns=0.5, width=12)


_NOISE: Kind = (
    [
        classify(
            "noise-mlp-40",
            partial(mislabelled, MNIST_7, 0.4, 4000),
            partial(mlp, (49, 128, 10)),
            64,
            800,
        )
    ],
    [
        classify(
            "noise-cnn-30",
            partial(mislabelled, FASHION_14, 0.3, 4000),
            partial(paper_cnn, 1, (16, 32, 32)),
            64,
            600,
        )
    ],
    [
        classify(
            "noise-vit-50",
            partial(mislabelled, MNIST_14, 0.5, 6000),
            VIT,
            64,
            500,
        )
    ],
)


_DRIFT: Kind = (
    [DriftProblem("drift-line", TURNING, partial(nn.Linear, 20, 1), REGRESS, 16, 500)],
    [
        DriftProblem(
            "drift-centres",
            MOVING,
            partial(mlp, (16, 48, 4)),
            CLASSIFY,
            32,
            600,
        )
    ],
    [
        DriftProblem(
            "drift-teacher",
            CHANGING,
            partial(mlp, (12, 64, 2)),
            REGRESS,
            32,
            800,
        )
    ],
)


KINDS: dict[str, Kind] = {
    "wrong labels": _NOISE,
    "drift": _DRIFT,
}
