"""What learning rates do: steps are multiplied by scale * lr / R, R the largest rate.

Runs are compared with a reference that has the same factors in `scale`.
"""

import logging

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.swa_utils import SWALR

from ngopt import NGOptimizer, SoapConfig
from tests.ngopt.learning_rates import (
    NEVER,
    STEPS,
    assert_close,
    follow,
    made,
    network,
    rates_of,
    reference,
    run,
    weights_of,
)

HALF_COSINE = 0.5 + 0.5 * np.cos(np.pi * np.arange(STEPS) / STEPS)
WARM_UP = (np.arange(STEPS) + 1) / SoapConfig().anytime_warmup  # the built-in one


def chained(opt):
    parts = [made("ExponentialLR", 0.9)(opt), made("ConstantLR", 0.5, 4)(opt)]
    return torch_schedulers.ChainedScheduler(parts)


def sequential(opt):
    parts = [made("LinearLR", 0.01, 1.0, 4)(opt), made("CosineAnnealingLR", 8)(opt)]
    return torch_schedulers.SequentialLR(opt, parts, [4])


BELOW_THE_INITIAL_RATE = {
    "LambdaLR": made("LambdaLR", lambda t: min(t / 4, 1.0)),  # begins at 0
    "MultiplicativeLR": made("MultiplicativeLR", lambda t: 0.9),
    "StepLR": made("StepLR", 3),
    "MultiStepLR": made("MultiStepLR", [3, 7]),
    "ConstantLR": made("ConstantLR"),
    "LinearLR": made("LinearLR"),
    "ExponentialLR": made("ExponentialLR", 0.8),
    "PolynomialLR": made("PolynomialLR", STEPS),
    "CosineAnnealingLR": made("CosineAnnealingLR", STEPS),
    "CosineAnnealingWarmRestarts": made("CosineAnnealingWarmRestarts", 4),
    "ChainedScheduler": chained,
    "SequentialLR": sequential,
    "SWALR": lambda opt: SWALR(opt, swa_lr=1e-5),
}
COSINE = BELOW_THE_INITIAL_RATE["CosineAnnealingLR"]
ONE_CYCLE = made("OneCycleLR", 3e-3, total_steps=NEVER)
CYCLIC = made("CyclicLR", 1e-4, 1e-3, step_size_up=4)
PLATEAU = made("ReduceLROnPlateau", patience=4)


def test_all_schedulers_of_torch_are_here():
    others = {"LRScheduler", "OneCycleLR", "CyclicLR", "ReduceLROnPlateau"}
    assert set(torch_schedulers.__all__) <= BELOW_THE_INITIAL_RATE.keys() | others


@pytest.mark.parametrize("name", BELOW_THE_INITIAL_RATE)
def test_a_scheduler_replaces_the_schedule_and_is_1_at_the_initial_rate(name):
    make = BELOW_THE_INITIAL_RATE[name]
    assert_close(run(lr=3e-4, make=make), reference(rates_of(make, 3e-4) / 3e-4))


@pytest.mark.parametrize("rule", ["default", "ff", "ng-gnn"])
def test_one_cycle_is_1_at_its_maximum(rule):
    expected = reference(rates_of(ONE_CYCLE, 1e-4) / 3e-3, rule=rule)
    assert_close(run(lr=1e-4, make=ONE_CYCLE, rule=rule), expected)


def test_a_cyclic_rate_is_1_until_its_first_peak_with_the_built_in_warm_up():
    """From the second step on, at which it rises."""
    rates = rates_of(CYCLIC, 1e-4)
    factors = rates / np.maximum.accumulate(rates)
    assert factors.min() < 0.2
    assert_close(run(lr=1e-4, make=CYCLIC), reference([1, *(factors * WARM_UP)[1:]]))


@pytest.mark.parametrize("total_steps", [None, STEPS])
def test_a_plateau_multiplies_the_built_in_schedule(total_steps):
    factors = rates_of(PLATEAU, 3e-4) / 3e-4
    assert 0 < factors[-1] < 0.2
    found = run(lr=3e-4, make=PLATEAU, total_steps=total_steps)
    assert_close(found, reference(factors, NEVER, total_steps=total_steps))


@pytest.mark.parametrize("make", [PLATEAU, COSINE])
@pytest.mark.parametrize("rule", ["default", "ff"])
def test_runs_of_a_sweep_over_lr_are_identical_and_scale_changes_them(make, rule):
    first, *others = (run(lr=x, make=make, rule=rule) for x in (1.0, 5e-5, 3.7e-2, 8.0))
    for other in others:
        assert_close(other, first)
    doubled = run(make=make, rule=rule, scales=[2.0] * STEPS)
    assert (doubled[1] - doubled[0]).norm() > 1.5 * (first[1] - first[0]).norm()


@pytest.mark.parametrize("rule", ["default", "ff"])
@pytest.mark.parametrize(
    ("first", "second", "factors"),
    [
        ({"lr": 1e-5}, {"lr": 1e-3}, (0.01, 1)),  # backbone and head
        ({"lr": 0.2}, {"lr": 0.02}, (1, 0.1)),  # embedding and matrices
        ({"lr": 1e-4}, {}, (0.1, 1)),  # AdamW's default
    ],
)
def test_groups_keep_the_ratios_of_their_rates(first, second, factors, rule, caplog):
    caplog.set_level(logging.INFO, "ngopt")
    found = run(first, second, rule=rule)
    assert f"of the groups: {factors[0]}, {factors[1]})" in caplog.text
    assert_close(found, reference([factors] * STEPS, NEVER, rule=rule))


@pytest.mark.parametrize("make", [None, made("LambdaLR", lambda t: 1.0)])
def test_layer_decay_multiplies_the_shape_of_the_schedule(make):
    """timm's scheduler stores `initial_lr`; BEiT's and MAE's loops do not."""
    factors = [(0.25 * x, x) for x in np.minimum((np.arange(STEPS) + 1) / 4, 1)]
    scales = {"lr_scale": 0.25}, {"lr_scale": 1.0}
    found = run(*scales, lr=1e-3, rates=1e-3 * np.array(factors), make=make)
    assert_close(found, reference(factors, 1 if make is None else 0))


class TestRatesOfALoop:
    @pytest.mark.parametrize("lr", [None, 6e-4])
    def test_a_falling_rate_replaces_the_schedule_from_the_second_step_on(self, lr):
        assert_close(run(lr=lr, rates=6e-4 * HALF_COSINE), reference(HALF_COSINE, 1))

    @pytest.mark.parametrize("first", [0, 1])
    def test_a_rate_that_rises_to_that_of_the_constructor_is_the_warm_up(self, first):
        shape = np.minimum((np.arange(STEPS) + first) / 5, 1)
        assert_close(run(lr=6e-4, rates=6e-4 * shape), reference(shape, 2 - first))

    @pytest.mark.parametrize("first", [0, 1])
    def test_without_an_lr_of_the_constructor_the_built_in_warm_up_stays(self, first):
        """While the rate rises it is R; 0 is never R."""
        shape = np.minimum(
            np.minimum(np.arange(STEPS) + first, 5), np.arange(9, -3, -1)
        )
        shape = np.maximum(shape, 0)
        factors = shape / np.maximum(np.maximum.accumulate(shape), 1)
        factors[2 - first :] *= WARM_UP[2 - first :]
        assert_close(run(rates=1e-4 * shape), reference(factors, 2 - first))

    def test_a_rate_that_changes_later_multiplies_the_built_in_schedule(self):
        factors = np.where(np.arange(STEPS) < 4, 1, 0.1)
        found = run(rates=1e-3 * factors, total_steps=STEPS)
        assert_close(found, reference(factors, NEVER, total_steps=STEPS))

    def test_a_finder_finds_nothing(self):
        found = run(rates=1e-7 * 5.0 ** np.arange(STEPS))
        assert_close(found, reference([1, *WARM_UP[1:]], 1))


def test_the_gradient_of_a_first_step_of_0_counts():
    ends = [
        run(make=made("LambdaLR", lambda t, first=first: 1.0 if t else first))
        for first in (0.0, 1e-12)
    ]
    assert torch.equal(ends[0][0], weights_of(network()))
    assert_close(*ends)


@pytest.mark.parametrize("rule", ["default", "ff"])
def test_0_freezes_the_weights_of_a_group_but_not_its_state(rule):
    model, start = network(), network()
    frozen = {"params": model[0].parameters(), "lr": 0.0, "weight_decay": 9.0}
    trained = {"params": model[2].parameters(), "lr": 1e-3}
    opt = NGOptimizer([frozen, trained], rule=rule)
    weights = follow(model, opt)
    assert torch.equal(weights[-1][:48], weights_of(start[0]))
    assert (weights[-1][48:] != weights_of(start[2])).all()
    assert all(state["exp_avg_0"].abs().min() > 0 for state in opt.state.values())


def test_a_lambda_of_absolute_rates_at_1_warns_once():
    warmed = np.minimum(np.arange(1, NEVER + 2) ** -0.5, np.arange(1, NEVER + 2) / 8)
    with pytest.warns(UserWarning, match="30 times slower. Make a LambdaLR") as caught:
        run(lr=1.0, make=made("LambdaLR", lambda t: warmed[t] / 15))
    assert len(caught) == 1 and caught[0].filename == follow.__code__.co_filename
    run(lr=1.0, make=made("LambdaLR", lambda t: 2 * warmed[t]))
    run(lr=0.0, rates=1e-4 * warmed)
