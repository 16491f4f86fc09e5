"""The optimizees that train at the same time: their ages, horizons and lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.random import derive_seed, seeded
from meta_train.training.worker import Job


@dataclass
class Slot:
    """One of the optimizees that train at the same time; `life` counts how often it was
    begun anew.

    horizon: steps of this life. state: None before its first, and in ranks that do not
    own it.
    """

    number: int
    horizon: int
    life: int = 0
    age: int = 0
    state: Any = None
    first_loss: float | None = None


@dataclass(frozen=True)
class LifeConfig:
    """What lives depend on; fields as in `train.Config`."""

    optimizees: int
    estimator: str
    outer_steps: int
    truncation: int
    horizon: int
    shortest: int | None
    loss_limit: float
    seed: int


class Lives:
    """How long optimizees live, and what is unrolled next."""

    def __init__(self, config: LifeConfig):
        self.config = config

    def first(self) -> list[Slot]:
        """The first lives have different lengths, so that ages differ from then on;
        where horizons grow, they are the shortest."""
        count, horizon = self.config.optimizees, self.config.horizon
        if self.config.shortest is not None:
            return [Slot(i, self.config.shortest) for i in range(count)]
        return [Slot(i, max(1, horizon * (i + 1) // count)) for i in range(count)]

    def steps(self, slot: Slot) -> int:
        """Inner steps of the next truncation."""
        rest = slot.horizon - slot.age
        is_whole = self.config.estimator == "es"
        return rest if is_whole else min(self.config.truncation, rest)

    def seed(self, slot: Slot) -> int:
        return derive_seed(self.config.seed, 10, slot.number, slot.life)

    def job(self, slot: Slot) -> Job:
        return Job(
            seed=self.seed(slot),
            steps=self.steps(slot),
            age=slot.age,
            horizon=slot.horizon,
            state=slot.state,
            first_loss=slot.first_loss,
        )

    def advance(
        self, slot: Slot, first_loss: float, inner_loss: float, outer_step: int
    ) -> None:
        """Keeps where an optimizee stands; begins it anew when its time is over or it
        diverged.

        inner_loss: of the truncation; infinite where that was of no use.
        """
        slot.age, slot.first_loss = slot.age + self.steps(slot), first_loss
        limit = 0.5 * (1 + self.config.loss_limit) * first_loss
        has_diverged = not inner_loss <= limit  # also where the first loss is no number
        if has_diverged or slot.age >= slot.horizon:
            slot.life += 1
            slot.age = 0
            slot.state = slot.first_loss = None
            slot.horizon = self.next_horizon(slot, outer_step)

    def next_horizon(self, slot: Slot, outer_step: int) -> int:
        """Steps of the life that begins."""
        config = self.config
        if config.shortest is None:
            return config.horizon
        progress = min(1.0, 2 * outer_step / config.outer_steps)
        with seeded(config.seed, 13, slot.number, slot.life):
            exponent = progress * torch.rand((), dtype=torch.float64).item()
        return round(config.shortest * (config.horizon / config.shortest) ** exponent)
