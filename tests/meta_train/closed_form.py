"""Tiny problems and metanets whose unrolls can be worked out by hand, in float64."""

import os
import signal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems import Metrics
from ngopt.metanets import Metanet
from ngopt.metanets.feedforward import FeedForwardConfig


class Regression:
    """A small network on random data."""

    name = "regression"
    steps = 12

    def __init__(self, layers=None):
        self.layers = layers or (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        )

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return self.layers().double()

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        with seeded(seed, 1, step):
            inputs = torch.randn(6, 3, dtype=torch.float64)
        return inputs, torch.stack([inputs[:, 0].tanh(), inputs.sum(-1) / 3], dim=-1)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        loss = self.loss(
            model, self.batch({"validation": -1, "test": -2}[split], 0)
        ).item()
        return Metrics(loss, 1 / (1 + loss))


class Regression32(Regression):
    """The same in float32, as the command line needs it."""

    def init(self, seed: int) -> nn.Module:
        return super().init(seed).float()

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = super().batch(seed, step)
        return inputs.float(), targets.float()


class Deadly(Regression32):
    """Kills its process in the third life of one optimizee."""

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        if "RANK" in os.environ and os.environ["RANK"] == "1" and self.seen(seed) > 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(seed, step)

    def seen(self, seed: int) -> int:
        """Different seeds so far: of lives and of validations."""
        self.seeds = {*getattr(self, "seeds", ()), seed}
        return len(self.seeds)


class RecoveredGradient(Metanet):
    """A hand-designed rule with one learnable step size: u = -lr * g.

    The preprocessing loses nothing, so the gradient can be had back from its two
    features.
    """

    def __init__(self, lr: float = 0.1):
        super().__init__(FeedForwardConfig())
        self.lr = nn.Parameter(torch.tensor(lr, dtype=torch.float64))

    def updates(self, features: Tensor, context) -> Tensor:
        log = features[..., 1]
        sign = features[..., 8]
        return -self.lr * sign * torch.exp(10 * log)


class Drift(Metanet):
    """Dynamics linear in the meta-parameters: every parameter moves by theta at each
    step."""

    def __init__(self):
        super().__init__(FeedForwardConfig())
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def updates(self, features: Tensor, context) -> Tensor:
        return self.theta.expand(features.shape[:-1])


class Slope(Regression):
    """A loss linear in the parameters: 3 * p."""

    def init(self, seed: int) -> nn.Module:
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(model.weight)
        return model

    def batch(self, seed: int, step: int) -> Tensor:
        return torch.full((1, 1), 3.0, dtype=torch.float64)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sum()
