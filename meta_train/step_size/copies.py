"""Runs a training run at several settings and seeds at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.random import seeded
from meta_train.copies import Copies, LossOf
from meta_train.step_size.sources import Loss
from meta_train.step_size.trainings import Training
from ngopt.soap.soap import Soap

MULTIPLIERS = 0.5, 1.0, 2.0
SEEDS = 0, 1

Factors = Sequence[float]
"""Of the step sizes of all parameters."""


class Outcome(NamedTuple):
    """What a training came to, by variant and seed.

    first: validation loss of the initial weights, (seeds,). validation: at the end,
    (variants, seeds); inf if it diverged.
    """

    first: Tensor
    validation: Tensor


def measured(training: Training, variants: Sequence[Factors]) -> Outcome:
    """The outcome with all factors of step sizes, `variants`, and `SEEDS`."""
    copies = copies_of(training, variants)
    first = validation_loss(copies, training)[: len(SEEDS)]
    task = training.task
    with seeded(training.seed, 4):
        for step in range(training.steps):
            chosen = [training.indices(seed, step) for seed in SEEDS]
            indices = torch.stack(chosen).repeat(len(variants), 1)
            copies.step((task.inputs[indices], task.targets[indices]))
    validation = validation_loss(copies, training).view(len(variants), len(SEEDS))
    return Outcome(first, validation.nan_to_num(torch.inf))


def copies_of(training: Training, variants: Sequence[Factors]) -> Copies:
    """A copy for each variant and seed, seeds fastest."""
    models = [training.build(seed) for _ in variants for seed in SEEDS]
    factors = [x for variant in variants for x in list(variant) * len(SEEDS)]
    loss = on_outputs(training.task.loss)
    return Copies(models, loss, Soap(), training.steps, factors)


def validation_loss(copies: Copies, training: Training) -> Tensor:
    """Of all copies, (copies,)."""
    task = training.task
    examples = task.validation_inputs, task.validation_targets
    return copies.evaluate(on_outputs(task.score), examples)


def on_outputs(function: Loss) -> LossOf:
    """A function of outputs and targets, as one of a network and a batch of both."""
    return lambda model, batch: function(model(batch[0]), batch[1])
