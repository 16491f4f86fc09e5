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
        self.log_multipliers = torch.tensor(log_multipliers)
        self.best = 0.0

    def fit(self, x: np.ndarray, gains: np.ndarray) -> None:
        values = torch.tensor(utility(gains))
        grid = np.linspace(-2, 2, 41)
        means = []
        for place in grid:
            at = torch.full((len(values),), place, dtype=values.dtype)
            gain = interpolated(at, self.log_multipliers, values)
            means.append(gain.mean().item())
        best = int(np.argmax(means))
        self.best = float(grid[best])

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
        self.width = width
        self.penalty = penalty
        self.steps = steps
        self.seeds = seeds
        self.nets: list[nn.Module] = []

    def _build(self, size: int) -> nn.Module:
        last = nn.Linear(self.width or size, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if not self.width:
            return last
        first = nn.Linear(size, self.width)
        return nn.Sequential(first, nn.Tanh(), last)

    def fit(self, x: np.ndarray, gains: np.ndarray) -> None:
        self.mean = x.mean(0)
        self.scale = x.std(0) + 1e-6
        inputs = self._standardised(x)
        values = torch.tensor(utility(gains), dtype=torch.float32)
        self.nets = []
        for seed in range(self.seeds):
            torch.manual_seed(seed)
            net = self._build(x.shape[1])
            opt = torch.optim.Adam(net.parameters(), 0.02)
            falling = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.02, self.steps)
            matrices = [p for p in net.parameters() if p.dim() > 1]
            for _ in range(self.steps):
                place = self._place(net, inputs)
                gain = interpolated(place, self.log_multipliers, values)
                size = sum(p.square().sum() for p in matrices)
                loss = self.penalty * size - gain.mean()
                opt.zero_grad()
                loss.backward()
                opt.step()
                falling.step()
            self.nets.append(net)

    def _standardised(self, x: np.ndarray) -> Tensor:
        z = (x - self.mean) / self.scale
        return torch.tensor(z.clip(-4, 4), dtype=torch.float32)

    @staticmethod
    def _place(net: nn.Module, inputs: Tensor) -> Tensor:
        x = net(inputs)[:, 0]
        return 3 * (x / 3).tanh()

    @torch.no_grad()
    def predict(self, x: np.ndarray) -> np.ndarray:
        inputs = self._standardised(x)
        found = []
        for net in self.nets:
            found.append(self._place(net, inputs).numpy())
        return np.mean(found, 0)


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
    best = curves.argmax(1)
    best = best.clip(1, len(log_multipliers) - 2)
    n = np.arange(len(curves))
    left = curves[n, best - 1]
    mid = curves[n, best]
    right = curves[n, best + 1]
    bend = np.minimum(left - 2 * mid + right, -1e-9)
    shift = (left - right) / (2 * bend)
    step = log_multipliers[1] - log_multipliers[0]
    return log_multipliers[best] + shift.clip(-1, 1) * step
