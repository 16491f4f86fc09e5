"""Training labels of which some are wrong; evaluation labels are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from meta_train.problems.common import FASHION_14, MNIST_7, MNIST_14
from meta_train.problems.networks.convolutional import paper_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import VisionTransformer
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import classify
from meta_train.problems.supervised import Batch, Examples, Splits, first


@dataclass(frozen=True)
class Mislabelled:
    """Examples of which some have a fixed random label.

    labels: (len(examples),) int64, the random labels; -1 keeps the right label.
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
    """Splits with `limit` training examples, a share of them with random labels."""
    train, validation, test = first(data, limit)
    generator = torch.Generator().manual_seed(round(1000 * share) + limit)
    labels = torch.randint(10, (limit,), generator=generator)
    is_right = torch.rand(limit, generator=generator) >= share
    wrong = Mislabelled(train, labels.masked_fill(is_right, -1))
    return Splits(wrong, validation, test)


MNIST_40 = partial(mislabelled, MNIST_7, 0.4, 4000)
FASHION_30 = partial(mislabelled, FASHION_14, 0.3, 4000)
MNIST_50 = partial(mislabelled, MNIST_14, 0.5, 6000)
MLP = partial(mlp, (49, 128, 10))
CNN = partial(paper_cnn, 1, (16, 32, 32))
VIT = partial(VisionTransformer, 1, 14, 7, 48, 3, 1)

KINDS = {
    "wrong labels": Kind(
        developing=[classify("noise-mlp-40", MNIST_40, MLP, 64, 800)],
        validating=[classify("noise-cnn-30", FASHION_30, CNN, 64, 600)],
        testing=[classify("noise-vit-50", MNIST_50, VIT, 64, 500)],
    )
}
