"""Examples that are drawn from a distribution, and some distributions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.random import seeded
from meta_train.problems.supervised import Batch, Listed, Splits

SIZE = 4096  # examples of an epoch, which are drawn anew in the next
EVALUATED = 2048


@dataclass(frozen=True)
class Generated:
    """Examples that are drawn when they are asked for, whatever their indices.

    draw: makes a batch of so many from torch's generator.
    noise: standard deviation of normal noise that is added to the targets.
    """

    draw: Callable[[int], Batch]
    size: int
    noise: float | Tensor = 0.0

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: Tensor) -> Batch:
        inputs, targets = self.draw(len(indices))
        if isinstance(self.noise, Tensor) or self.noise:
            targets = targets + self.noise * torch.randn_like(targets)
        return inputs, targets


def generated(draw: Callable[[int], Batch], noise: float | Tensor = 0.0) -> Splits:
    """Splits of one distribution; only the targets to train on have noise."""
    evaluated = (held_out(draw, split) for split in (1, 2))
    return Splits(Generated(draw, SIZE, noise), *evaluated)


def held_out(draw: Callable[[int], Batch], split: int) -> Listed:
    """Examples to evaluate on, always the same: split 1 to choose with, 2 to report."""
    with seeded(split, 9):
        return Listed(*draw(EVALUATED))


def at_most(size: int, limit: int | None) -> int:
    """How many examples to evaluate on: see `Problem.evaluate`."""
    return size if limit is None else min(limit, size)


def fixed(*size: int, seed: int) -> Tensor:
    """Normal numbers that are the same in every run: what a data set is made of."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def sines(count: int) -> Batch:
    """16 normal numbers, and the sines of the first four."""
    x = torch.randn(count, 16)
    return x, x[:, :4].sin()


def products(count: int) -> Batch:
    """8 normal numbers, and the products of neighbours."""
    x = torch.randn(count, 8)
    return x, x[:, :-1] * x[:, 1:]


PROJECTIONS = fixed(10, 5, seed=24) / 10**0.5


def projections(count: int) -> Batch:
    """10 normal numbers, and the absolute values of five projections."""
    x = torch.randn(count, 10)
    return x, (x @ PROJECTIONS).abs()


CENTRES = fixed(4, 6, seed=22)


def distances(count: int) -> Batch:
    """6 normal numbers, and the distances to four fixed points."""
    x = torch.randn(count, 6)
    return x, torch.cdist(x, CENTRES)


TEACHER = fixed(12, 3, seed=1)


def directions(count: int) -> Batch:
    """12 normal numbers, and three steps along fixed directions."""
    x = torch.randn(count, 12)
    return x, (x @ TEACHER).tanh()


def moons(count: int) -> Batch:
    """Points of two half circles with noise, and which of them each is of."""
    labels = torch.arange(count) % 2
    angle = torch.pi * torch.rand(count)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.tensor([1.0, 0.5]) - upper
    points = torch.where(labels[:, None] == 0, upper, lower)
    return points + 0.15 * torch.randn(count, 2), labels
