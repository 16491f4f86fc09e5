from dataclasses import dataclass, field

import pytest
import torch

from harness.distributed import Ranks
from meta_train.training.rank_assignment import StepCosts, assign_ranks
from meta_train.training.train import MetaTrainer
from tests.meta_train.training.test_train import config


def test_the_most_expensive_first_to_who_has_the_least_to_do():
    assert assign_ranks([2, 1, 2, 1], [0, 1, 0, 1], 2) == [0, 0, 1, 1]
    assert assign_ranks([3, 1, 1, 1], [0, 0, 1, 1], 2) == [0, 1, 1, 1]
    assert assign_ranks([1, 1], [0, 0], 3) == [0, 1]


def test_what_is_good_enough_stays():
    assert assign_ranks([1, 1, 1], [0, 1, 1], 2) == [0, 1, 1]
    assert assign_ranks([1.04, 1, 1, 1], [0, 0, 1, 1], 2) == [0, 0, 1, 1]
    assert assign_ranks([5, 1], [0, 0], 1) == [0, 0]


def test_costs_are_means_of_what_was_measured():
    costs = StepCosts()
    assert costs.seconds(problem=0, steps=7) == 7
    costs.add(problem=0, steps=10, seconds=1.0)
    costs.add(problem=0, steps=30, seconds=1.0)
    costs.add(problem=2, steps=1, seconds=0.15)
    assert costs.seconds(problem=0, steps=20) == pytest.approx(1.0)
    assert costs.seconds(problem=1, steps=20) == pytest.approx(2.0)


@dataclass(frozen=True)
class Second(Ranks):
    """The second of two ranks, for which the first is played."""

    first: dict = field(default_factory=dict)

    def all_gather(self, own):
        return {**self.first, **own}


def test_an_optimizee_takes_its_state_along(tmp_path):
    ranks = Second(1, 2, {0: torch.zeros(1), 2: torch.full((1,), 2.0)})
    toys = ("tests.meta_train.by_hand:Regression32",) * 4
    trainer = MetaTrainer(config(tmp_path, optimizees=4, problems=toys), ranks)
    assert trainer.owners == [0, 1, 0, 1]
    for optimizee in trainer.optimizees:
        if trainer.owners[optimizee.number] == 1:
            optimizee.state = torch.full((1,), float(optimizee.number))
    costs = {
        optimizee.number: 2.0 - optimizee.number % 2 for optimizee in trainer.optimizees
    }
    trainer.costs.seconds = lambda problem, steps: costs.pop(min(costs))
    trainer._assign_ranks()
    assert trainer.owners == [0, 0, 1, 1]
    assert [optimizee.state for optimizee in trainer.optimizees] == [
        None,
        None,
        2.0,
        3.0,
    ]
