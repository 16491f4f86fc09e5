"""Arguments and parameter groups: what is accepted, also when changed later, and what
is refused."""

import copy
from math import inf, nan

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ngopt import NGOptimizer, build_graph
from tests.networks import mlp
from tests.ngopt.training import WEIGHTS, batch, network, same, snapshot, train

LR = "lr: expected a number >= 0"
SCALE = "scale: expected a number >= 0"
DECAY = "weight_decay: expected a number >= 0"
HORIZON = "total_steps: expected an integer >= 1 or None"
DTYPE = "compute_dtype: expected a floating point dtype"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("lr", [-1.0], LR),
        ("scale", [-1.0, nan, torch.tensor(0.1)], SCALE),
        ("weight_decay", [nan, inf, -0.1, True, torch.tensor(0.1)], DECAY),
        ("total_steps", [0, inf, nan, -1, 10.5, True, "9", torch.tensor(9)], HORIZON),
        ("compute_dtype", [torch.int8, "bfloat16", float], DTYPE),
        ("maximize", [None, 1, "yes"], "maximize: expected True or False"),
    ],
)
def test_arguments(metanet, name, values, message):
    for value in values:
        with pytest.raises(ValueError, match=f"{message}.*; got ") as caught:
            NGOptimizer(network().parameters(), rule=metanet, **{name: value})
        assert not isinstance(value, int | float) or f"got {value}" in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "dtype", "message"),
    [
        ("default", torch.float16, "expected torch.bfloat16"),
        ("ff", torch.float8_e4m3fn, "expected .* of 16 bits"),
    ],
)
def test_compute_dtypes_that_a_rule_does_not_have(rule, dtype, message):
    with pytest.raises(ValueError, match=f"compute_dtype: {message}"):
        NGOptimizer(network().parameters(), rule=rule, compute_dtype=dtype)


def test_parameters_and_graph(metanet):
    model = network()
    with pytest.raises(ValueError, match="empty parameter list"):
        NGOptimizer([], rule=metanet)
    message = r"parameter group: expected 'params'; got \['lr'\]"
    with pytest.raises(ValueError, match=message):
        NGOptimizer([{"lr": 1.0}], rule=metanet)
    sources = {"model": model, "graph": build_graph(model)}
    with pytest.raises(ValueError, match="got both"):
        NGOptimizer(model.parameters(), rule=metanet, **sources)


def test_bad_group_changes_nothing(metanet):
    model = network()
    opt = NGOptimizer(model.parameters(), rule=metanet)
    graph = opt.graph
    with pytest.raises(ValueError, match="lr: expected"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": -1})
    assert len(opt.param_groups) == 1
    assert opt.graph is graph
    train(model, opt, range(1))


def test_add_param_group_extends_the_graph_and_keeps_state(metanet):
    body, head = mlp(4, 5, 3), nn.Linear(3, 2)
    opt = NGOptimizer(body.parameters(), rule=metanet)
    body(torch.randn(2, 4)).sum().backward()
    opt.step()
    kept = copy.deepcopy([opt.state[p] for p in body.parameters()])
    opt.add_param_group({"params": head.parameters(), "lr": 0.5})
    whole = build_graph([*body.parameters(), *head.parameters()])
    assert opt.graph.blocks == whole.blocks
    records = [opt.state[p] for p in body.parameters()]
    torch.testing.assert_close(records, kept, rtol=0, atol=0)
    before = snapshot(head)
    head(body(torch.randn(2, 4))).sum().backward()
    opt.step()
    assert not same(head, before)
    assert opt.state[body[0].weight]["step"] == 2
    assert opt.state[head.weight]["step"] == 1


def test_add_param_group_to_a_traced_model(metanet):
    model, extra = network(), nn.Linear(4, 2)
    opt = NGOptimizer(list(model.parameters())[:4], model=model, rule=metanet)
    assert len(opt.graph.parameters) == 9
    opt.add_param_group({"params": list(model.parameters())[4:]})
    assert len(opt.graph.parameters) == 9
    opt = copy.deepcopy(opt)
    opt.add_param_group({"params": extra.parameters()})
    assert len(opt.graph.parameters) == 11
    assert opt._binding.parameters(opt).graph == opt.graph


@pytest.mark.parametrize("weights", WEIGHTS)
def test_maximize_is_the_negated_loss(weights):
    up, down = network(), network()
    inputs, labels = batch(0)
    opt = NGOptimizer(up.parameters(), rule=weights, maximize=True)
    groups = [{"params": down.parameters(), "maximize": False}]
    other = NGOptimizer(groups, rule=weights, maximize=True)
    for model, sign in ((up, -1), (down, 1)):
        (sign * F.cross_entropy(model(inputs), labels)).backward()
    opt.step()
    other.step()
    assert same(up, snapshot(down))


@pytest.mark.parametrize("name", ["betas", "momentum", "eps"])
def test_settings_of_other_optimizers_are_warned_of_once(name):
    group = {"params": network().parameters(), name: 0.9}
    with pytest.warns(UserWarning, match=f"no effect: {name}") as caught:
        NGOptimizer([group])
        NGOptimizer(network().parameters(), **{name: 0.9}).add_param_group(group)
    assert len(caught) == 2


@pytest.mark.parametrize("is_in_group", [False, True])
def test_differentiable_steps_are_refused(is_in_group):
    params, setting = list(network().parameters()), {"differentiable": True}
    with pytest.raises(ValueError, match=r"differentiable.*use .*rule\.bind"):
        if is_in_group:
            NGOptimizer([{"params": params, **setting}])
        NGOptimizer(params, **setting)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("weights", r"\. Did you mean rule="),
        ("steps", r"\. Did you mean total_steps="),
        ("warmup_steps", "$"),
    ],
)
def test_unknown_arguments_are_type_errors(name, advice):
    message = f"unexpected keyword argument '{name}'{advice}"
    with pytest.raises(TypeError, match=message):
        NGOptimizer(network().parameters(), **{name: 3})


def test_settings_that_all_groups_share(metanet):
    params = list(network().parameters())
    groups = [{"params": params[:2]}, {"params": params[2:], "total_steps": 10}]
    with pytest.raises(ValueError, match="one 'total_steps' for all groups.*got 10"):
        NGOptimizer(groups, rule=metanet)
    opt = NGOptimizer(params[:2], rule=metanet, total_steps=5)
    torch.optim.swa_utils.SWALR(opt, swa_lr=0.05)
    again = {**opt.param_groups[0], "params": params[2:]}
    opt.add_param_group(again)  # groups of an optimizer are accepted
    assert len(opt.param_groups) == 2 and "initial_lr" in again and "swa_lr" in again


@pytest.mark.parametrize("lr", [inf, nan, -1.0, "1", torch.tensor(-1.0), torch.ones(2)])
def test_learning_rates_out_of_range(metanet, lr):
    model = network()
    with pytest.raises(ValueError, match="NGOptimizer: lr: expected"):
        NGOptimizer(model.parameters(), lr=lr, rule=metanet)
    opt = NGOptimizer(model.parameters(), rule=metanet)
    before = snapshot(model)
    opt.param_groups[0]["lr"] = lr
    is_finite = isinstance(lr, Tensor | float) and torch.as_tensor(lr).isfinite().all()
    if is_finite and torch.as_tensor(lr).numel() == 1:
        return train(model, opt, range(1))  # schedulers may go below zero
    with pytest.raises(ValueError, match="NGOptimizer: lr: expected"):
        train(model, opt, range(1))
    assert same(model, before)
    assert not opt.state
    return None


def test_learning_rates_as_tensors(metanet):
    models = []
    for lr in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        model = nn.Sequential(network(), nn.PReLU())
        model.scalar = nn.Parameter(torch.ones(()))
        opt = NGOptimizer(model.parameters(), lr=lr, rule=metanet)
        (model(batch(0)[0]) * model.scalar).square().sum().backward()
        opt.step()
        models.append(model)
    assert all(same(model, snapshot(models[0])) for model in models)


def test_betas_by_position(metanet):
    message = r"weight_decay: .* >= 0; got \(0.9, 0.999\).*betas, leave them out"
    with pytest.raises(ValueError, match=message):
        NGOptimizer(network().parameters(), 1.0, (0.9, 0.999), rule=metanet)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_parameters_replaced_in_a_group(weights):
    model = mlp(4, 5, 3)
    opt = NGOptimizer(model.parameters(), rule=weights)
    inputs = torch.randn(2, 4)
    model(inputs).sum().backward()
    opt.step()
    wider = mlp(4, 7, 3)
    kept = opt.state[model[-1].bias]["step"].clone()
    for i, p in enumerate(list(wider.parameters())[:3]):
        opt.param_groups[0]["params"][i] = p
    wider[-1].bias = model[-1].bias
    opt.zero_grad()
    wider(inputs).sum().backward()
    before = snapshot(wider)
    opt.step()
    assert opt.graph == build_graph(list(wider.parameters()))
    assert not any(map(torch.equal, wider.parameters(), before))
    assert opt.state[wider[0].weight]["step"] == 1
    assert opt.state[model[-1].bias]["step"] == kept + 1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_parameters_appended_and_removed_in_a_group(weights):
    model = network()
    opt = NGOptimizer(model.parameters(), rule=weights)
    train(model, opt, range(1))
    extra = nn.Parameter(torch.ones(3, 2))
    group = opt.param_groups[0]["params"]
    removed = group.pop(0)
    group.append(extra)
    before = removed.detach().clone()
    extra.grad = torch.ones_like(extra)
    F.cross_entropy(model(batch(1)[0]), batch(1)[1]).backward()
    opt.step()
    assert torch.equal(removed, before)
    assert not torch.equal(extra, torch.ones_like(extra))
    assert len(opt.graph.parameters) == 9
    named = NGOptimizer(model.named_parameters(), rule=weights)
    named.param_groups[0]["params"].append(extra)
    message = r"param_groups\[0\]: expected a name.* 10 .*got 9"
    with pytest.raises(ValueError, match=message):
        named.step()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_parameter_that_grows_in_place(weights):
    p = nn.Parameter(torch.ones(3, 2))
    opt = NGOptimizer([p], rule=weights)
    p.sum().backward()
    opt.step()
    p.data = torch.ones(5, 2)
    p.grad = torch.ones(5, 2)
    message = r"'parameter 0': expected shape \(3, 2\), .*; got \(5, 2\)"
    with pytest.raises(ValueError, match=message):
        opt.step()
    del opt.state[p]
    opt.step()
    assert opt.state[p]["exp_avg_0"].squeeze().shape == (5, 2)


def test_a_parameter_twice_in_a_group(metanet):
    model = network()
    tied = [*model.named_parameters(), ("again", model[0].weight)]
    with pytest.raises(ValueError, match="'again' appears twice"):
        NGOptimizer(tied, rule=metanet)
    opt = NGOptimizer(model.parameters(), rule=metanet)
    train(model, opt, range(1))
    opt.param_groups[0]["params"].append(model[0].weight)
    before = snapshot(model)
    message = "'parameter 9' appears twice.*as 'parameter 0'"
    with pytest.raises(ValueError, match=message):
        train(model, opt, range(1))
    assert same(model, before)


def test_a_horizon_may_be_given_in_every_group(metanet):
    model, expected = network(), network()
    params = list(model.parameters())
    groups = [{"params": x, "total_steps": 5} for x in (params[:4], params[4:])]
    opt = NGOptimizer(groups, rule=metanet)
    other = NGOptimizer(expected.parameters(), rule=metanet, total_steps=5)
    train(model, opt, range(3))
    train(expected, other, range(3))
    assert same(model, snapshot(expected))
    opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert {group["total_steps"] for group in opt.param_groups} == {5}
    with pytest.raises(ValueError, match="one 'total_steps' for all groups, 9"):
        NGOptimizer(groups, rule=metanet, total_steps=9)


def test_horizons_that_differ_later_are_refused(metanet):
    params = list(network().parameters())
    opt = NGOptimizer([{"params": params[:4]}, {"params": params[4:]}], rule=metanet)
    opt.param_groups[1]["total_steps"] = 7
    for p in params:
        p.grad = torch.ones_like(p)
    message = "one 'total_steps' for all groups, None; got 7"
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert not opt.state
    opt.param_groups[0]["total_steps"] = 7
    opt.step()


@pytest.mark.parametrize("first_is_named", [True, False])
@pytest.mark.parametrize("is_traced", [True, False])
def test_names_are_dropped_where_groups_have_them_in_part(first_is_named, is_traced):
    """As callbacks add groups; torch would raise an error."""
    model = mlp(4, 5, 3)
    settings = {"model": model} if is_traced else {}
    kinds = ["named_parameters", "parameters"][:: 1 if first_is_named else -1]
    first, second = (
        getattr(model[i], kind)() for i, kind in zip((0, 2), kinds, strict=True)
    )
    opt = NGOptimizer(first, **settings)
    opt.add_param_group({"params": second})
    opt.add_param_group({"params": nn.Parameter(torch.ones(2))})
    assert all("param_names" not in group for group in opt.param_groups)
    model(torch.randn(3, 4)).sum().backward()
    opt.step()
    assert len(opt.graph.weights) == 2


def test_a_tensor_is_a_group_beside_names():
    opt = NGOptimizer(mlp(4, 5, 3).named_parameters())
    opt.add_param_group({"params": nn.Parameter(torch.ones(2))})
    assert [len(group["params"]) for group in opt.param_groups] == [4, 1]
