"""What learning rates do: steps are multiplied by scale * lr / R, R the largest rate.

Runs are compared with a reference that has the same factors in `scale`.
"""

import logging
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from ngopt import NGOptimizer, SoapConfig

STEPS = 12
NEVER = STEPS + 1
T = np.arange(STEPS)
WARM_UP = (T + 1) / SoapConfig().anytime_warmup  # the built-in one
HALF = range(6), range(6, STEPS)
assert_close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def gradients(model, t):
    inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(t))
    model.zero_grad()
    F.cross_entropy(model(inputs.double()), inputs[:, :3].argmax(1)).backward()


def weights_of(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def follow(model, opt, rates=None, scales=None, make=None, at=0, steps=range(STEPS)):
    """Weights after every step, (steps, n).

    rates, scales: are written before every step, a number or one for each group.
    make: a scheduler, before step `at`.
    """
    weights, scheduler = [], None
    for t in steps:
        gradients(model, t)
        if make is not None and t == at:
            scheduler = make(opt)
        for key, values in (("lr", rates), ("scale", scales)):
            if values is not None:
                values = np.broadcast_to(values[t], len(opt.param_groups)).tolist()
                for group, value in zip(opt.param_groups, values, strict=True):
                    group[key] = value
        opt.step()
        advance(scheduler)
        weights.append(weights_of(model))
    return torch.stack(weights)


def advance(scheduler):
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0)
    elif scheduler is not None:
        scheduler.step()


def run(first=None, second=None, lr=None, rule="default", total_steps=None, **steps):
    """`follow` of an optimizer with two groups, the layers."""
    model = network()
    groups = [
        {"params": layer.parameters(), **(settings or {})}
        for layer, settings in ((model[0], first), (model[2], second))
    ]
    opt = NGOptimizer(groups, lr=lr, rule=rule, total_steps=total_steps)
    return follow(model, opt, **steps)


def made(name, *args, **settings):
    return lambda opt: getattr(lr_scheduler, name)(opt, *args, **settings)


CONSTANT = made("LambdaLR", lambda t: 1.0)


def reference(factors, at=0, **settings):
    """at: the step from which on a scheduler replaces the built-in schedule."""
    return run(scales=factors, make=CONSTANT, at=at, **settings)


def rates_of(make, lr):
    """The rates of a scheduler as AdamW has them."""
    opt = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr)
    scheduler, rates = make(opt), []
    for _ in range(STEPS):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        advance(scheduler)
    return np.array(rates)


def chained(opt):
    parts = [made("ExponentialLR", 0.9)(opt), made("ConstantLR", 0.5, 4)(opt)]
    return lr_scheduler.ChainedScheduler(parts)


def sequential(opt):
    parts = [made("LinearLR", 0.01, 1.0, 4)(opt), made("CosineAnnealingLR", 8)(opt)]
    return lr_scheduler.SequentialLR(opt, parts, [4])


SCHEDULERS = {
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
ONE_CYCLE = made("OneCycleLR", 3e-3, total_steps=NEVER)
CYCLIC = made("CyclicLR", 1e-4, 1e-3, step_size_up=4)
PLATEAU = made("ReduceLROnPlateau", patience=4)
FALLING, RISING = 0.5 + 0.5 * np.cos(np.pi * T / STEPS), np.arange(NEVER).clip(0, 5) / 5
HILL = np.array([0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 0, 0])
SOON = np.where(T < 4, 1, 0.1)
LAYERS = np.minimum((T[:, None] + 1) / 4, 1) * [0.25, 1]
SCALES = {"first": {"lr_scale": 0.25}, "second": {"lr_scale": 1.0}}


def scheduled(make, largest=3e-4, at=0, **settings):
    return {"lr": 3e-4, "make": make, **settings}, rates_of(make, 3e-4) / largest, at


def written(shape, at, **settings):
    return {"rates": 6e-4 * shape, **settings}, shape, at


def raising(rates, at, **settings):
    """R rises with the rates, and the built-in warm-up stays."""
    factors = rates / np.maximum.accumulate(rates).clip(1e-30)
    factors *= np.where(at > T, 1, WARM_UP)
    # a scheduler, in place of rates that are written, is there from the first step on
    return settings or {"rates": 1e-4 * rates}, factors, 0 if settings else at


# what is run, its factors, and from which step on they replace the built-in schedule
CASES = {
    **{f"1 at the initial rate: {k}": scheduled(x) for k, x in SCHEDULERS.items()},
    "1 at the maximum of one cycle": scheduled(ONE_CYCLE, 3e-3),
    "also with ff": scheduled(ONE_CYCLE, 3e-3, rule="ff"),
    "also with ng-gnn": scheduled(ONE_CYCLE, 3e-3, rule="ng-gnn"),
    "1 until a first peak": raising(rates_of(CYCLIC, 1e-4), 1, lr=1e-4, make=CYCLIC),
    "a plateau keeps the schedule": scheduled(PLATEAU, at=NEVER),
    "also with a horizon": scheduled(PLATEAU, at=NEVER, total_steps=STEPS),
    "falling rates of a loop": written(FALLING, 1),
    "also with an lr of the constructor": written(FALLING, 1, lr=6e-4),
    "rates that rise to that": written(RISING[1:], 1, lr=6e-4),
    "rates that rise from 0 to that": written(RISING[:-1], 2, lr=6e-4),
    "the warm-up stays without that": raising(HILL[1:], 1),
    "0 is never R": raising(HILL[:-1], 2),
    "a finder finds nothing": raising(1e-3 * 5.0**T, 1),
    "rates that change later": written(SOON, NEVER, total_steps=STEPS),
    "layer decay of BEiT and MAE": written(LAYERS, 1, lr=6e-4, **SCALES),
    "layer decay of timm": written(LAYERS, 0, lr=6e-4, make=CONSTANT, **SCALES),
}


@pytest.mark.parametrize(("settings", "factors", "at"), CASES.values(), ids=CASES)
def test_factors_of_steps(settings, factors, at):
    of_rule = {k: x for k, x in settings.items() if k in ("rule", "total_steps")}
    assert_close(run(**settings), reference(factors, at, **of_rule))


def test_all_schedulers_of_torch_are_here():
    others = {"LRScheduler", "OneCycleLR", "CyclicLR", "ReduceLROnPlateau"}
    assert set(lr_scheduler.__all__) <= SCHEDULERS.keys() | others


@pytest.mark.parametrize("make", [PLATEAU, SCHEDULERS["CosineAnnealingLR"]])
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


def test_the_gradient_of_a_first_step_of_0_counts():
    makes = (made("LambdaLR", lambda t, x=x: 1.0 if t else x) for x in (0.0, 1e-12))
    zero, tiny = (run(make=make) for make in makes)
    assert torch.equal(zero[0], weights_of(network()))
    assert_close(zero, tiny)


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


FASTER = 1e-3 * (1 - T / STEPS) ** 4


def load(model, opt, copy, other, distributed=False, flat=False):
    if not distributed:
        return other.load_state_dict(opt.state_dict())
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flat)
    state = dcp.get_optimizer_state_dict(model, opt, options=options)
    dcp.get_optimizer_state_dict(copy, other, options=options)  # initializes the state
    return dcp.set_optimizer_state_dict(copy, other, state, options=options)


class TestCheckpoints:
    @pytest.mark.parametrize("how", [(), (True,), (True, True)])
    @pytest.mark.parametrize("rates", [None, FASTER])
    @pytest.mark.parametrize("lr", [1e-5, 1.0, None])
    def test_the_lr_of_a_new_constructor_does_not_count(self, how, rates, lr):
        """And a schedule of a loop stays one."""
        model, copy = network(), network()
        opt = NGOptimizer(model.parameters(), lr=1e-3)
        follow(model, opt, rates, steps=HALF[0])
        copy.load_state_dict(model.state_dict())
        other = NGOptimizer(copy.parameters(), lr=lr)
        load(model, opt, copy, other, *how)
        weights = follow(model, opt, rates, steps=HALF[1])
        assert torch.equal(follow(copy, other, rates, steps=HALF[1]), weights)

    @pytest.mark.parametrize("before", ["a finder", "torch.distributed.checkpoint"])
    def test_what_is_restored_changes_no_step(self, before):
        model = network()
        opt = NGOptimizer(model.parameters(), lr=1e-3)
        if before == "a finder":
            state = opt.state_dict()
            follow(model, opt, 1e-7 * 5.0**T)
            model.load_state_dict(network().state_dict())
            opt.load_state_dict(state)
        else:
            dcp.get_optimizer_state_dict(model, opt)  # makes a step
        assert_close(follow(model, opt), reference([1.0] * STEPS, NEVER))

    def test_groups_have_scale_and_reference(self):
        model = network()
        opt = NGOptimizer(model.parameters(), lr=3e-4, scale=2.0)
        opt.param_groups[0]["lr"] = np.float64(1e-3)
        follow(model, opt, steps=range(1))
        (group,) = opt.state_dict()["param_groups"]
        assert (group["scale"], group["reference_lr"]) == (2.0, 1e-3)
        assert type(group["reference_lr"]) is float  # others need weights_only=False


class TestSeveral:
    @pytest.mark.parametrize(("lr", "factors"), [(1e-4, (1, 0.1)), (1e-2, (0.1, 1))])
    def test_a_group_that_is_added_later_shares_the_largest_rate(self, lr, factors):
        weights = []
        for rates, scales in (((1e-3, lr), None), ((1.0, 1.0), [factors] * STEPS)):
            model = network()
            opt = NGOptimizer(model[2].parameters(), lr=rates[0])
            follow(model, opt, steps=HALF[0])
            opt.add_param_group({"params": model[0].parameters(), "lr": rates[1]})
            weights.append(follow(model, opt, scales=scales, steps=HALF[1]))
        assert_close(*weights)

    def test_an_added_group_far_below_the_default_warns(self):
        model = network()
        opt = NGOptimizer(model[2].parameters())
        with pytest.warns(UserWarning, match=r"multiplied by 0.0003. Pass the lr"):
            opt.add_param_group({"params": model[0].parameters(), "lr": 3e-4})
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})

    def test_two_optimizers_each_begin_at_1(self):
        weights = []
        for rates in ((1e-4, 4e-4), (1.0, 1.0)):
            model = network()
            first = NGOptimizer(model[0].parameters(), lr=rates[0])
            second = NGOptimizer(model[2].parameters(), lr=rates[1])
            first.register_step_post_hook(lambda *_, second=second: second.step())
            weights.append(follow(model, first))
        assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("rates", "lr"),
    [((1e-6, 1e-3, 1.0, 1e-3), 1e-3), ((0.1, 0.06, 0.02, 0.01), 0.01)],
    ids=["a finder", "the warm-up of biases"],
)
def test_rates_far_above_those_of_the_run_are_warned_of_once(rates, lr):
    model = network()
    opt = NGOptimizer(model.parameters(), lr=lr)
    with pytest.warns(UserWarning, match="training is slower by their ratio") as caught:
        for t, rate in enumerate(rates):
            opt.param_groups[0]["lr"] = rate
            gradients(model, t)
            opt.step()
    assert len(caught) == 1
