"""Chooses the learning rate of a baseline by its validation loss."""

from __future__ import annotations

from collections.abc import Sequence

from meta_train.comparison.inner_training import Record, Run
from meta_train.comparison.optimizers import OptimizerSpec
from meta_train.comparison.report import mean_validation_losses

FIRST_TUNING_SEED = 1_000_000  # above all seeds of evaluation, which begin at 0


def plan_tuning(problem: str, spec: OptimizerSpec, steps: int, seeds: int) -> list[Run]:
    """Runs with all learning rates of an optimizer's grid, each with `seeds` seeds."""
    runs = []
    for lr in spec.lrs:
        for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + seeds):
            runs.append(Run(problem, spec.name, lr, None, seed, steps, "tuning"))
    return runs


def choose_lr(tuning: Sequence[Record]) -> float | None:
    """The learning rate with the lowest mean validation loss, the first of equals.

    None without records.
    """
    losses = mean_validation_losses(tuning)
    return min(losses, key=losses.__getitem__, default=None)
