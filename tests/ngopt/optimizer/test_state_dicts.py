"""Resuming: what `load_state_dict` accepts, and what it refuses without changing
anything."""

import copy
from functools import partial
from math import nan

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ngopt import NGOptimizer, SoapConfig
from tests.ngopt.training import WEIGHTS, network, same, snapshot, train

assert_records = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_resume_is_bit_identical(weights, dtype, tmp_path):
    model = network(dtype)
    opt = NGOptimizer(model.parameters(), weight_decay=1.0, rule=weights)
    train(model, opt, range(3), dtype)
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, path)
    train(model, opt, range(3, 6), dtype)

    saved = torch.load(path, weights_only=True)
    resumed = network(dtype)
    resumed.load_state_dict(saved["model"])
    other = NGOptimizer(resumed.parameters(), scale=0.2, rule=weights)
    untouched = copy.deepcopy(saved["opt"])
    other.load_state_dict(saved["opt"])
    train(resumed, other, range(3, 6), dtype)
    assert same(resumed, snapshot(model))
    assert_records(list(other.state.values()), list(opt.state.values()))
    assert_records(saved["opt"]["state"], untouched["state"])  # the caller's dict


@pytest.mark.parametrize("weights", WEIGHTS)
def test_hooks_of_load_state_dict_are_called(weights):
    model = network()
    opt = NGOptimizer(model.parameters(), rule=weights)
    train(model, opt, range(1))
    other = NGOptimizer(network().parameters(), rule=weights)
    at_hook = []

    def double(_, state_dict):
        doubled = copy.deepcopy(state_dict)
        for record in doubled["state"].values():
            record["exp_avg_0"] *= 2
        return doubled

    def restart(optimizer):
        for record in optimizer.state.values():
            at_hook.append(record["exp_avg_0"].clone())
            record["step"].zero_()

    other.register_load_state_dict_pre_hook(double)
    other.register_load_state_dict_post_hook(restart)
    other.load_state_dict(opt.state_dict())
    records = opt.state.values(), other.state.values(), at_hook
    for saved, loaded, value in zip(*records, strict=True):
        assert torch.equal(loaded["exp_avg_0"], 2 * saved["exp_avg_0"])
        assert torch.equal(value, loaded["exp_avg_0"])
        assert loaded["step"] == 0
    assert len(other._optimizer_load_state_dict_pre_hooks) == 1
    assert len(other._optimizer_load_state_dict_post_hooks) == 1


def test_steps_of_a_checkpoint_on_a_device_are_on_the_host():
    """As after `torch.load(path, map_location="cuda")`. Else every step would be a host
    sync."""
    model = network()
    opt = NGOptimizer(model.parameters())
    train(model, opt, range(1))
    saved = opt.state_dict()
    with FakeTensorMode(allow_non_fake_inputs=True):
        records = {
            number: {key: value.to("cuda") for key, value in record.items()}
            for number, record in saved["state"].items()
        }
        other = NGOptimizer([nn.Parameter(p.to("cuda")) for p in model.parameters()])
        other.load_state_dict({**saved, "state": records})
    for record in other.state.values():
        assert {key for key, value in record.items() if value.is_cpu} == {"step"}


def test_state_that_belongs_to_no_parameter_is_kept():
    """As wrappers store numbers, tensors and dicts of their own."""
    model = network()
    opt = NGOptimizer(model.parameters())
    train(model, opt, range(1))
    opt.state["k"], opt.state["slow"] = 5, {"alpha": torch.tensor(0.5)}
    other = NGOptimizer(model.parameters())
    other.load_state_dict(opt.state_dict())
    assert other.state["k"] == 5
    assert other.state["slow"] == {"alpha": torch.tensor(0.5)}
    train(model, other, range(1, 2))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_names_in_another_order_are_matched(weights):
    model = network()
    opt = NGOptimizer(model.named_parameters(), rule=weights)
    train(model, opt, range(1))
    backwards = list(model.named_parameters())[::-1]
    other = NGOptimizer(backwards, rule=weights)
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["param_names"] == [name for name, _ in backwards]
    assert_records(dict(other.state), dict(opt.state))


def test_named_groups_in_another_order_are_matched():
    first, second = network(), network()
    names = list(nn.ModuleList([first, second]).named_parameters())
    half = len(names) // 2
    groups = [{"params": names[:half], "lr": 1.0}, {"params": names[half:], "lr": 0.5}]
    opt = NGOptimizer(groups)
    sum(p.sin().sum() for _, p in names).backward()
    opt.step()
    other = NGOptimizer(groups[::-1])
    other.load_state_dict(opt.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.5, 1.0]
    assert_records(dict(other.state), dict(opt.state))


@pytest.mark.parametrize(
    ("params", "message"),
    [(3, "expected a list; got int"), ([0], "a name for each of 1 params")],
)
def test_incomplete_groups_are_refused(params, message):
    opt = NGOptimizer(network().named_parameters())
    state = opt.state_dict()
    state["param_groups"][0]["params"] = params
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(state)


def test_state_of_other_shapes_changes_nothing(metanet):
    model = network()
    opt = NGOptimizer(model.parameters(), rule=metanet)
    train(model, opt, range(1))
    before = copy.deepcopy(opt.state_dict())
    weights = snapshot(model)

    def with_value(number, key, value):
        changed = copy.deepcopy(before)
        changed["state"][number][key] = value
        return changed

    short = copy.deepcopy(before)
    short["param_groups"][0]["params"].pop()

    (group,) = before["param_groups"]

    def with_groups(*groups):
        return {**before, "param_groups": [*groups]}

    def without(key):
        return with_groups({k: v for k, v in group.items() if k != key})

    for bad, message in (
        (
            with_value(2, "exp_avg_1", torch.zeros(3, 3)),
            r"'exp_avg_1' of 'parameter 2': .* \(5, 4, 2, 1\); got shape \(3",
        ),
        (
            with_value(3, "exp_avg_4", None),
            "'exp_avg_4' of 'parameter 3': expected a tensor .*; got nothing",
        ),
        ({**before, "state": {0: None}}, "state of 0: expected a dict; got NoneType"),
        ({}, "expected 'state' and 'param_groups'"),
        (None, "state_dict: expected a dict; got NoneType"),
        (short, "expected 9 parameters, as in this optimizer; got 8"),
        (
            {**before, "param_groups": None},
            "param_groups: expected a list; got NoneType",
        ),
        (with_groups(None), r"param_groups\[0\]: expected a dict; got NoneType"),
        (without("params"), r"param_groups\[0\]: expected 'params'"),
        (without("maximize"), r"param_groups\[0\]: expected 'maximize'"),
        (with_groups({**group, "lr": nan}), "lr: expected a finite number; got nan"),
        (
            with_groups(group, {**group, "total_steps": 5}),
            "one 'total_steps' for all groups, None; got 5",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            opt.load_state_dict(bad)
        after = opt.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert_records(after["state"], before["state"])
        assert same(model, weights)


def test_other_constants_are_warned_of_and_loaded():
    model = network()
    opt = NGOptimizer(model.parameters(), rule=SoapConfig(beta2=0.9))
    train(model, opt, range(1))
    other = NGOptimizer(model.parameters())
    with pytest.warns(UserWarning, match=r"constants: beta2: 0.9 saved, 0.95 here\."):
        other.load_state_dict(opt.state_dict())
    train(model, other, range(1))
    del (saved := opt.state_dict())["rule"]  # of torch.distributed.checkpoint
    other.load_state_dict(saved)


@pytest.mark.parametrize(
    ("rule", "of_other", "changed"),
    [
        ("ff", "default", "none saved, soap here; .*ff saved, none"),
        ("default", "ff", "soap saved, none here; .*none saved, ff"),
        ("default", "learned-step", "weights: none saved"),
    ],
)
def test_the_state_of_another_rule_is_refused_and_the_rule_named(
    rule, of_other, changed
):
    model = network()
    opt = NGOptimizer(model.parameters(), rule=rule)
    train(model, opt, range(1))
    other = NGOptimizer(model.parameters(), rule=of_other)
    advice = r"'\w+' of 'parameter 0': expected .* pass the rule= that it was made with"
    with (
        pytest.warns(UserWarning, match=changed),
        pytest.raises(ValueError, match=advice),
    ):
        other.load_state_dict(opt.state_dict())
    assert not other.state


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("key", ["step", "exp_avg_0"])
def test_incomplete_state_is_refused(weights, key):
    model = network()
    opt = NGOptimizer(model.parameters(), rule=weights)
    train(model, opt, range(1))
    lacking = copy.deepcopy(opt.state_dict())
    del lacking["state"][4][key]
    message = f"'{key}' of 'parameter 4': expected a tensor .*; got nothing"
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(lacking)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("saved", "given"), [(9, None), (None, 9), (9, 20)])
def test_total_steps_of_the_loading_optimizer_are_kept(weights, saved, given, caplog):
    """Else that of the state is loaded; keys of the state depend on the horizon."""
    model = network()
    opt = NGOptimizer(model.parameters(), rule=weights, total_steps=saved)
    train(model, opt, range(3))
    resumed = copy.deepcopy(model)
    other = NGOptimizer(resumed.parameters(), rule=weights, total_steps=given)
    with caplog.at_level("INFO", "ngopt"):
        other.load_state_dict(opt.state_dict())
    kept = given or saved
    assert (f"total_steps={saved}; total_steps={given} is kept" in caplog.text) == (
        given is not None
    )
    opt.param_groups[0]["total_steps"] = kept
    train(model, opt, range(3, 6))
    train(resumed, other, range(3, 6))
    assert same(resumed, snapshot(model))
    other.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert other.param_groups[1]["total_steps"] == kept


@pytest.mark.parametrize("attached", [False, True])
def test_replaced_settings_are_logged(attached, caplog):
    model = network()
    opt = NGOptimizer(model.parameters(), total_steps=20)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)
    train(model, opt, range(2))
    scheduler.step()
    resumed = NGOptimizer(model.parameters(), total_steps=20, scale=0.1)
    if attached:
        torch.optim.lr_scheduler.CosineAnnealingLR(resumed, 20)
    resumed.load_state_dict(opt.state_dict())
    assert resumed.param_groups[0]["scale"] == 1
    assert "has scale=1, which replaces scale=0.1" in caplog.text
    assert ("Attach it to this optimizer" in caplog.text) != attached


@pytest.mark.parametrize("bad", [9, 8])
def test_steps_that_are_all_skipped_are_warned_of(bad, recwarn):
    """bad: number of the first steps whose gradients are not finite."""
    model = network()
    opt = NGOptimizer(model.parameters())
    for number in range(12):
        for p in model.parameters():
            p.grad = torch.full_like(p, nan if number < bad else 1.0)
        opt.step()
    warned = [x for x in recwarn if "no gradient was finite" in str(x.message)]
    assert len(warned) == (bad == 9)
