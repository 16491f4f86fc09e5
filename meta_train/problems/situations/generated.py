"""Synthetic data: examples that are drawn anew for each batch."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from harness.random import seeded
from meta_train.problems.supervised import (
    Batch,
    Data,
    Examples,
    Splits,
    tensor_examples,
)

SIZE = 4096  # examples of an epoch
EVALUATED = 2048  # examples


Draw = Callable[[int], Batch]
"""Number of examples -> batch, with torch's generator as source of randomness."""


def generated(draw: Draw, noise: float | Tensor = 0.0) -> Data:
    """Splits of one distribution: new examples for each training batch.

    noise: standard deviation of the normal noise in the training targets.
    """

    def noisy(inputs: Tensor, targets: Tensor) -> Batch:
        return inputs, targets + noise * torch.randn_like(targets)

    train = drawn(draw, SIZE)
    if isinstance(noise, Tensor) or noise:
        train = train.map(noisy)
    return cache(lambda: Splits(train, *held_out(draw)))


def drawn(draw: Draw, size: int) -> Examples:
    """Random examples; their indices are ignored."""
    return Examples(size, lambda indices: draw(len(indices)))


def held_out(
    draw: Draw, sizes: tuple[int, int] = (EVALUATED, EVALUATED)
) -> tuple[Examples, Examples]:
    """Fixed examples of the distribution for validation and for test."""
    with seeded(1, 9):
        validation = tensor_examples(*draw(sizes[0]))
    with seeded(2, 9):
        test = tensor_examples(*draw(sizes[1]))
    return validation, test


def fixed(*size: int, seed: int) -> Tensor:
    """Normal numbers that are the same in every run."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@generated
def sines(count: int) -> Batch:
    """16 normal numbers; targets: the sines of the first four."""
    x = torch.randn(count, 16)
    return x, x[:, :4].sin()


@generated
def products(count: int) -> Batch:
    """8 normal numbers; targets: the products of adjacent ones."""
    x = torch.randn(count, 8)
    return x, x[:, :-1] * x[:, 1:]


PROJECTIONS = fixed(10, 5, seed=24) / 10**0.5


@generated
def projections(count: int) -> Batch:
    """10 normal numbers; targets: the absolute values of five projections."""
    x = torch.randn(count, 10)
    return x, (x @ PROJECTIONS).abs()


CENTRES = fixed(4, 6, seed=22)


@generated
def distances(count: int) -> Batch:
    """6 normal numbers; targets: the distances to four fixed points."""
    x = torch.randn(count, 6)
    return x, torch.cdist(x, CENTRES)


TEACHER = fixed(12, 3, seed=1)


@generated
def directions(count: int) -> Batch:
    """12 normal numbers; targets: tanh of three projections."""
    x = torch.randn(count, 12)
    return x, (x @ TEACHER).tanh()


@generated
def moons(count: int) -> Batch:
    """Noisy points on two half circles; labels: the half circle of each."""
    labels = torch.arange(count) % 2
    angle = torch.pi * torch.rand(count)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.tensor([1.0, 0.5]) - upper
    points = torch.where(labels[:, None] == 0, upper, lower)
    return points + 0.15 * torch.randn(count, 2), labels
