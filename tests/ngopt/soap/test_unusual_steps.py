"""Steps in other orders, places and precisions than those of a plain training."""

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.functional import update_all
from ngopt.soap.soap import Soap
from tests.ngopt.soap.test_soap import constant, noise, set_noise


@pytest.mark.parametrize("every", [2, 5, 10])
@pytest.mark.parametrize("period", [1, 2, 5, 10])
def test_bases_are_renewed_whatever_has_a_gradient(every, period):
    """Two heads that are trained in turn, `period` steps each, on one trunk."""
    params = [nn.Parameter(torch.randn(n, 6)) for n in (5, 4, 3)]
    opt = NGOptimizer(params, total_steps=1000, precondition_frequency=every)
    steps, newest, old = 2 * period * every + 40, {}, {}
    for step in range(steps):
        set_noise(params, step)
        params[1 + step // period % 2].grad = None
        opt.step()
        for i, p in enumerate(params):
            for key, basis in opt.state[p].items() if p in opt.state else ():
                if "basis" in key and not torch.equal(basis, old.get((i, key), basis)):
                    newest[i, key] = step
                if "basis" in key:
                    old[i, key] = basis.clone()
    assert len(newest) == len(old) >= 4
    assert min(newest.values()) >= steps - 2 * period * every


def test_functional_steps_of_one_rule_are_independent():
    """Another step is made between the two groups, of two dtypes, of one step."""
    params = [torch.randn(4, 6), torch.randn(4, dtype=torch.float64)]
    shared = Soap().bind(build_graph(params), 20)
    own = Soap().bind(build_graph(params), 20)
    state, other, expected = shared.init(params), shared.init(params), own.init(params)
    for step in range(4):
        grads = noise(params, step)
        changes = shared.update(grads, state, params, constant(2))
        found = next(changes)
        update_all(shared, noise(params, 9), other, params, constant(2))
        found += next(changes)
        state = [c.record for c in sorted(found, key=lambda c: c.position)]
        _, expected = update_all(own, grads, expected, params, constant(2))
    for record, alone in zip(state, expected, strict=True):
        assert all(torch.equal(record[key], alone[key]) for key in alone)


def test_meta_gradients_after_a_gradient_of_exactly_zero():
    """The second factor begins at zero, as in LoRA."""
    start = [torch.randn(4, 6), torch.zeros(3, 4)]
    start = [p.double().requires_grad_() for p in start]
    rule = Soap().bind(build_graph(start), 10)
    lr = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    params, state = start, rule.init(start)
    for _ in range(4):
        loss = (params[1] @ params[0] - 1).square().mean()
        grads = torch.autograd.grad(loss, params, create_graph=True)
        deltas, state = update_all(rule, grads, state, params, constant(2, lr))
        params = [p + d for p, d in zip(params, deltas, strict=True)]
    loss = (params[1] @ params[0] - 1).square().mean()
    for found in torch.autograd.grad(loss, [lr, *start]):
        assert found.isfinite().all() and found.any()


def test_a_parameter_without_elements_alone():
    params = [torch.zeros(0, 3)]
    rule = Soap().bind(build_graph(params), 10)
    deltas, _ = update_all(rule, params, rule.init(params), params, constant(1))
    assert deltas[0].shape == (0, 3)


def test_a_default_device_is_not_the_parameters_device():
    p = nn.Parameter(torch.ones(4, 3))
    opt = NGOptimizer([p], total_steps=10)
    with torch.device("meta"):
        for _ in range(2):
            p.grad = torch.ones(4, 3, device="cpu")
            opt.step()
    assert (p < 1).all()


def test_an_average_that_begins_late_follows_a_parameter_in_another_order():
    model = nn.ConvTranspose2d(6, 5, 3)  # whose matrix is not the order of its memory
    model.weight.data = model.weight.data.to(memory_format=torch.channels_last)
    opt = NGOptimizer(model.parameters(), model=model, total_steps=100)
    for step in range(40):
        if step == 2:
            opt.param_groups[0]["total_steps"] = None
        opt.zero_grad()
        model(torch.ones(1, 6, 4, 4)).sum().backward()
        opt.step()
        if step == 2:
            first = opt.state[model.weight]["average"].clone()
    assert (opt.state[model.weight]["average"] < first).all()


@pytest.mark.parametrize("total_steps", [None, 1000])
def test_weight_decay_is_in_units_of_adamw_whatever_the_schedule(total_steps):
    """A vector with a tiny gradient decays by 1e-3 * weight_decay * schedule."""
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    steps, decay = 20, 5.0
    opt = NGOptimizer([p], weight_decay=decay, total_steps=total_steps)
    expected = 1.0
    for step in range(steps):
        p.grad = torch.zeros_like(p)
        opt.step()
        if total_steps is None:
            schedule = min((step + 1) / 30, 1) / (1 + step / 50) ** 0.5
        else:
            schedule = min((step + 1) / 80, 1) * (1 - (step + 1) / 1001)
        expected *= 1 - 1e-3 * decay * schedule
    torch.testing.assert_close(p.detach(), torch.full_like(p, expected).detach())
