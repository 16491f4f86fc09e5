"""The rule as a whole: against an independent reference in numpy, pure,
and as `NGOptimizer` runs it."""

import copy
import warnings
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.base import soap
from ngopt.base.config import SoapConfig
from ngopt.base.eigenbasis import RenewalSchedule, renewal_positions, renewed
from ngopt.base.soap import Soap
from ngopt.functional import Hyper, update_all
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.networks import CNN_INPUT, cnn, mlp


def gradients(steps, *shape):
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(steps, *shape, generator=generator, dtype=torch.float64)


def constant(count, lr=1.0, weight_decay=0.0):
    return Hyper([lr] * count, [weight_decay] * count)


# Whatever the horizon, the first weights and the way.
PLAIN_STEPS = {"short": 1, "trained_exponent": 0.0, "straight": 1e9}


class Reference:
    """The rule for one matrix (out, in), step by step and in full matrices."""

    def __init__(self, config, rows, columns):
        self.config, self.t = config, 0
        self.m = np.zeros((rows, columns))
        self.v = np.zeros((rows, columns))
        self.size = 0.0
        self.factors = [np.zeros((n, n)) for n in (rows, columns)]
        self.bases = [np.eye(n) for n in (rows, columns)]

    def direction(self, g, due):
        """due: which of both bases are renewed after this step."""
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
            self.renew((0, 1))
        left, right = self.bases
        self.v = c.beta2 * self.v + (1 - c.beta2) * (left.T @ g @ right) ** 2
        damping = c.epsilon**2 * self.size / (1 - 0.95**t)
        ahead = c.beta1 * self.m + (1 - c.beta1) * g
        rotated = left.T @ ahead @ right / (1 - c.beta1 ** (t + 1))
        scaled = rotated / np.sqrt(self.v / (1 - c.beta2**t) + damping)
        self.renew(due)
        self.t = t
        return left @ scaled @ right.T

    def renew(self, due):
        for k in due:
            pair = (torch.tensor(x)[None] for x in (self.factors[k], self.bases[k]))
            self.bases[k] = renewed(*pair)[0].numpy()


def due_at(step, shape, every):
    """Which bases of a matrix are renewed after a step: those of one size in order."""
    counts = {n: shape.count(n) for n in sorted(shape, reverse=True)}
    found = []
    places = renewal_positions(counts)
    for size, some in RenewalSchedule(places, every, torch.device("cpu")).bases_at(
        step
    ):
        found += [k for k in range(2) if shape[k] == size][some]
    return found


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 2, 10])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_a_matrix_is_the_reference(shape, every):
    config = SoapConfig(
        step_size=0.02,
        weight_exponent=0.5,
        output=1.25,
        epsilon=1e-3,
        renew_every=every,
        **PLAIN_STEPS,
    )
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0], bias=False, dtype=torch.float64)
    rule = Soap(config).bind(build_graph(linear), total_steps=40)
    p = linear.weight.detach().clone()
    x = linear.weight.detach().numpy().copy()
    usual, slope = (3 * shape[1]) ** -0.5, 0.0
    gain = 1.25 * min((shape[1] / 64) ** -0.5, 1)
    state = rule.init([p])
    reference = Reference(config, *shape)
    for t, g in enumerate(gradients(30, *shape)):
        settings = constant(1, lr=0.5, weight_decay=2.0)
        (delta,), state = update_all(rule, [g], state, [p], settings)
        s = 0.5 * 0.02 * min(1, (t + 1) / 3.2) * (1 - (t + 1) / 41)
        rms = np.sqrt((x**2).mean())
        slope = slope if t else 1 / max(rms, usual)
        size = max(slope * rms, (slope * rms) ** 0.5) ** 0.5
        decay = s * 2 * 1e-3 / 0.02 * x
        u = reference.direction(g.numpy(), due_at(t, shape, every))
        x = x - s * gain * size * u - decay
        p = p + delta
        np.testing.assert_allclose(p.numpy(), x, rtol=1e-12, atol=1e-12)
    (record,) = state
    assert record["step"] == 30
    exact = {"rtol": 1e-9, "atol": 1e-12}
    for k, name in enumerate(("rows", "channels")):
        factor, basis = record[f"{name}_0"][0], record[f"{name}_basis_0"][0]
        np.testing.assert_allclose(factor.numpy(), reference.factors[k], **exact)
        np.testing.assert_allclose(basis.numpy(), reference.bases[k], **exact)
    second = (1 - config.beta2) * record["exp_avg_sq_0"][0, ..., 0].numpy()
    np.testing.assert_allclose(second, reference.v, **exact)


@torch.no_grad()
@pytest.mark.parametrize("total_steps", [None, 10])
@pytest.mark.parametrize("nesterov", [1.0, 0.0, 0.5])
def test_a_bias_is_adam_by_hand(total_steps, nesterov):
    config = SoapConfig(nesterov=nesterov, bias=0.7, epsilon=1e-3, **PLAIN_STEPS)
    linear = nn.Linear(3, 4, dtype=torch.float64)
    rule = Soap(config).bind(build_graph(linear), total_steps=total_steps)
    params = [p.detach().clone() for p in linear.parameters()]
    x = params[1].numpy().copy()
    state = rule.init(params)
    m, v, size, average = 0.0, 0.0, 0.0, 0.0
    scale = 2.0 ** round(float(gradients(8, 4)[0].square().mean().sqrt().log2()))
    for t, grad in enumerate(gradients(8, 4), start=1):
        grads = [torch.zeros(4, 3, dtype=torch.float64), grad]
        deltas, state = update_all(rule, grads, state, params, constant(2, lr=2.0))
        params = [p + d for p, d in zip(params, deltas, strict=True)]

        g = grad.numpy() / scale
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * g**2
        size = 0.95 * size + 0.05 * (g**2).mean()
        ahead = nesterov * (0.9 * m + 0.1 * g) + (1 - nesterov) * m
        mean_square = size / (1 - 0.95**t)
        after, before = 1 - 0.9 ** (t + 1), 1 - 0.9**t
        weights = nesterov * after + (1 - nesterov) * before
        u = ahead / weights / (v / (1 - 0.95**t) + 1e-6 * mean_square) ** 0.5
        if total_steps is None:
            step_size = 0.01 * min(1, t / 30) / (1 + (t - 1) / 50) ** 0.5
        else:
            step_size = 0.009 * min(1, t / 1) * (1 - t / 11)
        x = x - 2.0 * 0.7 * step_size * u
        np.testing.assert_allclose(params[1].numpy(), x, rtol=1e-10, atol=1e-12)
        share = 11 / (t + 10)
        average = (1 - share) * average + share * x
        if total_steps is None:
            found = state[1]["average"].numpy()
            np.testing.assert_allclose(found, average, rtol=1e-10, atol=1e-12)
        else:
            assert "average" not in state[1]


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
        torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
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
            assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
            again, _ = update_all(
                rule, grads, state, params, constant(9, weight_decay=1.0)
            )
            assert all(torch.equal(a, b) for a, b in zip(deltas, again, strict=True))
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

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
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
                None if p.grad is None else p.grad.clone() for p in model.parameters()
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
            # and sums of squares are 20 times mean squares
            torch.testing.assert_close(opt.state[p], record, rtol=1.3e-6, atol=2e-4)
            assert all(
                v.dtype in (torch.float32, torch.float64) for v in record.values()
            )

    @torch.no_grad()
    @pytest.mark.parametrize("total_steps", [None, 20])
    def test_many_at_once_are_what_each_is_alone(self, total_steps):
        """Parameters do not meet, but for the number of steps of the training, and for
        whether gradients agree, which these networks, not trained, do not follow."""
        shapes = [(4, 6), (6, 4), (4, 6), (5,), (3, 4, 3, 3), (), (7, 2)]
        params = [torch.randn(s, dtype=torch.float64) for s in shapes]
        rules = [Soap().bind(build_graph([p]), total_steps) for p in params]
        layouts = [rule.layouts[0] for rule in rules]
        whole = Soap().bind(build_graph(params), total_steps)
        whole.layouts = layouts
        whole.roles = [rule.roles[0] for rule in rules]
        for rule in (whole, *rules):
            rule.renew_every = 1
        state, alone = (
            whole.init(params),
            [r.init([p]) for r, p in zip(rules, params, strict=True)],
        )
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
        rule, state = Soap().bind(graph, 20), None
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
    @pytest.mark.parametrize("total_steps", [None, 20])
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
            single = training(
                [p[k] for p in stacked], *[[g[k] for g in x] for x in grads]
            )
            for found, expected in zip(chain(*mapped), chain(*single), strict=True):
                torch.testing.assert_close(found[k], expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("total_steps", [None, 20])
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
        ("total_steps", "dtype"), [(None, torch.float32), (20, torch.bfloat16)]
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
        assert opt.param_groups[0]["renew_every"] == 5

    def test_a_late_parameter_alone_in_a_step_knows_how_late_it_is(self):
        """The schedule goes by the training's steps also where the older parameters are
        absent."""
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
                torch.equal(v, other.state[q][k]) for k, v in opt.state[p].items()
            )


class TestOddParameters:
    def step(self, params, steps=40):
        before = [p.detach().clone() for p in params]
        opt = NGOptimizer(params)
        for step in range(steps):
            pairs = [torch.view_as_real(p) if p.is_complex() else p for p in params]
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
            record["exp_avg_0"].dtype == (torch.float64 if wide else torch.float32)
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
            torch.equal(p, b) for p, b in zip(model.parameters(), kept, strict=True)
        )


PLAIN = LearnedOptimizer(Soap(SoapConfig(step_size=0.02, epsilon=0.0, **PLAIN_STEPS)))


class TestHorizon:
    def slope(self, steps, total_steps=None, scheduler=None):
        """Step sizes of a bias whose gradient is always one, so that its direction
        is one."""
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
        with pytest.warns(UserWarning, match="step 21 of total_steps=20") as caught:
            found = self.slope(60, 20)
        assert len(caught) == 1
        expected = [
            0.5 * 0.02 * min(1, (t + 1) / 1.6) * (1 - min(t + 1, 20) / 21)
            for t in range(60)
        ]
        np.testing.assert_allclose([step for step, _ in found], expected, rtol=1e-5)

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
                real = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
                assert torch.equal(real, opt.state[p]["average"].to(real.dtype))
        assert all(torch.equal(p, b) for p, b in zip(params, last, strict=True))


class TestCudaGraphs:
    """Capture is emulated: the device computes what the host knows otherwise."""

    def steps(self, captured_from, monkeypatch, total_steps=None, **settings):
        """Weights and state after steps, those from a number on as in a CUDA graph."""
        torch.manual_seed(0)
        model = cnn().double()
        params = list(model.parameters())
        opt = NGOptimizer(params, total_steps=total_steps, **settings)
        for step in range(30):
            is_captured = step >= captured_from
            monkeypatch.setattr(
                soap.devices, "is_capturing", lambda _, x=is_captured: x
            )
            monkeypatch.setattr(
                soap.devices, "is_host", lambda _, x=captured_from > 30: x
            )
            for p, g in zip(params, noise(params, step), strict=True):
                p.grad = g
            opt.step()
        return params, opt

    @pytest.mark.parametrize("total_steps", [None, 40])
    @pytest.mark.parametrize("every", [1, 3])
    def test_steps_are_those_of_the_host(self, monkeypatch, total_steps, every):
        settings = {"total_steps": total_steps, "renew_every": every}
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


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_exchanged_groups_of_a_convolution_have_exchanged_steps(groups):
    """Also where the matrix of a group does not fill its rows of a bucket."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, groups=groups, bias=False).double()
    other = copy.deepcopy(conv)
    order = torch.arange(8).unflatten(0, (groups, -1)).roll(1, 0).flatten()
    with torch.no_grad():
        other.weight.copy_(conv.weight[order])
    example = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    optimizers = []
    for layer in (conv, other):
        graph = build_graph(layer, example)
        optimizers.append(NGOptimizer(layer.parameters(), graph=graph, total_steps=9))
    for _ in range(4):
        conv.weight.grad = torch.randn_like(conv.weight)
        other.weight.grad = conv.weight.grad[order]
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(other.weight, conv.weight[order])
