"""Families of problems, whose network, batch size and data depend on the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.images import images
from meta_train.problems.networks.convolutional import plain_cnn
from meta_train.problems.protocol import Metrics
from meta_train.problems.supervised import CLASSIFY, SupervisedProblem

KERNELS = 3, 3, 3, 3, 5, 1


@dataclass(frozen=True)
class Family:
    """A `Problem` that is a different one for every seed.

    sample: the problem of a seed. base: evaluates the models of all seeds.
    """

    name: str
    sample: Callable[[int], SupervisedProblem]
    base: SupervisedProblem

    @property
    def steps(self) -> int:
        return self.base.steps

    def init(self, seed: int) -> nn.Module:
        return self.sample(seed).init(seed)

    def batch(self, seed: int, step: int) -> Any:
        return self.sample(seed).batch(seed, step)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self.base.loss(model, batch)

    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        return self.base.evaluate(model, split, limit)


def sampled_cnn(seed: int, steps: int) -> SupervisedProblem:
    """A random `plain_cnn` on FashionMNIST with a random batch size.

    It has two to four convolutions with 6 to 32 channels (log-uniform). Two thirds of
    the kernels are 3x3, the others 5x5 or 1x1. Images have 28 or 14 pixels a side,
    batches 32 to 256 images.
    """
    with seeded(seed, 7):
        depth = 2 + _choice(3)
        widths = [_width() for _ in range(depth)]
        kernels = [KERNELS[_choice(6)] for _ in range(depth)]
        batch_size = 32 << _choice(4)
        pool = 1 + _choice(2)
    data = partial(images, "fashion-mnist", pool)
    build = partial(plain_cnn, (1, *widths), kernels)
    return SupervisedProblem(f"cnn-{seed}", data, build, CLASSIFY, batch_size, steps)


def _width() -> int:
    return round(6 * (32 / 6) ** torch.rand(()).item())


def _choice(count: int) -> int:
    return int(torch.randint(count, ()).item())
