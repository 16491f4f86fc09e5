"""Predictors of the best step size, from plain to rich.

All map features (n, d) to log2 multipliers (n,). They are fitted to gains (n, m) at
`log_multipliers`, not to best multipliers, so that too large costs what it costs.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from sklearn.ensemble import GradientBoostingRegressor
from torch import Tensor, nn

from meta_train.step_size.outcomes import interpolated

LOSS_WEIGHT = 2.0  # a loss counts as much as a gain of twice its size


class Model(Protocol):
    def fit(self, x: np.ndarray, gains: np.ndarray) -> None: ...

    def predict(self, x: np.ndarray) -> np.ndarray: ...


def utility(gains: np.ndarray) -> np.ndarray:
    """Gains, with losses weighted more."""
    return np.where(gains < 0, LOSS_WEIGHT * gains, gains)


class Constant:
    """The best multiplier for all."""

    def __init__(self, log_multipliers: np.ndarray):
        self.log_multipliers = log_multipliers
        self.best = 0.0

    def fit(self, x: np.ndarray, gains: np.ndarray) -> None:
        values = utility(gains)
        grid = np.linspace(-2, 2, 41)
        means = []
        for place in grid:
            at = np.full(len(values), place)
            means.append(interpolated(at, self.log_multipliers, values).mean())
        self.best = float(grid[int(np.argmax(means))])

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.full(len(x), self.best)


class Network:
    """A linear map or a small MLP, trained on the gains themselves.

    width: of the hidden layer; 0 for a linear map. penalty: of squared weights.
    """

    def __init__(
        self,
        log_multipliers: np.ndarray,
        width: int = 0,
        penalty: float = 1e-3,
        steps: int = 400,
        seeds: int = 1,
    ):
        self.log_multipliers = torch.tensor(log_multipliers, dtype=torch.float32)
        self.width, self.penalty, self.steps, self.seeds = width, penalty, steps, seeds
        self.nets: list[nn.Module] = []

    def _build(self, size: int) -> nn.Module:
        if not self.width:
            net = nn.Linear(size, 1)
            nn.init.zeros_(net.weight)
            nn.init.zeros_(net.bias)
            return net
        last = nn.Linear(self.width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(size, self.width), nn.Tanh(), last)

    def fit(self, x: np.ndarray, gains: np.ndarray) -> None:
        self.mean, self.scale = x.mean(0), x.std(0) + 1e-6
        inputs = self._standardised(x)
        values = torch.tensor(utility(gains), dtype=torch.float32)
        self.nets = []
        for seed in range(self.seeds):
            torch.manual_seed(seed)
            net = self._build(x.shape[1])
            opt = torch.optim.Adam(net.parameters(), 0.02)
            falling = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.02, self.steps)
            for _ in range(self.steps):
                place = self._bounded(net(inputs)[:, 0])
                gain = _interpolated(place, self.log_multipliers, values).mean()
                size = sum(p.square().sum() for p in net.parameters() if p.dim() > 1)
                opt.zero_grad()
                (self.penalty * size - gain).backward()
                opt.step()
                falling.step()
            self.nets.append(net)

    def _standardised(self, x: np.ndarray) -> Tensor:
        z = ((x - self.mean) / self.scale).clip(-4, 4)
        return torch.tensor(z, dtype=torch.float32)

    @staticmethod
    def _bounded(x: Tensor) -> Tensor:
        return 3 * (x / 3).tanh()

    @torch.no_grad()
    def predict(self, x: np.ndarray) -> np.ndarray:
        inputs = self._standardised(x)
        found = [self._bounded(net(inputs)[:, 0]).numpy() for net in self.nets]
        return np.mean(found, 0)


def _interpolated(x: Tensor, log_multipliers: Tensor, rows: Tensor) -> Tensor:
    """See `outcomes.interpolated`."""
    low, step = log_multipliers[0], log_multipliers[1] - log_multipliers[0]
    place = ((x - low) / step).clamp(0, len(log_multipliers) - 1)
    left = place.detach().long().clamp(max=len(log_multipliers) - 2)
    share = place - left
    at_left = rows.gather(1, left[:, None])[:, 0]
    at_right = rows.gather(1, left[:, None] + 1)[:, 0]
    return (1 - share) * at_left + share * at_right


class Trees:
    """Gradient-boosted trees for the curve of gains: one per multiplier."""

    def __init__(self, log_multipliers: np.ndarray, depth: int = 3, count: int = 150):
        self.log_multipliers = log_multipliers
        self.depth, self.count = depth, count
        self.models: list[GradientBoostingRegressor] = []

    def fit(self, x: np.ndarray, gains: np.ndarray) -> None:
        values = utility(gains)
        self.models = []
        for column in values.T:
            model = GradientBoostingRegressor(
                n_estimators=self.count,
                max_depth=self.depth,
                learning_rate=0.05,
                subsample=0.5,
                min_samples_leaf=10,
                random_state=0,
            )
            self.models.append(model.fit(x, column))

    def predict(self, x: np.ndarray) -> np.ndarray:
        curves = np.stack([model.predict(x) for model in self.models], 1)
        return best_of(curves, self.log_multipliers)


def best_of(curves: np.ndarray, log_multipliers: np.ndarray) -> np.ndarray:
    """The vertex of a parabola through the best of m values and its neighbours."""
    best = curves.argmax(1).clip(1, len(log_multipliers) - 2)
    n = np.arange(len(curves))
    left, mid, right = (curves[n, best + k] for k in (-1, 0, 1))
    bend = np.minimum(left - 2 * mid + right, -1e-9)
    shift = ((left - right) / (2 * bend)).clip(-1, 1)
    step = log_multipliers[1] - log_multipliers[0]
    return log_multipliers[best] + shift * step
