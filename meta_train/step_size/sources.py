"""Random numbers of tasks, and the examples that they make."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


class Examples(NamedTuple):
    """Inputs and targets.

    outputs: number of a network's outputs, or of words. score: is measured for
    validation; None: the loss.
    """

    inputs: Tensor
    targets: Tensor
    loss: Loss
    outputs: int
    score: Loss | None = None


class Source:
    """The random numbers of a task, and the number and noise of its examples.

    noise: share of random labels, or standard deviation of noise in targets.
    """

    def __init__(self, seed: int, examples: int, noise: float):
        self.generator = torch.Generator().manual_seed(seed)
        self.choice = Random(seed).choice
        self.examples = examples
        self.noise = noise

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def integers(self, count: int, *shape: int) -> Tensor:
        return torch.randint(count, shape, generator=self.generator)

    def words(self, shares: Tensor, count: int) -> Tensor:
        return torch.multinomial(shares, count, True, generator=self.generator)

    def chosen(self, count: int) -> Tensor:
        """Numbers of as many examples as are wanted."""
        order = torch.randperm(count, generator=self.generator)
        return order[: self.examples]

    def relabelled(self, labels: Tensor, classes: int) -> Tensor:
        is_wrong = self.uniform(len(labels)) < self.noise
        other = self.integers(classes, len(labels))
        return torch.where(is_wrong, other, labels)

    def with_noise(self, targets: Tensor) -> Tensor:
        return targets + self.noise * self.normal(*targets.shape)


class Task(NamedTuple):
    """Examples for training and validation, and a score of these; see `Examples`."""

    inputs: Tensor
    targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    loss: Loss
    outputs: int
    score: Loss
