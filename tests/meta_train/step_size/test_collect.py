from dataclasses import replace

import pytest
import torch

from meta_train.step_size.collect import (
    MULTIPLIERS,
    SEEDS,
    copies_of,
    measured,
    validation_loss,
)
from meta_train.step_size.trainings import Training
from ngopt import NGOptimizer

BASE = Training(
    seed=0,
    family="mlp",
    task_name="clusters",
    activation="tanh",
    norm="layer",
    skip=True,
    weights="torch",
    depth=3,
    width=12,
    batch=8,
    steps=6,
    examples=64,
    noise=0.1,
)
TRAININGS = {
    "mlp": BASE,
    "equation": replace(BASE, family="solver", task_name="poisson", norm="none"),
    "words": replace(BASE, family="gpt", task_name="markov", width=16, depth=1),
}


def alone(training, multiplier, seed):
    """Validation loss of one copy, trained with the optimizer."""
    model = training.build(seed)
    params = [(name, p) for name, p in model.named_parameters()]
    opt = NGOptimizer(params, scale=multiplier, total_steps=training.steps)
    task = training.task
    for step in range(training.steps):
        chosen = training.indices(seed, step)
        opt.zero_grad()
        task.loss(model(task.inputs[chosen]), task.targets[chosen]).backward()
        opt.step()
    model.eval()
    with torch.no_grad():
        return task.score(model(task.validation_inputs), task.validation_targets).item()


def multiples(training):
    """A variant for each of `MULTIPLIERS`."""
    count = len(list(training.build(0).parameters()))
    return [[factor] * count for factor in MULTIPLIERS]


@pytest.mark.parametrize("name", TRAININGS)
def test_copies_train_as_if_each_were_alone(name):
    training = TRAININGS[name]
    _, validation = measured(training, multiples(training))
    for i, j in ((1, 0), (2, 1)):
        expected = alone(training, MULTIPLIERS[i], SEEDS[j])
        assert validation[i, j].item() == pytest.approx(expected, rel=1e-4)


def test_a_diverged_copy_is_infinite_and_others_are_not():
    copies = copies_of(BASE, multiples(BASE))
    before = validation_loss(copies, BASE)
    for p in copies.params.values():
        p[0].fill_(torch.inf)
    losses = validation_loss(copies, BASE)
    assert not losses[0].isfinite()
    torch.testing.assert_close(losses[1:], before[1:])
