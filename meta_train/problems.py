"""Problems: what optimizers are meta-trained and compared on.

A problem is anything with the methods of `Problem`; users give theirs on the command line as
`module:factory`, where the factory takes no arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_train.random import derive_seed, seeded
from tasks.datasets import ImageDataset, batch_indices, load_dataset


class Metrics(NamedTuple):
    """Mean loss and accuracy (a fraction) over a split."""

    loss: float
    accuracy: float


class Problem(Protocol):
    """A network and the data it is trained on. Everything random follows from the seeds."""

    @property
    def name(self) -> str: ...

    def init(self, seed: int) -> nn.Module:
        """A freshly initialised optimizee in training mode."""
        ...

    def batch(self, seed: int, step: int) -> Any:
        """The training batch of one inner step."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The training loss on a batch, (). Dropout may draw from torch's generator, buffers may change."""
        ...

    def evaluate(self, model: nn.Module, split: str, limit: int | None = None) -> Metrics:
        """Loss and accuracy of a model in evaluation mode on "validation" or "test", or its first `limit` examples."""
        ...


@dataclass(frozen=True)
class ImageProblem:
    """Image classification: `build` makes the network, `data` names a data set of `tasks.datasets`."""

    name: str
    data: str
    build: Callable[[], nn.Module]
    batch_size: int = 128

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return self.build()

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        train = _dataset(self.data).train
        return train.batch(batch_indices(len(train), self.batch_size, seed=derive_seed(seed, 1), step=step))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str, limit: int | None = None) -> Metrics:
        data = getattr(_dataset(self.data), split)
        size = len(data) if limit is None else min(limit, len(data))
        loss = correct = 0.0
        for indices in torch.arange(size).split(500):
            images, labels = data.batch(indices)
            logits = model(images)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(-1) == labels).sum().item()
        return Metrics(loss / size, correct / size)


def paper_cnn(in_channels: int, channels: tuple[int, int, int]) -> nn.Module:
    """The CNN of Kofinas et al. 2024, section 4.3: three 3x3 convolutions, pooling, a linear layer.

    Stride 2 without padding in the first convolution and PyTorch's initialisation are our
    assumptions, which the paper leaves open.
    """
    a, b, c = channels
    return nn.Sequential(
        nn.Conv2d(in_channels, a, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(a, b, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(b, c, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(c, 10),
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "fm-16": lambda: ImageProblem("fm-16", "fashion-mnist", partial(paper_cnn, 1, (16, 32, 32))),
    "fm-8": lambda: ImageProblem("fm-8", "fashion-mnist", partial(paper_cnn, 1, (8, 16, 16))),
    "c10-32": lambda: ImageProblem("c10-32", "cifar10", partial(paper_cnn, 3, (32, 64, 64))),
}


def load_problem(name: str) -> Problem:
    """A problem by its name in `PROBLEMS`, or made by the factory that `module:factory` names.

    Raises ValueError if there is neither.
    """
    if name in PROBLEMS:
        return PROBLEMS[name]()
    module, separator, factory = name.partition(":")
    try:
        if separator:
            return getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"problem '{name}': {error}") from error
    raise ValueError(f"problem '{name}': expected one of {', '.join(PROBLEMS)}, or 'module:factory'")


@cache
def _dataset(name: str) -> ImageDataset:
    return load_dataset(name)
