"""Families of problems, whose network, batch size and data depend on the seed."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from harness.random import seeded
from meta_train.problems.images import images
from meta_train.problems.networks.convolutional import plain_cnn
from meta_train.problems.supervised import Batch, SupervisedProblem

KERNELS = 3, 3, 3, 3, 5, 1


class CnnFamily(SupervisedProblem):
    """A random `plain_cnn` on FashionMNIST with a random batch size for every seed.

    It has two to four convolutions with 6 to 32 channels (log-uniform). Two thirds of
    the kernels are 3x3, the others 5x5 or 1x1. Images have 28 or 14 pixels a side,
    batches 32 to 256 images. Evaluation has the data of the fields.
    """

    def init(self, seed: int) -> nn.Module:
        return self.sampled(seed).init(seed)

    def batch(self, seed: int, step: int) -> Batch:
        return self.sampled(seed).batch(seed, step)

    def sampled(self, seed: int) -> SupervisedProblem:
        """The problem of a seed."""
        with seeded(seed, 7):
            depth = 2 + _choice(3)
            widths = [
                round(6 * (32 / 6) ** torch.rand(()).item()) for _ in range(depth)
            ]
            kernels = [KERNELS[_choice(6)] for _ in range(depth)]
            batch_size = 32 << _choice(4)
            pool = 1 + _choice(2)
        data = partial(images, "fashion-mnist", pool)
        build = partial(plain_cnn, (1, *widths), kernels)
        name = f"cnn-{seed}"
        return SupervisedProblem(
            name, data, build, self.objective, batch_size, self.steps
        )


def _choice(count: int) -> int:
    return int(torch.randint(count, ()).item())
