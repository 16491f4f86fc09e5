"""`eval` puts averages into the parameters, and `train` the weights back."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ngopt import NGOptimizer
from tests.ngopt.training import both_copies, network, same, snapshot, train

DTYPES = torch.float32, torch.bfloat16


def trained(dtype=torch.float32, **settings):
    """A network and its optimizer after four steps."""
    model = network(dtype)
    opt = NGOptimizer(model.named_parameters(), **settings)
    train(model, opt, range(4), dtype)
    return model, opt


def averages_of(opt, model):
    return [opt.state[p]["average"].to(p.dtype, copy=True) for p in model.parameters()]


def assert_same_state(opt, state_dict):
    found = opt.state_dict()
    assert found["param_groups"] == state_dict["param_groups"]
    torch.testing.assert_close(found["state"], state_dict["state"], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_is_the_same_to_the_bit(dtype):
    (model, opt), (other, plain) = trained(dtype), trained(dtype)
    weights, averages = snapshot(model), averages_of(opt, model)
    for _ in range(2):
        for _ in range(2):
            opt.eval()
            assert same(model, averages) and not same(model, weights)
        for _ in range(2):
            opt.train()
            assert same(model, weights)
    for each in ((model, opt), (other, plain)):
        train(*each, range(4, 6), dtype)
    assert same(model, snapshot(other))
    assert_same_state(opt, plain.state_dict())


def test_nothing_is_left_behind():
    _, opt = trained()
    before = [len(record) for record in opt.state.values()]
    opt.eval()
    opt.train()
    assert [len(record) for record in opt.state.values()] == before
    assert not opt._kept_averages


def test_a_step_needs_train_and_changes_nothing():
    model, opt = trained()
    opt.eval()
    weights, state = snapshot(model), copy.deepcopy(opt.state_dict())

    def closure():
        raise AssertionError("it was called")

    with pytest.raises(RuntimeError, match=r"Call opt.train\(\) before step\(\)"):
        opt.step(closure)
    assert same(model, weights)
    assert_same_state(opt, state)


@pytest.mark.parametrize("settings", [{"total_steps": 8}, {"rule": "ff"}])
def test_without_averages_nothing_changes(settings):
    model, opt = trained(**settings)
    weights = snapshot(model)
    opt.eval()
    assert same(model, weights)
    train(model, opt, [4])
    opt.train()
    assert not same(model, weights)


def test_before_the_first_step_nothing_changes():
    model = network()
    opt = NGOptimizer(model.parameters())
    opt.eval()
    assert same(model, snapshot(network()))
    train(model, opt, [0])


class TestCheckpoints:
    """Of both state_dicts, made in the same mode."""

    def resumed(self, model_state, opt_state, dtype=torch.float32):
        model = network(dtype)
        opt = NGOptimizer(model.named_parameters())
        opt.load_state_dict(opt_state)  # either may be loaded first
        model.load_state_dict(model_state)
        return model, opt

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("is_evaluating", [True, False])
    def test_have_weights_and_averages(self, is_evaluating, dtype):
        model, opt = trained(dtype)
        weights, averages = snapshot(model), averages_of(opt, model)
        if is_evaluating:
            opt.eval()
        states = copy.deepcopy((model.state_dict(), opt.state_dict()))
        other, loaded = self.resumed(*states, dtype)
        assert same(other, averages if is_evaluating else weights)
        if is_evaluating:
            with pytest.raises(RuntimeError, match="before step"):
                loaded.step()
        loaded.train()
        assert same(other, weights)
        for each, average in zip(averages_of(loaded, other), averages, strict=True):
            assert torch.equal(each, average)

    def test_of_training_are_loaded_after_eval(self):
        model, opt = trained()
        states = copy.deepcopy((model.state_dict(), opt.state_dict()))
        train(model, opt, range(4, 6))
        opt.eval()
        opt.load_state_dict(states[1])
        model.load_state_dict(states[0])
        weights, averages = snapshot(model), averages_of(opt, model)
        opt.train()
        assert same(model, weights)
        opt.eval()
        assert same(model, averages)

    def test_of_earlier_versions_have_no_mode(self):
        model, opt = trained()
        states = copy.deepcopy((model.state_dict(), opt.state_dict()))
        del states[1]["param_groups"][0]["train_mode"]
        other, loaded = self.resumed(*states)
        averages = averages_of(loaded, other)
        loaded.eval()
        assert same(other, averages)

    def test_of_torch_distributed_checkpoint(self):
        model, opt = trained()
        weights = snapshot(model)
        opt.eval()
        states = copy.deepcopy(
            (model.state_dict(), get_optimizer_state_dict(model, opt))
        )
        other = network()
        loaded = NGOptimizer(other.named_parameters())
        other.load_state_dict(states[0])
        set_optimizer_state_dict(other, loaded, states[1])
        loaded.train()
        assert same(other, weights)

    @both_copies
    def test_copies_have_the_mode(self, duplicate):
        model, opt = trained(torch.bfloat16)
        weights = snapshot(model)
        opt.eval()
        other, copied = duplicate((model, opt))
        for each in ((model, opt), (other, copied)):
            each[1].train()
            assert same(each[0], weights)
            train(*each, [4], torch.bfloat16)
        assert same(model, snapshot(other))


class TestBesideOtherMethods:
    def test_averaged_is_eval_and_train(self):
        model, opt = trained()
        weights, averages = snapshot(model), averages_of(opt, model)
        opt.eval()
        with opt.averaged():
            assert same(model, averages)
        assert same(model, averages)
        opt.train()
        with opt.averaged(), opt.averaged():
            opt.eval()
            assert same(model, averages)
        assert same(model, weights)
        with opt.averaged():
            opt.train()
            train(model, opt, [4])
            trained_weights = snapshot(model)
        assert same(model, trained_weights)

    def test_load_average_is_for_good(self):
        model, opt = trained()
        averages = averages_of(opt, model)
        opt.eval()
        opt.load_average()
        for _ in range(2):
            assert same(model, averages)
            opt.train()
        assert all(map(torch.equal, averages_of(opt, model), averages))
        train(model, opt, [4])

    def test_a_group_may_be_added(self):
        model, opt = trained()
        weights = snapshot(model)
        opt.eval()
        added = nn.Parameter(torch.ones(3))
        opt.add_param_group({"params": [("added", added)]})
        opt.train()
        assert same(model, weights) and torch.equal(added, torch.ones(3))
        added.grad = torch.ones(3)
        opt.step()

    def test_total_steps_may_be_set(self):
        model, opt = trained()
        weights = snapshot(model)
        opt.eval()
        opt.param_groups[0]["total_steps"] = 20
        opt.train()
        assert same(model, weights)

    def test_rows_may_be_selected(self):
        points = nn.Parameter(torch.randn(12, 2))
        opt = NGOptimizer([points])
        for _ in range(4):
            points.grad = torch.randn(12, 2)
            opt.step()
        weights, average = points.detach().clone(), opt.state[points]["average"].clone()
        opt.eval()
        keep = [0, 3, 3]
        new = nn.Parameter(points.detach()[keep])
        opt.select_rows(points, new, keep)
        assert torch.equal(new, average[keep])
        opt.train()
        assert torch.equal(new, weights[keep])
        assert torch.equal(opt.state[new]["average"], average[keep])
