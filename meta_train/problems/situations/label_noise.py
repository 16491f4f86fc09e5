"""Training labels of which some are wrong; evaluation labels are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from meta_train.problems.situations.kinds import read_kinds
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


KINDS = read_kinds(__file__, globals())
