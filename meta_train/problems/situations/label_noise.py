"""Labels of which some are wrong in training, and right in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from meta_train.problems.common import FASHION_14, MNIST_7, MNIST_14
from meta_train.problems.networks.convolutional import paper_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.kinds import SHALLOW_VIT, Kind
from meta_train.problems.situations.problems import classify
from meta_train.problems.supervised import Batch, Examples, Splits, first


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
    generator = torch.Generator().manual_seed(round(1000 * share) + limit)
    labels = torch.randint(10, (limit,), generator=generator)
    is_right = torch.rand(limit, generator=generator) >= share
    wrong = Mislabelled(train, labels.masked_fill(is_right, -1))
    return Splits(wrong, validation, test)


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
            SHALLOW_VIT,
            64,
            500,
        )
    ],
)


KINDS: dict[str, Kind] = {
    "wrong labels": _NOISE,
}
