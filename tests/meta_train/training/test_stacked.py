"""Several optimizees as one: estimates are those of each alone."""

import re
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from meta_train.training import train
from meta_train.training.estimators import PES, TBPTT, SecondOrderTBPTT
from meta_train.training.train import MetaTrainer
from meta_train.training.unroll import Optimizee, Stack, stacked, unstacked
from ngopt.metanets import METANETS
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.meta_train.closed_form import Regression
from tests.meta_train.training.test_train import config
from tests.metanets import metanet_for
from tests.networks import FromFunction
from tests.selection import quick_first

ESTIMATORS = {
    "tbptt": TBPTT(tail=0.5),
    "second order": SecondOrderTBPTT(),
    "pes": PES(),
}


def normalised():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def unused():
    """Has a parameter without a gradient."""
    return FromFunction(lambda m, x: m.used(x), used=(3, 2), unused=(3, 2))


def regressions(name="ff", layers=None, seeds=(1, 2), **changes):
    """Optimizees, and a learned optimizer for them, in float64."""
    torch.manual_seed(0)
    optimizees = [Optimizee(Regression(layers), seed=seed) for seed in seeds]
    metanet = metanet_for(name, optimizees[0].graph)
    if changes:
        metanet = metanet.reconfigured(**changes).double()
    return optimizees, LearnedOptimizer(metanet)


def check_alone_and_stacked(
    optimizees, learned, estimator, truncations=(3, 2), rtol=1e-9
):
    """The estimates of all truncations, alone."""
    states = [estimator.start(optimizee, learned) for optimizee in optimizees]
    whole, found = stacked(states), []
    for steps in truncations:
        alone = [
            estimator.estimate(optimizee, learned, state, steps)
            for optimizee, state in zip(optimizees, states, strict=True)
        ]
        together, whole = estimator.estimate(Stack(optimizees), learned, whole, steps)
        states = [state for _, state in alone]
        parts = unstacked((together, whole), len(optimizees))
        for one, other in zip(alone, parts, strict=True):
            assert type(one[1]) is type(other[1])
            torch.testing.assert_close(list(one), list(other), rtol=rtol, atol=rtol)
        found += [estimate for estimate, _ in alone]
    return found


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", sorted(METANETS))
def test_stacked_meta_gradients_are_those_of_each_alone(name, estimator):
    optimizees, learned = regressions(name, seeds=(1, 2, 3))
    found = check_alone_and_stacked(optimizees, learned, ESTIMATORS[estimator])
    gradients = torch.stack([estimate.meta_gradient for estimate in found])
    assert torch.pdist(gradients).min() > 1e-4


@pytest.mark.parametrize(
    ("layers", "estimator"),
    quick_first(
        product((normalised, unused), ESTIMATORS),
        [(normalised, "pes"), (normalised, "second order"), (unused, "tbptt")],
    ),
)
def test_buffers_and_absent_gradients(layers, estimator):
    check_alone_and_stacked(*regressions("ng-gnn", layers), ESTIMATORS[estimator])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_metanets_that_depend_on_the_step(estimator):
    """The graph is read in every second step, and updates have a cooldown."""
    optimizees, learned = regressions("ng-gnn", graph_every=2)
    learned = replace(learned, cooldown=Cooldown(1.5, 0.6))
    made = type(ESTIMATORS[estimator])(total_steps=5)
    # the context is stored in bfloat16, where a rounding may fall otherwise
    check_alone_and_stacked(optimizees, learned, made, rtol=1e-3)


def test_features_made_when_read(monkeypatch):
    """As those of a network of many parameters are, where nothing is differentiated."""
    monkeypatch.setattr("ngopt.metanets.stepping.rule.SMALL_NETWORK", 0)
    check_alone_and_stacked(*regressions("ng-gnn"), ESTIMATORS["pes"])


def test_limits_of_each():
    optimizees, learned = regressions()
    states = [TBPTT().start(optimizee, learned) for optimizee in optimizees]
    estimator = TBPTT(loss_limit=torch.tensor([1e-3, 1e3], dtype=torch.float64))
    found, _ = estimator.estimate(Stack(optimizees), learned, stacked(states), 3)
    assert found.meta_loss[0] == 1e-3
    assert found.meta_loss[1] < 1e3
    assert found.meta_gradient[0].abs().max() == 0
    assert found.meta_gradient[1].abs().max() > 0


def test_dropout_differs_between_optimizees():
    def layers():
        return nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Linear(64, 2))

    optimizees, learned = regressions(layers=layers, seeds=(1, 1))
    stack = Stack(optimizees)
    start = stacked([TBPTT().start(optimizee, learned) for optimizee in optimizees])
    losses, _ = stack.loss(start.params, start.buffers, start.step)
    again, _ = stack.loss(start.params, start.buffers, start.step)
    assert losses[0] != losses[1]
    assert torch.equal(losses, again)


stacked_config = partial(config, outer_steps=4, optimizees=5, metanet="ng-gnn")


class TestMetaTraining:
    @pytest.mark.parametrize(
        ("estimator", "metanet"), [("tbptt", "ng-gnn"), ("pes", "ff")]
    )
    def test_the_same_numbers(self, tmp_path, estimator, metanet, monkeypatch):
        settings = {"estimator": estimator, "metanet": metanet}
        alone, together = (
            MetaTrainer(
                stacked_config(tmp_path / str(stacked), **settings, stacked=stacked)
            )
            for stacked in (False, True)
        )
        sizes, real = [], together.worker.unroll

        def unroll(jobs):
            sizes.append(len(jobs))
            return real(jobs)

        monkeypatch.setattr(together.worker, "unroll", unroll)
        alone.run()
        together.run()
        # some, at the end of their lives, have shorter truncations
        assert max(sizes) >= 3
        for one, other in zip(alone.log, together.log, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        assert len(alone.log) == 2

    def test_only_optimizees_at_the_same_step_are_stacked(self, tmp_path, monkeypatch):
        changes = {"metanet_config": {"graph_every": 2}, "optimizees": 3}
        trainer = MetaTrainer(stacked_config(tmp_path, stacked=True, **changes))
        sizes, real = [], trainer.worker.unroll

        def unroll(jobs):
            assert len({(job.age, job.horizon, job.steps) for job in jobs}) == 1
            sizes.append(len(jobs))
            return real(jobs)

        monkeypatch.setattr(trainer.worker, "unroll", unroll)
        trainer.run()
        assert {1, 2} <= set(sizes)

    def test_an_unknown_device(self, tmp_path):
        message = "device: expected cpu or cuda; got 'tpu'"
        with pytest.raises(ValueError, match=re.escape(message)):
            train.run(stacked_config(tmp_path, stacked=True, device="tpu"))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_without_a_gpu(self, tmp_path):
        message = "device: expected cpu where torch finds no GPU"
        with pytest.raises(ValueError, match=message):
            train.run(stacked_config(tmp_path, device="cuda"))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_on_a_gpu(self, tmp_path):
        alone = MetaTrainer(stacked_config(tmp_path / "cpu"))
        on_gpu = {"device": "cuda", "stacked": True}
        gpu = MetaTrainer(stacked_config(tmp_path / "gpu", **on_gpu))
        alone.run()
        gpu.run()
        for one, other in zip(alone.log, gpu.log, strict=True):
            assert one == pytest.approx(other, rel=1e-2)
