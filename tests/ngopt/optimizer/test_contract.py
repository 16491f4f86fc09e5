"""Compatibility with wrappers, schedulers and checkpoints of torch's optimizers."""

import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ngopt import NGOptimizer
from tests.ngopt.training import WEIGHTS, network, same, snapshot, train


def made(rule="default", **settings):
    model = network()
    return model, NGOptimizer(model.parameters(), rule=rule, **settings)


@pytest.fixture(autouse=True)
def _everything_is_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestGroups:
    def test_keys_of_users_are_kept(self):
        first, *others = network().parameters()
        groups = [
            {"params": [first], "lr_scale": 0.75, "tag": "stem"},
            {"params": others, "lr_scale": 1.0},
        ]
        opt = NGOptimizer(groups)
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": 0.05})
        scales = [group.get("lr_scale") for group in opt.param_groups]
        assert scales == [0.75, 1.0, None]
        assert opt.param_groups[0]["tag"] == "stem"
        loaded = NGOptimizer([*groups, {"params": [nn.Parameter(torch.ones(2))]}])
        loaded.load_state_dict(opt.state_dict())
        assert loaded.param_groups[2]["rho"] == 0.05

    def test_groups_of_another_optimizer_are_accepted_with_one_warning(self):
        params = list(network().parameters())
        adamw = torch.optim.AdamW([{"params": params[:3]}, {"params": params[3:]}])
        groups = [{**group, "lr": 1.0} for group in adamw.param_groups]
        with pytest.warns(UserWarning, match="no effect: amsgrad, betas") as caught:
            NGOptimizer(groups)
        assert len(caught) == 1
        lion = {"params": params, "lr": 1.0, "betas": (0.9, 0.99), "weight_decay": 0.0}
        with pytest.warns(UserWarning, match="no effect: betas"):
            NGOptimizer([lion])

    def test_a_module_in_place_of_its_parameters_is_refused(self):
        """The Trainer of transformers passes `model` of its keyword arguments as
        params."""
        model = network()
        for params in (model, model[0], [{"params": model[0]}]):
            with pytest.raises(TypeError, match=r"got the module .*as model=\."):
                NGOptimizer(params)
        params = nn.ParameterList(model.parameters())
        assert len(NGOptimizer(params).param_groups[0]["params"]) == len(params)

    def test_numbers_of_numpy_are_stored_as_python_numbers(self):
        opt = NGOptimizer(
            [{"params": network().parameters(), "total_steps": 10.0}],
            lr=np.float64(0.5),
            weight_decay=np.float32(0.25),
            total_steps=np.int64(10),
        )
        types = {type(v) for k, v in opt.param_groups[0].items() if k != "params"}
        assert types == {float, int, bool, str, type(None)}
        assert type(opt.param_groups[0]["total_steps"]) is int
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


class TestLearningRates:
    def test_negative_ones_ascend(self):
        (model, opt), (down, other) = made(), made()
        train(model, opt, range(1))
        train(down, other, range(1))
        before = snapshot(model)
        opt.param_groups[0]["lr"] = -1.0
        train(model, opt, range(1))
        train(down, other, range(1))
        for a, b, old in zip(snapshot(model), snapshot(down), before, strict=True):
            assert ((a - old) * (b - old)).sum() < 0

    def test_a_scheduler_is_logged_once_and_past_the_horizon_no_warning(self, caplog):
        model, opt = made(total_steps=3)
        LambdaLR(opt, lambda step: 1.0)
        with caplog.at_level(logging.INFO, "ngopt"):
            train(model, opt, range(6))
        assert caplog.text.count("replaces the built-in schedule") == 1

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"lr": 40}, "lr = 40 has no unit.* pass total_steps="),
            ({"scale": 40}, "scale = 40 multiplies every update by 40 "),
        ],
    )
    def test_large_numbers_are_warned_of(self, given, message):
        with pytest.warns(UserWarning, match=message):
            NGOptimizer(network().parameters(), **given)


class TestWeightDecay:
    def test_groups_keep_what_was_given(self):
        decays = [None, 0, 2]
        groups = [
            {"params": [p], "weight_decay": decay}
            for p, decay in zip(network().parameters(), decays, strict=False)
        ]
        opt = NGOptimizer([*groups, {"params": [nn.Parameter(torch.ones(2))]}])
        assert [g["weight_decay"] for g in opt.param_groups] == [*decays, None]
        assert "weight_decay: None (of the rule, 0.45)" in repr(opt)

    @pytest.mark.parametrize("value", [0.0, None])
    def test_a_decay_that_is_set_in_a_group_later(self, value):
        """0 is none and None that of the weights, as in the constructor."""
        (model, opt), (expected, other) = made(), made(weight_decay=value)
        for group in opt.param_groups:
            group["weight_decay"] = value
        train(model, opt, range(3))
        train(expected, other, range(3))
        assert same(model, snapshot(expected))

    def test_rows_without_a_gradient(self):
        """Of tables, after 1,000 steps."""
        torch.manual_seed(0)
        factors = {None: 0.81, 0.0: 1.0, 0.45: 0.81, 0.9: 0.81**2}
        tables = [nn.Parameter(torch.randn(50, 4)) for _ in factors]
        groups = [
            {"params": [table], "weight_decay": given}
            for table, given in zip(tables, factors, strict=True)
        ]
        opt = NGOptimizer(groups, total_steps=1000)
        before = [table.detach().clone() for table in tables]
        for _ in range(1000):
            for table in tables:
                table.grad = torch.zeros(50, 4)
                table.grad[:5] = torch.randn(5, 4)
            opt.step()
        for table, old, factor in zip(tables, before, factors.values(), strict=True):
            left = table[5:].norm() / old[5:].norm()
            assert left.item() == pytest.approx(factor, abs=0.02)


class TestState:
    @pytest.mark.parametrize("weights", WEIGHTS)
    def test_keys_of_wrappers_are_kept_with_a_new_group(self, weights):
        """As slow weights of Lookahead."""
        model, opt = made(weights)
        train(model, opt, range(2))
        p = model[0].weight
        opt.state[p]["slow_buffer"] = slow = p.detach().clone()
        kept = opt.state[p]["exp_avg_0"].clone()
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
        assert opt.graph.numel == sum(q.numel() for q in model.parameters()) + 2
        assert torch.equal(opt.state[p]["exp_avg_0"], kept)
        train(model, opt, range(2, 3))
        assert opt.state[p]["slow_buffer"] is slow

    def test_a_state_of_another_optimizer(self):
        model, opt = made()
        adamw = torch.optim.AdamW(model.parameters())
        with pytest.raises(ValueError, match=r"another optimizer.*'betas'"):
            opt.load_state_dict(adamw.state_dict())

    @pytest.mark.parametrize("is_traced", [False, True])
    def test_a_new_optimizer_loads_its_own_state(self, is_traced):
        """As accelerate has it do before the first step."""
        models = network(), network()
        for model in models:
            given = model if is_traced else None
            opt = NGOptimizer(model.parameters(), model=given, total_steps=5)
            if model is models[1]:
                opt.load_state_dict(opt.state_dict())
            train(model, opt, range(5))
        assert same(models[0], snapshot(models[1]))

    def test_a_longer_horizon_continues(self):
        model, opt = made(total_steps=5)
        train(model, opt, range(5))
        longer = NGOptimizer(model.parameters(), total_steps=50)
        longer.load_state_dict(opt.state_dict())
        before = snapshot(model)
        train(model, longer, range(5, 8))
        pairs = zip(before, snapshot(model), strict=True)
        assert max((a - b).abs().max() for a, b in pairs) > 1e-3

    def test_a_past_horizon_is_warned_of_once(self):
        model, opt = made(total_steps=20)
        train(model, opt, range(8))
        for group in opt.param_groups:
            group["total_steps"] = 5
        message = "8 steps were made of total_steps=5"
        with pytest.warns(UserWarning, match=message) as caught:
            train(model, opt, range(8, 11))
        assert len(caught) == 1


@pytest.mark.parametrize("shape", [(2, 25088), (8, 1024), (4, 1024), (1, 5000)])
def test_matrices_of_few_rows_have_at_most_eight_numbers_an_element(shape):
    p = nn.Parameter(torch.randn(shape))
    opt = NGOptimizer([p])
    p.grad = torch.randn(shape)
    opt.step()
    size = sum(x.numel() * x.itemsize for x in opt.state[p].values())
    assert size <= 8 * 4 * p.numel()
