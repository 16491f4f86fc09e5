"""What changes while an optimizer is in use: which parameters have gradients, horizons,
groups."""

import copy
import gc
import io
import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, build_graph, load_pretrained
from ngopt.pretrained import weights_hash
from tests.networks import mlp
from tests.ngopt.training import same, snapshot


def step(model, opt, inputs):
    opt.zero_grad()
    model(inputs).square().mean().backward()
    opt.step()


def begun(total_steps=None):
    """A network, its optimizer after one step, and the inputs."""
    model, inputs = mlp(4, 5, 3), torch.randn(8, 4)
    opt = NGOptimizer(model.parameters(), total_steps=total_steps)
    step(model, opt, inputs)
    return model, opt, inputs


def bytes_held(opt):
    values = [value for record in opt.state.values() for value in record.values()]
    storages = {
        x.data_ptr(): x.nbytes() for x in map(torch.Tensor.untyped_storage, values)
    }
    return sum(storages.values())


def test_freezing_layers_one_by_one_needs_no_more_memory():
    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(12)))
    opt = NGOptimizer(model.parameters())
    inputs = torch.randn(4, 24)
    step(model, opt, inputs)
    before = bytes_held(opt)
    for layer in list(model)[:-1]:
        layer.requires_grad_(False)
        step(model, opt, inputs)
    assert bytes_held(opt) < 1.1 * before
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    assert len(file.getvalue()) < 2 * before


def test_a_layer_without_gradients_in_some_steps_has_the_state_of_one_alone():
    """Its state leaves the packed state and comes back."""
    torch.manual_seed(0)
    inputs = torch.randn(4, 3, 5)
    records = []
    for beside in (False, True):
        torch.manual_seed(1)
        model, other = nn.Linear(5, 5), nn.Linear(5, 5)
        params = [*model.parameters(), *(other.parameters() if beside else ())]
        opt = NGOptimizer(params, total_steps=8)
        for i, x in enumerate(inputs):
            opt.zero_grad()
            other(x).square().mean().backward()
            if i % 2 == 0:
                model(x).square().mean().backward()
            if any(p.grad is not None for p in params):
                opt.step()
        records.append(opt.state[model.weight])
    alone, beside = records
    assert alone["step"] == beside["step"] == 2
    # its distance is another, as the other layer's steps count for the schedule
    for key in alone.keys() - {"path", "distance", "displacement"}:
        torch.testing.assert_close(alone[key], beside[key], rtol=1e-5, atol=1e-7)


class TestHorizons:
    def test_setting_total_steps_drops_the_average(self):
        model, opt, inputs = begun()
        opt.param_groups[0]["total_steps"] = 20
        before = model[0].weight.detach().clone()
        opt.load_average()
        with opt.averaged():
            assert torch.equal(model[0].weight, before)
        step(model, opt, inputs)
        assert "average" not in opt.state[model[0].weight]

    def test_changes_within_an_average_are_lost_with_a_warning(self):
        model, opt, inputs = begun()
        weight = model[0].weight
        before, average = weight.detach().clone(), opt.state[weight]["average"].clone()
        with pytest.warns(UserWarning, match="these changes are lost"), opt.averaged():
            nn.init.zeros_(weight)
        assert torch.equal(weight, before)
        assert torch.equal(opt.state[weight]["average"], average)
        with pytest.raises(RuntimeError, match="before step"), opt.averaged():
            step(model, opt, inputs)
        assert torch.equal(weight, before)

    def test_removing_total_steps_starts_an_average(self):
        model, opt, inputs = begun(20)
        opt.param_groups[0]["total_steps"] = None
        before = model[0].weight.detach().clone()
        step(model, opt, inputs)
        average = opt.state[model[0].weight]["average"]
        assert (average - before).norm() < (model[0].weight - before).norm()
        assert not torch.equal(average, before)

    @pytest.mark.parametrize(("before", "after"), [(None, 20), (20, None)])
    def test_total_steps_change_as_parameters_are_added(self, before, after):
        (model, opt, inputs), late = begun(before), mlp(3, 2)
        opt.param_groups[0]["total_steps"] = after
        opt.add_param_group({"params": late.parameters()})
        step(nn.Sequential(model, late), opt, inputs)
        kept = ["average" in record for record in opt.state.values()]
        assert kept == [after is None] * 6


def test_state_of_other_matrices_starts_anew_but_for_the_count_of_steps():
    """A norm behind the last layer shows that a weight has channels, not rows in two
    parts."""
    torch.manual_seed(0)
    ends = pairwise((8, 1200, 1200, 1200, 3))
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in ends))
    norm = nn.LayerNorm(3)
    group = {"params": model.named_parameters(), "factor_rows": 4096}
    opt = NGOptimizer([group])
    inputs = torch.randn(4, 8)
    step(model, opt, inputs)
    named = [(f"4.{name}", p) for name, p in norm.named_parameters()]
    opt.add_param_group({"params": named})
    with pytest.warns(UserWarning, match="no longer fits; what does not starts anew"):
        step(nn.Sequential(model, norm), opt, inputs)
    assert {int(opt.state[p]["step"]) for p in model.parameters()} == {2}
    step(nn.Sequential(model, norm), opt, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weights", ["default", "ff", "ng-gnn"])
def test_the_default_dtype_changes_nothing(weights, dtype):
    expected = weights_hash(load_pretrained(weights))
    model = mlp(4, 5, 3)
    models = model, copy.deepcopy(model)
    inputs = torch.randn(8, 4)
    step(models[0], NGOptimizer(models[0].parameters(), rule=weights), inputs)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        opt = NGOptimizer(models[1].parameters(), rule=weights)
        step(models[1], opt, inputs)
    finally:
        torch.set_default_dtype(default_dtype)
    assert weights_hash(opt.rule) == expected
    assert same(models[0], snapshot(models[1]))


def test_conjugate_gradients():
    p = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    opt = NGOptimizer([p])
    (torch.randn(3) * p.conj()).abs().square().sum().backward()
    before = p.detach().clone()
    opt.step()
    assert not torch.equal(p, before)


def test_equal_networks_in_two_groups_are_both_in_the_graph():
    nets = [mlp(4, 5, 3), mlp(4, 5, 3)]
    opt = NGOptimizer([{"params": net.named_parameters()} for net in nets])
    assert len(opt.graph.weights) == 4
    assert not opt.graph.unplaced


def replaced(opt):
    """Replaces all parameters by other tensors, as Accelerate does."""
    for group in opt.param_groups:
        group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]


def test_parameters_that_replace_all_are_matched_to_a_given_graph():
    model = mlp(4, 6, 3)
    graph = build_graph(model, torch.randn(2, 4))
    opt = NGOptimizer(model.parameters(), graph=graph)
    assert opt.graph is graph
    replaced(opt)
    assert opt.graph is graph


def test_loading_an_empty_state_references_no_parameter():
    """Accelerate does so before it replaces parameters."""
    model = mlp(4, 6, 3)
    opt = NGOptimizer(model.parameters())
    opt.load_state_dict(opt.state_dict())
    old = weakref.ref(model[0].weight)
    replaced(opt)
    del model
    gc.collect()
    assert old() is None
