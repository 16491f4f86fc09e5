"""Problems so small that a whole run takes milliseconds,
and the names `load_problem` finds them by."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.image_datasets import DatasetUnavailable
from harness.random import seeded
from meta_train.problems import Metrics, load_problem

TOY = f"{__name__}:Toy"
CONTRARY = f"{__name__}:Contrary"
SILENT = f"{__name__}:Silent"


def available(name):
    """A problem of some name. Skips the test where its data cannot be had."""
    problem = load_problem(name)
    try:
        problem.batch(0, 0)
        problem.init(0)
    except DatasetUnavailable as error:
        pytest.skip(f"{name}: {error}")
    return problem


class Toy:
    """Which of three outputs of a linear map is largest;
    a network with dropout and running statistics."""

    name = "toy"
    steps = 40

    def init(self, seed):
        with seeded(seed, 0):
            return nn.Sequential(
                nn.Linear(6, 8),
                nn.BatchNorm1d(8),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(8, 3),
            )

    def batch(self, seed, step):
        return self._examples(16, seed, 1, step)

    def loss(self, model, batch):
        assert model.training
        return F.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(self, model, split, limit=None):
        assert not model.training
        x, y = (
            part[:limit]
            for part in self._examples(200, {"validation": 7, "test": 8}[split])
        )
        logits = model(x)
        return Metrics(
            F.cross_entropy(logits, y).item(),
            (logits.argmax(-1) == y).float().mean().item(),
        )

    def _examples(self, size, *key):
        with seeded(3):
            truth = torch.randn(6, 3)
        with seeded(*key):
            x = torch.randn(size, 6)
        return x, (x @ truth).argmax(-1)


class Contrary(Toy):
    """Test metrics are the opposite of validation metrics:
    the best on one is the worst on the other."""

    name = "contrary"

    def evaluate(self, model, split, limit=None):
        metrics = super().evaluate(model, "validation", limit)
        if split == "validation":
            return metrics
        return Metrics(10 - metrics.loss, 1 - metrics.accuracy)


class Silent(Toy):
    """Has a loss, and no accuracy."""

    name = "silent"

    def evaluate(self, model, split, limit=None):
        return super().evaluate(model, split, limit)._replace(accuracy=None)
