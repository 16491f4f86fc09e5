"""Families of problems: the seed draws the network, the batch size and the data as
well."""

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


@dataclass(frozen=True)
class Family:
    """A `Problem` that is another one for every seed.

    sample: the member of a seed. base: the member that is validated and tested on; its
    evaluation has to do for models of all members.
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
    """CNNs of the paper's kind on FashionMNIST, of other widths, depths, kernels and
    batch sizes.

    Two to four convolutions of 6 to 32 channels (log-uniform), 3x3, one in three 5x5 or
    1x1, on images of 28 or 14 pixels, in batches of 32 to 256.
    """
    with seeded(seed, 7):
        depth = 2 + _choice(3)
        widths = [round(6 * (32 / 6) ** torch.rand(()).item()) for _ in range(depth)]
        kernels = [(3, 3, 3, 3, 5, 1)[_choice(6)] for _ in range(depth)]
        batch_size = 32 << _choice(4)
        pool = 1 + _choice(2)
    data = partial(images, "fashion-mnist", pool)
    build = partial(plain_cnn, (1, *widths), kernels)
    return SupervisedProblem(f"cnn-{seed}", data, build, CLASSIFY, batch_size, steps)


def _choice(count: int) -> int:
    return int(torch.randint(count, ()).item())


def family_of_cnns(name: str, base: SupervisedProblem) -> Family:
    return Family(name, partial(sampled_cnn, steps=base.steps), base)
