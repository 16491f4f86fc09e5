"""The rule as a whole: against an independent reference in numpy, pure,
and as `NGOptimizer` runs it."""

import copy
from functools import partial
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.functional import Hyper, update_all
from ngopt.soap import soap
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap
from tests.networks import CNN_INPUT, cnn
from tests.ngopt.training import snapshot
from tests.selection import quick_first


def constant(count, lr=1.0, weight_decay=0.0):
    return Hyper([lr] * count, [weight_decay] * count)


assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)
# Whatever the horizon, the first weights and the way.
PLAIN_STEPS = {"short_run_steps": 1, "trained_exponent": 0.0, "path_ratio": 1e9}


def case(dtype=torch.float64):
    torch.manual_seed(0)
    model = cnn().to(dtype)
    return model, build_graph(model), snapshot(model)


def noise(params, seed):
    generator = torch.Generator().manual_seed(seed)
    like = {"generator": generator, "dtype": torch.float64}
    return [torch.randn(p.shape, **like).to(p.dtype) for p in params]


def set_noise(params, seed):
    for p, g in zip(params, noise(params, seed), strict=True):
        p.grad = g


# of rules with and without a horizon
both_horizons = pytest.mark.parametrize("total_steps", [None, 20])


class TestPureCore:
    @torch.no_grad()
    @both_horizons
    def test_nothing_changes_in_place(self, total_steps):
        _, graph, params = case()
        rule = Soap().bind(graph, total_steps=total_steps)
        state = rule.init(params)
        for step in range(4):
            given = noise(params, step), state, params
            before = copy.deepcopy(given)
            deltas, new = update_all(rule, *given, constant(9, weight_decay=1.0))
            assert_equal(given, before)
            again, _ = update_all(rule, *given, constant(9, weight_decay=1.0))
            assert_equal(again, deltas)
            state = new

    @torch.no_grad()
    def test_a_step_can_be_written_before_the_next_is_taken(self):
        _, graph, params = case()
        rule = Soap().bind(graph)
        state = rule.init(params)
        deltas, new = update_all(rule, noise(params, 0), state, params, constant(9))
        written, seen = [dict(record) for record in state], 0
        values = [p.clone() for p in params]
        changes = rule.update(noise(params, 0), written, values, constant(9))
        for change in chain.from_iterable(changes):
            position, record = change.position, change.record
            values[position].fill_(torch.nan)  # nobody reads it any more
            for key in record:
                written[position][key] = torch.full_like(record[key], torch.nan)
            delta = change.delta.reshape(params[position].shape)
            assert torch.equal(delta, deltas[position])
            for key, v in record.items():
                assert key == "average" or torch.equal(v, new[position][key])
            seen += 1
        assert seen == 9

    @torch.no_grad()
    @both_horizons
    def test_keys_and_shapes_are_known_without_memory(self, total_steps):
        _, graph, params = case()
        rule = Soap().bind(graph, total_steps=total_steps)
        found = rule.init([torch.empty(p.shape, device="meta") for p in params])
        for record, like in zip(found, rule.init(params), strict=True):
            assert record.keys() == like.keys()
            assert all(v.shape == like[k].shape for k, v in record.items())
            assert all(v.is_meta for k, v in record.items() if k != "step")
            assert ("average" in record) == (total_steps is None)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_the_optimizers_step_is_the_functional_update(self, dtype):
        model, graph, params = case(dtype)
        opt = NGOptimizer(model.parameters(), scale=0.5, weight_decay=2.0, rule=Soap())
        rule = Soap().bind(graph)
        state = rule.init(params)
        for step in range(12):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(6, *CNN_INPUT, generator=generator).to(dtype)
            opt.zero_grad()
            F.cross_entropy(model(inputs).float(), torch.arange(6) % 3).backward()
            if step == 7:
                model[2].weight.grad = None
            grads = [p.grad for p in model.parameters()]
            grads = [g if g is None else g.clone() for g in grads]
            hyper = constant(9, 0.5, 2.0)
            with torch.no_grad():
                deltas, state = update_all(rule, grads, state, params, hyper)
                for p, d in zip(params, deltas, strict=True):
                    if d is not None:
                        p += d
            opt.step()
            torch.testing.assert_close(list(model.parameters()), params)
        for p, record in zip(model.parameters(), state, strict=True):
            # products of matrices that lie elsewhere in memory may be rounded otherwise
            # and sums of squares are 20 times mean squares
            torch.testing.assert_close(opt.state[p], record, rtol=1.3e-6, atol=2e-4)
            assert {v.dtype for v in record.values()} <= {torch.float32, torch.float64}

    @torch.no_grad()
    @both_horizons
    def test_many_at_once_are_what_each_is_alone(self, total_steps):
        """Parameters do not meet, but for the number of steps of the training, whether
        gradients agree, and chains. These networks are neither trained nor chains."""
        shapes = [(4, 6), (6, 4), (4, 6), (5,), (3, 4, 3, 3), (), (7, 2)]
        params = [torch.randn(s, dtype=torch.float64) for s in shapes]
        rules = [Soap().bind(build_graph([p]), total_steps) for p in params]
        whole = Soap().bind(build_graph(params), total_steps)
        whole.layouts = [rule.layouts[0] for rule in rules]
        whole.roles = [rule.roles[0] for rule in rules]
        for rule in (whole, *rules):
            rule.precondition_frequency = 1
        state = whole.init(params)
        alone = [rule.init([p]) for rule, p in zip(rules, params, strict=True)]
        for step in range(5):
            grads = noise(params, step)
            if step == 2:
                grads[4].view(-1)[0] = torch.nan
            deltas, state = update_all(whole, grads, state, params, constant(7, 0.5, 1))
            for i, rule in enumerate(rules):
                given = [grads[i]], alone[i], [params[i]], constant(1, 0.5, 1)
                (expected,), alone[i] = update_all(rule, *given)
                torch.testing.assert_close(deltas[i], expected)
                of_all = {"agreement": state[i]["agreement"]}
                torch.testing.assert_close(state[i], {**alone[i][0], **of_all})

    def test_any_subset_of_gradients(self):
        """A step without some gradients keeps their state and changes nothing else."""
        _, graph, params = case()
        rule = Soap().bind(graph, 20)
        state = rule.init(params)
        for step in range(6):
            grads = noise(params, step)
            grads[step] = grads[-1 - step] = None
            with torch.no_grad():
                deltas, new = update_all(rule, grads, state, params, constant(9))
            for i, grad in enumerate(grads):
                assert (deltas[i] is None) == (grad is None)
                assert new[i]["step"] == state[i]["step"] + (grad is not None)
                if grad is None:
                    assert new[i] is state[i]
            state = new

    @torch.no_grad()
    @both_horizons
    def test_under_vmap(self, total_steps):
        _, graph, params = case()
        rule = Soap().bind(graph, total_steps)
        stacked = [torch.stack([p, 2 * p, -p]) for p in params]
        grads = [[torch.randn_like(p) for p in stacked] for _ in range(3)]

        def training(params, *grads):
            state = rule.init(params)
            for own in grads:
                deltas, state = update_all(rule, own, state, params, constant(9, 1, 1))
                params = [p + d for p, d in zip(params, deltas, strict=True)]
            return params, [record["exp_avg_sq_0"] for record in state]

        mapped = torch.vmap(training)(stacked, *grads)
        for k in range(3):
            own = [[g[k] for g in x] for x in grads]
            single = training([p[k] for p in stacked], *own)
            for found, expected in zip(chain(*mapped), chain(*single), strict=True):
                torch.testing.assert_close(found[k], expected, rtol=1e-9, atol=1e-12)

    @both_horizons
    def test_gradients_through_steps(self, total_steps):
        """Of a loss after three steps by lr and by the first weights, second order.

        Bases, units and distances are constants to autograd, so that differences are
        taken where there are none.
        """
        graph = build_graph([torch.zeros(3), torch.zeros(4)])
        rule = Soap(SoapConfig(**PLAIN_STEPS)).bind(graph, total_steps)
        start = torch.linspace(-1, 1, 7, dtype=torch.float64)

        def loss(lr, start):
            params = list(start.split([3, 4]))
            state = rule.init(params)
            for step in range(3):
                value = sum((p - step).square().square().sum() for p in params)
                grads = torch.autograd.grad(value, params, create_graph=True)
                hyper = Hyper([lr] * 2, [1.0] * 2)
                deltas, state = update_all(rule, grads, state, params, hyper)
                params = [p + d for p, d in zip(params, deltas, strict=True)]
            return sum(p.square().sum() for p in params)

        lr = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
        start.requires_grad_()
        assert torch.autograd.gradcheck(loss, (lr, start), eps=1e-6, rtol=1e-4)

    @torch.no_grad()
    @pytest.mark.parametrize(
        ("total_steps", "dtype"),
        quick_first(
            [(None, torch.float32), (20, torch.bfloat16)], [(20, torch.bfloat16)]
        ),
    )
    def test_a_step_runs_on_the_meta_device(self, total_steps, dtype):
        """So nothing is read from the device. Beside it, a parameter on another."""
        with torch.device("meta"):
            model = nn.Sequential(cnn(), nn.Embedding(9, 600), nn.LSTM(5, 6))
        other = nn.Linear(3, 2)
        params = [p.to(dtype) for p in (*model.parameters(), *other.parameters())]
        opt = NGOptimizer(params, total_steps=total_steps)
        before = params[-1].clone()
        for step in range(14):
            for p in params:
                p.grad = torch.ones_like(p)
            if step % 3:
                params[0].grad = None
            opt.step()
        assert not torch.equal(params[-1], before)
        assert opt.state[params[0]]["step"] == 5
        assert opt.state[params[1]]["step"] == 14
        assert opt.state[params[1]]["exp_avg_0"].is_meta
        assert opt.param_groups[0]["precondition_frequency"] == 5

    def test_a_late_parameter_alone_in_a_step_has_the_time_of_the_run(self):
        """The schedule goes by the training's steps also where the older parameters are
        absent."""
        ends = []
        for absent in (False, True):
            old, new = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
            opt = NGOptimizer([old])
            for _ in range(150):
                old.grad = torch.ones(3)
                opt.step()
            opt.add_param_group({"params": [new]})
            new.grad = torch.ones(3)
            old.grad = None if absent else old.grad
            opt.step()
            ends.append(1 - new.detach())
        torch.testing.assert_close(*ends)


class TestCudaGraphs:
    """Capture is emulated: the device computes what the host knows otherwise."""

    def steps(self, captured_from, monkeypatch, total_steps=None, **settings):
        """Weights and state after steps, those from a number on as in a CUDA graph."""
        torch.manual_seed(0)
        params = list(cnn().double().parameters())
        opt = NGOptimizer(params, total_steps=total_steps, **settings)
        for step in range(30):
            is_captured = step >= captured_from
            monkeypatch.setattr(
                soap.devices, "is_capturing", lambda _, x=is_captured: x
            )
            set_noise(params, step)
            opt.step()
        return params, opt

    @pytest.mark.parametrize("total_steps", [None, 40])
    @pytest.mark.parametrize("every", [1, 3])
    def test_steps_are_those_of_the_host(self, monkeypatch, total_steps, every):
        settings = {"total_steps": total_steps, "precondition_frequency": every}
        expected, opt = self.steps(99, monkeypatch, **settings)
        found, other = self.steps(12, monkeypatch, **settings)
        for p, q in zip(expected, found, strict=True):
            torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-12)
            assert other.state[q]["step"] == opt.state[p]["step"] == 30

    def test_steps_after_a_capture_go_on_counting(self, monkeypatch):
        params, opt = self.steps(12, monkeypatch, total_steps=60)
        monkeypatch.setattr(soap.devices, "is_capturing", lambda _: False)
        for number in range(3):
            opt.step()
            assert {float(opt.state[p]["step"]) for p in params} == {31.0 + number}
