"""When optimizees are restarted, and how many inner steps each unroll has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.random import derive_seed, seeded
from meta_train.training.config import Config


@dataclass
class OptimizeeProgress:
    """The inner training of one optimizee.

    life: how often it was restarted. horizon: its inner steps until the next restart.
    age: inner steps since the last one. state: None before the first step, and in ranks
    that do not own the optimizee.
    """

    number: int
    horizon: int
    life: int = 0
    age: int = 0
    state: Any = None
    first_loss: float | None = None


class RestartSchedule:
    """Restarts optimizees that have reached their horizon or diverged."""

    def __init__(self, config: Config):
        self.config = config

    def start(self) -> list[OptimizeeProgress]:
        """All optimizees before their first step.

        Their first horizons differ, so that their ages differ later. Where horizons
        grow, they begin with the shortest.
        """
        count, horizon = self.config.optimizees, self.config.horizon
        found = []
        for i in range(count):
            first = self.config.shortest or max(1, horizon * (i + 1) // count)
            found.append(OptimizeeProgress(i, first))
        return found

    def steps(self, optimizee: OptimizeeProgress) -> int:
        """Inner steps of the next truncation."""
        rest = optimizee.horizon - optimizee.age
        if self.config.estimator == "es":
            return rest
        return min(self.config.truncation, rest)

    def seed(self, optimizee: OptimizeeProgress) -> int:
        """Of its initial weights and batches, another one after a restart."""
        return derive_seed(self.config.seed, 10, optimizee.number, optimizee.life)

    def advance(
        self,
        optimizee: OptimizeeProgress,
        first_loss: float,
        inner_loss: float,
        outer_step: int,
    ) -> None:
        """Adds a truncation, and restarts at the horizon or after divergence.

        inner_loss: mean of the truncation; inf if it was not finite.
        """
        optimizee.age += self.steps(optimizee)
        optimizee.first_loss = first_loss
        limit = 0.5 * (1 + self.config.loss_limit) * first_loss
        has_diverged = not inner_loss <= limit  # also if the first loss is nan
        if has_diverged or optimizee.age >= optimizee.horizon:
            optimizee.life += 1
            optimizee.age = 0
            optimizee.state = optimizee.first_loss = None
            optimizee.horizon = self.next_horizon(optimizee, outer_step)

    def next_horizon(self, optimizee: OptimizeeProgress, outer_step: int) -> int:
        config = self.config
        if config.shortest is None:
            return config.horizon
        progress = min(1.0, 2 * outer_step / config.outer_steps)
        with seeded(config.seed, 13, optimizee.number, optimizee.life):
            exponent = progress * torch.rand((), dtype=torch.float64).item()
        return round(config.shortest * (config.horizon / config.shortest) ** exponent)
