"""Problems made of parts: examples, a network, and an objective for its outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from harness.image_datasets import batch_indices
from harness.random import derive_seed, seeded
from meta_train.problems.protocol import Metrics

EVALUATION_BATCH = 500  # examples at a time

Batch = tuple[Any, Any]  # inputs of the network, and targets of its outputs


@dataclass(frozen=True, eq=False)
class Examples:
    """A split of a data set.

    batch: the examples of some indices (b,). It may draw noise from torch's generator.
    """

    count: int
    batch: Callable[[Tensor], Batch]

    def __len__(self) -> int:
        return self.count

    def map(self, function: Callable[[Any, Any], Batch]) -> "Examples":
        """The same examples with every batch mapped by a function."""
        return Examples(self.count, lambda indices: function(*self.batch(indices)))


class Splits(NamedTuple):
    """Training, validation and test examples."""

    train: Examples
    validation: Examples
    test: Examples

    def map(self, function: Callable[[Any, Any], Batch]) -> "Splits":
        """The same splits with every batch mapped by a function."""
        return Splits(*(examples.map(function) for examples in self))


def tensor_examples(inputs: Tensor, targets: Tensor) -> Examples:
    """Examples that are rows of two tensors."""
    return Examples(len(inputs), lambda indices: (inputs[indices], targets[indices]))


def on_itself(inputs: Tensor, targets: Tensor) -> Splits:
    """The same examples for training, validation and test."""
    return Splits(*[tensor_examples(inputs, targets)] * 3)


Data = Callable[[], Splits]
"""Makes or loads the splits; called often, so it should be cached."""


def on_batches(function: Callable[[Any, Any], Batch]) -> Callable[[Data], Data]:
    """From a function of a batch to one of data, which maps every batch."""
    return lambda data: lambda: data().map(function)


def first(data: Data, count: int) -> Data:
    """The same splits with the first `count` training examples alone."""
    return lambda: data()._replace(train=Examples(count, data().train.batch))


@dataclass(frozen=True)
class Objective:
    """Mean loss and accuracy of a batch; both take outputs and targets."""

    loss: Callable[[Any, Any], Tensor]
    accuracy: Callable[[Any, Any], Tensor] | None = None


def at_most(size: int, limit: int | None) -> int:
    """The number of examples to evaluate: `size`, or `limit` if that is less."""
    return size if limit is None else min(limit, size)


def device_of(model: nn.Module) -> torch.device:
    """The device of the parameters; the CPU for a model without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device."""
    return tree_map_only(Tensor, lambda x: x.to(device), batch)


def fraction_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy of logits (b, classes, ...) for labels (b, ...), ()."""
    return (logits.argmax(1) == labels).float().mean()


CLASSIFY = Objective(F.cross_entropy, fraction_correct)
REGRESS = Objective(F.mse_loss)


@dataclass(frozen=True)
class SupervisedProblem:
    """Trains the network of `build` on the examples of `data`.

    batch_size: None for all training examples at once, in their order.
    steps: the horizon.
    evaluation: the objective that `evaluate` reports; `objective` by default.
    evaluation_batch: number of examples per evaluation batch.
    """

    data: Data
    build: Callable[[], nn.Module]
    batch_size: int | None
    steps: int
    objective: Objective
    evaluation: Objective | None = None
    evaluation_batch: int = EVALUATION_BATCH
    name: str = field(default="", kw_only=True)

    @property
    def stream(self) -> tuple[int, ...]:
        """Part of the seed of the batches: problems with equal data and different
        streams have different batches."""
        return ()

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
        size = at_most(len(examples), limit)
        device = device_of(model)
        objective = self.evaluation or self.objective
        loss = correct = 0.0
        with seeded(0, 4):  # the same noise in every evaluation
            for indices in torch.arange(size).split(self.evaluation_batch):
                inputs, targets = on_device(examples.batch(indices), device)
                outputs = model(inputs)
                loss += len(indices) * objective.loss(outputs, targets).item()
                if objective.accuracy is not None:
                    accuracy = objective.accuracy(outputs, targets)
                    correct += len(indices) * accuracy.item()
        has_accuracy = objective.accuracy is not None
        return Metrics(loss / size, correct / size if has_accuracy else None)


Arguments = ParamSpec("Arguments")


def maker(
    kind: type[SupervisedProblem],
    objective: Objective,
    evaluation: Objective | None = None,
    equal_batches: bool = False,
):
    """A function that makes problems, such as `classify`.

    Its arguments are the data, the batch size (None: all examples), the steps, and a
    function or class that makes the network, followed by its arguments.

    equal_batches: batches of evaluation have the size of training batches, for a loss
        that depends on it.
    """

    def make(
        data: Data,
        batch_size: int | None,
        steps: int,
        network: Callable[Arguments, nn.Module],
        *args: Arguments.args,
        **settings: Arguments.kwargs,
    ) -> SupervisedProblem:
        build = partial(network, *args, **settings)
        problem = kind(data, build, batch_size, steps, objective, evaluation)
        if equal_batches and batch_size is not None:
            return replace(problem, evaluation_batch=batch_size)
        return problem

    return make


classify = maker(SupervisedProblem, CLASSIFY)
"""Cross entropy."""
regress = maker(SupervisedProblem, REGRESS)
"""Squared errors."""


def named(problems: Mapping[str, Any]) -> dict[str, Any]:
    """Problems by name, with these names."""
    return {name: replace(problem, name=name) for name, problem in problems.items()}


TEMPERATURE = 0.1  # of the contrastive loss, as in Khosla et al. 2020
QUANTILES = (0.1, 0.5, 0.9)


def vae_loss(outputs: tuple[Tensor, Tensor, Tensor], images: Tensor) -> Tensor:
    """Negative evidence lower bound per pixel (Kingma and Welling 2014, Eq. 10), ()."""
    logits, mean, log_variance = outputs
    error = F.binary_cross_entropy_with_logits(logits, images.flatten(1))
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return error + divergence.sum() / images.numel()


def contrastive_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss of a batch (Khosla et al. 2020, Eq. 2), ().

    embeddings: (b, d), of any length; labels: (b,)
    """
    log_shares = (_cosines(embeddings) / TEMPERATURE).log_softmax(1)
    alike = (labels[:, None] == labels) & ~_diagonal(labels)
    counts = alike.sum(1)
    means = log_shares.masked_fill(~alike, 0).sum(1) / counts.clamp(min=1)
    return -means.sum() / (counts > 0).sum().clamp(min=1)


def neighbour_accuracy(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Share of a batch whose nearest other example has the same label, ()."""
    return (labels[_cosines(embeddings).argmax(1)] == labels).float().mean()


def pinball_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean loss of `QUANTILES` (Koenker and Bassett 1978), ().

    predicted: (b, q), one column for each quantile; target: (b, 1)
    """
    levels = predicted.new_tensor(QUANTILES)
    error = target - predicted
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def _cosines(embeddings: Tensor) -> Tensor:
    """Cosine similarities (b, b), with -inf on the diagonal."""
    unit = F.normalize(embeddings, dim=1)
    return (unit @ unit.mT).masked_fill(_diagonal(embeddings), -torch.inf)


def _diagonal(batch: Tensor) -> Tensor:
    return torch.eye(len(batch), dtype=torch.bool, device=batch.device)


VARIATIONAL = Objective(vae_loss)
CONTRAST = Objective(contrastive_loss, neighbour_accuracy)
PREDICT_QUANTILES = Objective(pinball_loss)
RECONSTRUCT = Objective(F.binary_cross_entropy_with_logits)
