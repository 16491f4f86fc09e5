"""Problems made of parts: examples, a network, and an objective for its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from harness.image_datasets import batch_indices
from harness.random import derive_seed, seeded
from meta_train.problems.protocol import Metrics

EVALUATION_BATCH = 500  # examples at a time

Batch = tuple[Any, Any]  # inputs of the network, and what its outputs are compared with


class Examples(Protocol):
    """A split of a data set."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """The examples of these indices, (b,); noise may be drawn from torch's
        generator."""
        ...


class Splits(NamedTuple):
    """Examples to train on, to choose with, and to report."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Mapped:
    """Examples whose batches go through a function of inputs and targets."""

    examples: Examples
    function: Callable[[Any, Any], Batch]

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Tensor) -> Batch:
        return self.function(*self.examples.batch(indices))


@dataclass(frozen=True, eq=False)
class Listed:
    """Examples that are rows of two tensors."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor) -> Batch:
        return self.inputs[indices], self.targets[indices]


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


def mapped(
    splits: Callable[[], Splits], function: Callable[[Any, Any], Batch]
) -> Splits:
    """The same splits with every batch put through a function."""
    return Splits(*(Mapped(examples, function) for examples in splits()))


@dataclass(frozen=True)
class Objective:
    """Mean loss of a batch, and the share that is right; both take outputs and targets."""

    loss: Callable[[Any, Any], Tensor]
    accuracy: Callable[[Any, Any], Tensor] | None = None


def on_device(batch: Any, device: torch.device) -> Any:
    """The tensors of a batch on a device."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, batch)


def fraction_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """logits: (b, classes) or (b, classes, positions); labels: (b,) or (b, positions)."""
    return (logits.argmax(1) == labels).float().mean()


CLASSIFY = Objective(F.cross_entropy, fraction_correct)
REGRESS = Objective(F.mse_loss)


@dataclass(frozen=True)
class SupervisedProblem:
    """Trains the network that `build` makes on the examples that `data` gives.

    data: makes or fetches the splits; called often, so it should be cached.
    batch_size: None for all training examples at once, in their order.
    steps: the horizon.
    stream: joins the seed of the batches, so that problems with other streams and equal
    data have other batches.
    evaluation: the objective that `evaluate` reports, if it is not that of training.
    evaluation_batch: examples that are evaluated at a time.
    """

    name: str
    data: Callable[[], Splits]
    build: Callable[[], nn.Module]
    objective: Objective
    batch_size: int | None
    steps: int
    stream: tuple[int, ...] = ()
    evaluation: Objective | None = None
    evaluation_batch: int = EVALUATION_BATCH

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return self.build()

    def batch(self, seed: int, step: int) -> Batch:
        train = self.data().train
        if self.batch_size is None:
            indices = torch.arange(len(train))
        else:
            key = derive_seed(seed, 1, *self.stream)
            indices = batch_indices(len(train), self.batch_size, seed=key, step=step)
        with seeded(seed, 3, step, *self.stream):  # noise in the examples
            return train.batch(indices)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return self.objective.loss(model(inputs), targets)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        examples = getattr(self.data(), split)
        size = len(examples) if limit is None else min(limit, len(examples))
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        objective = self.evaluation or self.objective
        loss = correct = 0.0
        with seeded(0, 4):  # every evaluation sees the same noise
            for indices in torch.arange(size).split(self.evaluation_batch):
                inputs, targets = on_device(examples.batch(indices), device)
                outputs = model(inputs)
                loss += len(indices) * objective.loss(outputs, targets).item()
                if objective.accuracy is not None:
                    right = objective.accuracy(outputs, targets)
                    correct += len(indices) * right.item()
        accuracy = None if objective.accuracy is None else correct / size
        return Metrics(loss / size, accuracy)
