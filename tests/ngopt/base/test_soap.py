"""The rule as a whole: against an independent reference in numpy, pure,
and as `NGOptimizer` runs it."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.base.config import SoapConfig
from ngopt.base.soap import Soap
from ngopt.functional import Hyper, update_all
from ngopt.learned import LearnedOptimizer
from tests.networks import CNN_INPUT, cnn, mlp


def gradients(steps, *shape):
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(
        steps, *shape, generator=generator, dtype=torch.float64
    )


def constant(count, lr=1.0, weight_decay=0.0):
    return Hyper([lr] * count, [weight_decay] * count)


class Reference:
    """The rule for one matrix (out, in), step by step and in full matrices."""

    def __init__(self, config, rows, columns):
        self.config, self.t = config, 0
        self.m = np.zeros((rows, columns))
        self.v = np.zeros((rows, columns))
        self.size = 0.0
        self.factors = [np.zeros((n, n)) for n in (rows, columns)]
        self.bases = [np.eye(n) for n in (rows, columns)]

    def direction(self, g):
        c, t = self.config, self.t + 1
        if t == 1:
            self.scale = 2.0 ** round(np.log2(np.sqrt((g**2).mean())))
        g = g / self.scale
        self.size = 0.95 * self.size + 0.05 * (g**2).mean()
        self.m = c.beta1 * self.m + (1 - c.beta1) * g
        for k, product in enumerate((g @ g.T, g.T @ g)):
            self.factors[k] = (
                c.beta_factor * self.factors[k] + (1 - c.beta_factor) * product
            )
        if t == 1:
            self.renew()
        left, right = self.bases
        self.v = c.beta2 * self.v + (1 - c.beta2) * (left.T @ g @ right) ** 2
        damping = c.epsilon**2 * self.size / (1 - 0.95**t)
        ahead = c.beta1 * self.m + (1 - c.beta1) * g
        rotated = left.T @ ahead @ right / (1 - c.beta1 ** (t + 1))
        u = (
            left
            @ (rotated / np.sqrt(self.v / (1 - c.beta2**t) + damping))
            @ right.T
        )
        if t > 1 and self.t % min(c.renew_every, 1 + self.t // 8) == 0:
            self.renew()
        self.t = t
        return u

    def renew(self):
        for k, (factor, basis) in enumerate(
            zip(self.factors, self.bases, strict=True)
        ):
            quotients = np.diag(basis.T @ factor @ basis)
            order = np.argsort(-quotients)
            lifted = factor + 1e-3 * quotients.max() * np.eye(len(factor))
            self.bases[k] = np.linalg.qr((lifted @ basis)[:, order])[0]
            self.v = self.v[order] if k == 0 else self.v[:, order]


@torch.no_grad()
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_a_matrix_is_the_reference(shape):
    config = SoapConfig(
        step_size=0.02, weight_exponent=0.5, output=1.25, epsilon=1e-3
    )
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0], bias=False, dtype=torch.float64)
    rule = Soap(config).bind(build_graph(linear), total_steps=40)
    p = linear.weight.detach().clone()
    x = linear.weight.detach().numpy().copy()
    usual = (3 * shape[1]) ** -0.5
    gain = 1.25 * min((shape[1] / 64) ** -0.5, 1)
    state = rule.init([p])
    reference = Reference(config, *shape)
    for t, g in enumerate(gradients(30, *shape)):
        (delta,), state = update_all(
            rule, [g], state, [p], constant(1, lr=0.5, weight_decay=2.0)
        )
        s = 0.5 * 0.02 * min(1, (t + 1) / 3.2) * (1 - (t + 1) / 41)
        size = np.clip(np.sqrt((x**2).mean()) / usual, 0.25, 10) ** 0.5
        decay = s * (0.05 + 2 * 1e-3 / 0.02) * x
        x = x - s * gain * size * reference.direction(g.numpy()) - decay
        p = p + delta
        np.testing.assert_allclose(p.numpy(), x, rtol=1e-6, atol=1e-7)
    assert state[0]["step"] == 30
    np.testing.assert_allclose(
        state[0]["rows_0"][0].numpy(), reference.factors[0], rtol=1e-9
    )
    np.testing.assert_allclose(
        state[0]["exp_avg_sq_0"][0, :, 0].numpy(),
        reference.v,
        rtol=1e-6,
        atol=1e-9,
    )


def case(dtype=torch.float64):
    torch.manual_seed(0)
    model = cnn().to(dtype)
    return (
        model,
        build_graph(model),
        [p.detach().clone() for p in model.parameters()],
    )


def noise(params, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(p.shape, generator=generator, dtype=torch.float64).to(
            p.dtype
        )
        for p in params
    ]


class TestPureCore:
    @torch.no_grad()
    @pytest.mark.parametrize("total_steps", [None, 20])
    def test_nothing_changes_in_place(self, total_steps):
        _, graph, params = case()
        rule = Soap().bind(graph, total_steps=total_steps)
        state = rule.init(params)
        for step in range(4):
            grads = noise(params, step)
            tensors = [
                *params,
                *grads,
                *(t for record in state for t in record.values()),
            ]
            before = [t.clone() for t in tensors]
            deltas, new = update_all(
                rule, grads, state, params, constant(9, weight_decay=1.0)
            )
            assert all(
                torch.equal(a, b) for a, b in zip(before, tensors, strict=True)
            )
            again, _ = update_all(
                rule, grads, state, params, constant(9, weight_decay=1.0)
            )
            assert all(
                torch.equal(a, b) for a, b in zip(deltas, again, strict=True)
            )
            state = new

    @torch.no_grad()
    def test_a_step_can_be_written_before_the_next_is_taken(self):
        _, graph, params = case()
        rule = Soap().bind(graph)
        state = rule.init(params)
        deltas, new = update_all(
            rule, noise(params, 0), state, params, constant(9)
        )
        written, seen = [dict(record) for record in state], 0
        values = [p.clone() for p in params]
        for position, delta, record, _ in rule.update(
            noise(params, 0), written, values, constant(9)
        ):
            values[position].fill_(torch.nan)  # nobody reads it any more
            for key in record:
                written[position][key] = torch.full_like(record[key], torch.nan)
            assert torch.equal(delta, deltas[position])
            assert all(
                torch.equal(v, new[position][key]) for key, v in record.items()
            )
            seen += 1
        assert seen == 9

    @torch.no_grad()
    @pytest.mark.parametrize("total_steps", [None, 20])
    def test_keys_and_shapes_are_known_without_memory(self, total_steps):
        _, graph, params = case()
        rule = Soap().bind(graph, total_steps=total_steps)
        found = rule.init([torch.empty(p.shape, device="meta") for p in params])
        for record, like in zip(found, rule.init(params), strict=True):
            assert {k: v.shape for k, v in record.items()} == {
                k: v.shape for k, v in like.items()
            }
            assert all(v.is_meta for k, v in record.items() if k != "step")
            assert ("average" in record) == (total_steps is None)

    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.bfloat16]
    )
    def test_the_optimizers_step_is_the_functional_update(self, dtype):
        model, graph, params = case(dtype)
        opt = NGOptimizer(
            model.parameters(),
            lr=0.5,
            weight_decay=2.0,
            weights=LearnedOptimizer(Soap()),
        )
        rule = Soap().bind(graph)
        state = rule.init(params)
        for step in range(12):
            inputs = torch.randn(
                6, *CNN_INPUT, generator=torch.Generator().manual_seed(step)
            )
            opt.zero_grad()
            F.cross_entropy(
                model(inputs.to(dtype)).float(), torch.arange(6) % 3
            ).backward()
            if step == 7:
                model[2].weight.grad = None
            grads = [
                None if p.grad is None else p.grad.clone()
                for p in model.parameters()
            ]
            with torch.no_grad():
                deltas, state = update_all(
                    rule, grads, state, params, constant(9, 0.5, 2.0)
                )
                for p, d in zip(params, deltas, strict=True):
                    if d is not None:
                        p += d
            opt.step()
            torch.testing.assert_close(list(model.parameters()), params)
        for p, record in zip(model.parameters(), state, strict=True):
            # products of matrices that lie elsewhere in memory may be rounded otherwise
            torch.testing.assert_close(opt.state[p], record)
            assert all(
                v.dtype in (torch.float32, torch.float64)
                for v in record.values()
            )

    def test_a_late_parameter_alone_in_a_step_knows_how_late_it_is(self):
        """The schedule goes by the training's steps also where the older parameters are absent."""
        steps = {}
        for absent in (False, True):
            old = nn.Parameter(torch.ones(3))
            new = nn.Parameter(torch.ones(3))
            opt = NGOptimizer([old])
            for _ in range(150):
                old.grad = torch.ones(3)
                opt.step()
            opt.add_param_group({"params": [new]})
            new.grad = torch.ones(3)
            old.grad = None if absent else old.grad
            opt.step()
            steps[absent] = 1 - new.detach()
        torch.testing.assert_close(steps[True], steps[False])

    @pytest.mark.parametrize("total_steps", [None, 30])
    def test_resume_is_bit_identical(self, total_steps, tmp_path):
        model, _, _ = case(torch.float32)
        opt = NGOptimizer(model.parameters(), total_steps=total_steps)

        def train(model, opt, steps):
            for step in steps:
                for p, g in zip(
                    model.parameters(),
                    noise(list(model.parameters()), step),
                    strict=True,
                ):
                    p.grad = g
                opt.step()

        train(model, opt, range(5))
        torch.save(
            {"model": model.state_dict(), "opt": opt.state_dict()},
            tmp_path / "checkpoint.pt",
        )
        saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        resumed, _, _ = case(torch.float32)
        resumed.load_state_dict(saved["model"])
        other = NGOptimizer(resumed.parameters(), total_steps=total_steps)
        other.load_state_dict(saved["opt"])
        twin, third = copy.deepcopy((model, opt))
        for m, o in ((model, opt), (resumed, other), (twin, third)):
            train(m, o, range(5, 12))
        for p, q, r in zip(
            model.parameters(),
            resumed.parameters(),
            twin.parameters(),
            strict=True,
        ):
            assert torch.equal(p, q)
            assert torch.equal(p, r)
            assert all(
                torch.equal(v, other.state[q][k])
                for k, v in opt.state[p].items()
            )


class TestOddParameters:
    def step(self, params, steps=40):
        before = [p.detach().clone() for p in params]
        opt = NGOptimizer(params)
        for step in range(steps):
            pairs = [
                torch.view_as_real(p) if p.is_complex() else p for p in params
            ]
            for p, g in zip(params, noise(pairs, step), strict=True):
                p.grad = torch.view_as_complex(g) if p.is_complex() else g
            opt.step()
        for p, b in zip(params, before, strict=True):
            assert p.isfinite().all()
            assert p.numel() == 0 or not torch.equal(p, b)
        return opt

    @pytest.mark.parametrize(
        "dtype",
        [
            torch.float64,
            torch.float32,
            torch.bfloat16,
            torch.complex64,
            torch.complex128,
        ],
    )
    def test_of_every_shape_and_dtype(self, dtype):
        shapes = [
            (),
            (1,),
            (3,),
            (0, 3),
            (2, 3, 4),
            (2, 1, 2, 2, 2),
            (5, 4),
            (1, 1),
        ]
        params = [
            nn.Parameter(torch.randn(s, dtype=dtype))
            for s in shapes
            if dtype.is_floating_point or 0 not in s
        ]
        opt = self.step(params)
        wide = dtype in (torch.float64, torch.complex128)
        assert all(
            record["exp_avg"].dtype
            == (torch.float64 if wide else torch.float32)
            for record in opt.state.values()
        )

    @pytest.mark.parametrize(
        "make", [lambda: nn.Conv1d(3, 4, 5), lambda: nn.Conv3d(2, 3, 2)]
    )
    def test_convolutions_of_other_dimensions(self, make):
        self.step(list(make().parameters()))

    def test_frozen_and_absent_parameters(self):
        model = mlp(3, 4, 2)
        frozen = model[0].weight.requires_grad_(False)
        before = frozen.detach().clone()
        opt = NGOptimizer(model.parameters())
        model(torch.ones(2, 3)).sum().backward()
        opt.step()
        assert torch.equal(frozen, before)
        assert frozen not in opt.state
        opt.zero_grad()
        kept = [p.detach().clone() for p in model.parameters()]
        opt.step()
        assert all(
            torch.equal(p, b)
            for p, b in zip(model.parameters(), kept, strict=True)
        )


PLAIN = LearnedOptimizer(Soap(SoapConfig(step_size=0.02, epsilon=0.0)))


class TestHorizon:
    def slope(self, steps, total_steps=None, scheduler=None):
        """Step sizes of a bias whose gradient is always one, so that its direction is one."""
        p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        opt = NGOptimizer([p], lr=0.5, total_steps=total_steps, weights=PLAIN)
        schedule = None if scheduler is None else scheduler(opt)
        found = []
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            before = p.detach().clone()
            rate = opt.param_groups[0]["lr"]
            opt.step()
            if schedule is not None:
                schedule.step()
            found.append(((before - p.detach())[0].item(), rate))
        return found

    def test_with_one_and_past_it(self):
        with pytest.warns(
            UserWarning, match="step 21 of total_steps=20"
        ) as caught:
            found = self.slope(60, 20)
        assert len(caught) == 1
        expected = [
            0.5 * 0.02 * min(1, (t + 1) / 1.6) * (1 - min(t + 1, 20) / 21)
            for t in range(60)
        ]
        np.testing.assert_allclose(
            [step for step, _ in found], expected, rtol=1e-5
        )

    def test_exactly_to_it_warns_of_nothing(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.slope(20, 20)

    @pytest.mark.parametrize(
        "scheduler",
        [
            lambda opt: torch.optim.lr_scheduler.LambdaLR(
                opt, lambda step: 1 / (1 + step)
            ),
            lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10),
            lambda opt: torch.optim.lr_scheduler.CyclicLR(
                opt, 0.1, 0.7, 3, cycle_momentum=False
            ),
            lambda opt: torch.optim.lr_scheduler.OneCycleLR(
                opt, 1.0, total_steps=12, cycle_momentum=False
            ),
        ],
        ids=["lambda", "cosine", "cyclic", "one cycle"],
    )
    @pytest.mark.parametrize("total_steps", [None, 10])
    def test_a_scheduler_replaces_the_schedule(self, scheduler, total_steps):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = self.slope(10, total_steps, scheduler)
        assert len({rate for _, rate in found}) > 3
        np.testing.assert_allclose(
            [step for step, _ in found],
            [0.02 * rate for _, rate in found],
            rtol=1e-5,
        )


class TestAverages:
    def trained(self, steps=8, **settings):
        p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        opt = NGOptimizer([p], **settings)
        average = torch.zeros(2, dtype=torch.float64)
        for step in range(steps):
            p.grad = torch.randn(
                2, generator=torch.Generator().manual_seed(step)
            ).double()
            opt.step()
            share = 11 / (step + 11)
            average = (1 - share) * average + share * p.detach()
        return p, opt, average

    def test_within_and_for_good(self):
        p, opt, average = self.trained()
        last = p.detach().clone()
        assert (average - last).abs().max() > 1e-4
        with opt.averaged():
            torch.testing.assert_close(p.detach(), average)
        assert torch.equal(p, last)
        with pytest.raises(RuntimeError, match="within"), opt.averaged():
            raise RuntimeError("within")
        assert torch.equal(p, last)
        opt.load_average()
        torch.testing.assert_close(p.detach(), average)

    def test_evaluating_in_between_changes_no_training(self):
        (p, opt, _), (q, other, _) = self.trained(), self.trained()
        with opt.averaged():
            pass
        for x, o in ((p, opt), (q, other)):
            x.grad = torch.ones_like(x)
            o.step()
        assert torch.equal(p, q)
        assert torch.equal(opt.state[p]["average"], other.state[q]["average"])

    def test_with_a_horizon_nothing_is_averaged(self):
        p, opt, _ = self.trained(total_steps=8)
        last = p.detach().clone()
        with opt.averaged():
            assert torch.equal(p, last)
        opt.load_average()
        assert torch.equal(p, last)
        assert "average" not in opt.state[p]

    def test_before_the_first_step_and_of_complex_and_half_ones(self):
        params = [
            nn.Parameter(torch.ones(2, dtype=d))
            for d in (torch.complex64, torch.bfloat16)
        ]
        opt = NGOptimizer(params)
        with opt.averaged():
            assert all(torch.equal(p, torch.ones_like(p)) for p in params)
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            opt.step()
        last = [p.detach().clone() for p in params]
        with opt.averaged():
            for p in params:
                real = (
                    torch.view_as_real(p.detach())
                    if p.is_complex()
                    else p.detach()
                )
                assert torch.equal(real, opt.state[p]["average"].to(real.dtype))
        assert all(torch.equal(p, b) for p, b in zip(params, last, strict=True))
