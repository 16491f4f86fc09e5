from math import sqrt

import numpy as np
import pytest
import torch

from meta_train.training.train import MetaTrainer
from tests.meta_train.training.test_train import config


def test_horizons_grow_and_are_log_uniform(tmp_path):
    trainer = MetaTrainer(config(tmp_path, shortest=10, horizon=1000, outer_steps=100))
    slot = trainer.optimizees[0]
    for step, top in ((0, 10), (25, 100), (50, 1000), (100, 1000)):
        found = []
        for slot.life in range(200):
            found.append(slot.next_horizon(step))
        assert 10 <= min(found) <= max(found) <= top
        assert np.median(found) == pytest.approx(sqrt(10 * top), rel=0.4)


def test_optimizees_restart_at_their_horizon(tmp_path):
    trainer = MetaTrainer(
        config(tmp_path, truncation=5, optimizees=1, horizon=12, loss_limit=1e6)
    )
    ages = []
    for _ in range(4):
        trainer.step()
        ages.append(trainer.optimizees[0].age)
    assert ages == [5, 10, 0, 5]
    trainer = MetaTrainer(config(tmp_path, estimator="es", optimizees=1, horizon=12))
    assert trainer.optimizees[0].steps == 12
    trainer.step()
    assert (trainer.optimizees[0].life, trainer.optimizees[0].age) == (1, 0)


def test_diverged_optimizees_restart_and_are_skipped(tmp_path):
    trainer = MetaTrainer(config(tmp_path))
    with torch.no_grad():
        trainer.metanet.head.layers[-1].bias.fill_(1e6)
    trainer.step()
    assert [slot.life for slot in trainer.optimizees] == [1, 1]
    assert all(slot.state is None for slot in trainer.optimizees)
    assert all(p.isfinite().all() for p in trainer.metanet.parameters())


def test_optimizees_have_different_ages(tmp_path):
    trainer = MetaTrainer(config(tmp_path, optimizees=4, loss_limit=1e6))
    for _ in range(6):
        trainer.step()
    assert len({slot.age for slot in trainer.optimizees}) == 4
    assert len({slot.seed for slot in trainer.optimizees}) == 4
