"""The default in unusual use: no gradient, gradients that are not finite, losses of any
size."""

from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ngopt import NGOptimizer
from ngopt.schedule import average_weight
from ngopt.soap.config import SoapConfig
from tests.networks import mlp

# are forgotten, and those of a bias are added to its matrix
PRODUCTS = {"gradient_square", "product", "direction_square"}
COUNTS = {"step", "skipped"}
STEPS = 60  # of runs with other scales of the loss


def classes(seed, size, shape=(16,)):
    """Inputs with ten noisy prototypes, and which of them they are."""
    prototypes = torch.randn(10, *shape, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (size,), generator=generator)
    noise = torch.randn(size, *shape, generator=generator)
    return prototypes[labels] + 1.8 * noise, labels


def loss_of(model, seed, size=32, shape=(16,)):
    inputs, labels = classes(seed, size, shape)
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(inputs.to(dtype)), labels)


def train_step(model, opt, seed, size=32, shape=(16,), scale=1.0):
    """The loss of a step, without the scale that it is multiplied by."""
    loss = loss_of(model, seed, size, shape)
    opt.zero_grad()
    (loss * scale).backward()
    opt.step()
    return loss.item()


def small_mlp():
    torch.manual_seed(0)
    return mlp(16, 32, 32, 10)


def small_cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


SHAPES = {small_mlp: (16,), small_cnn: (1, 7, 7)}


def train(make, steps, scales=None, dtype=torch.float32, shape=None, **settings):
    """Losses of every step, without the scales that they are multiplied by."""
    model = make().to(dtype)
    opt = NGOptimizer(model.parameters(), **settings)
    shape = shape or SHAPES[make]
    scales = scales or [1.0] * steps
    return [train_step(model, opt, t, 32, shape, x) for t, x in enumerate(scales)]


def distance(a, b):
    return np.abs(np.array(a) / np.array(b) - 1).max()


class TestWithoutGradient:
    """Weights change by weight decay alone, 1 - lr * step size * decay, which is about
    1e-3 a step."""

    def follow(self, params, gradients, steps=40, **settings):
        opt = NGOptimizer(params, **settings)
        for step in range(steps):
            for p, g in zip(params, gradients(step), strict=True):
                p.grad = g
            opt.step()

    def noise(self, *shape, step):
        return torch.randn(shape, generator=torch.Generator().manual_seed(step))

    def only_decayed(self, after, before):
        """Whether all weights were multiplied by one factor, close to 1."""
        factors = after / before
        least, most = factors.min(), factors.max()
        return most <= 1 and least > 0.9 and most - least < 2e-5

    @pytest.mark.parametrize("total_steps", [None, 40])
    def test_a_tensor(self, total_steps):
        shapes = (5, 4), (5,), (3, 2, 3, 3), ()
        params = [nn.Parameter(self.noise(*shape, step=-1)) for shape in shapes]
        before = [p.detach().clone() for p in params]
        zeros = [torch.zeros_like(p) for p in params]
        self.follow(params, lambda step: zeros, total_steps=total_steps)
        for p, b in zip(params, before, strict=True):
            assert self.only_decayed(p.detach(), b)
        assert torch.equal(params[1], before[1])  # a bias has no decay

    def test_elements_and_rows(self):
        """Of a matrix that trains; whatever the eigenbases do."""
        params = [self.noise(12, 9, step=-1), self.noise(12, step=-2)]
        params = [nn.Parameter(p) for p in params]
        idle = torch.zeros(12, 9, dtype=torch.bool)
        idle[3] = idle[:, 5] = idle[7, 2] = True
        before = [p.detach().clone() for p in params]

        def gradients(step):
            bias = self.noise(12, step=step)
            bias[4] = 0
            return [self.noise(12, 9, step=step).masked_fill(idle, 0), bias]

        self.follow(params, gradients)
        assert self.only_decayed(params[0].detach()[idle], before[0][idle])
        assert params[1][4] == before[1][4]
        moved = (params[0] - before[0]).abs()[~idle]
        assert moved.min() > 0 and moved.mean() > 0.02

    def test_padding_and_unused_rows_of_an_embedding(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Embedding(20, 6, padding_idx=0), nn.Flatten(), nn.Linear(24, 5)
        )
        before = model[0].weight.detach().clone()
        opt = NGOptimizer(model.parameters(), model=model)
        for seed in range(60):
            generator = torch.Generator().manual_seed(seed)
            tokens = torch.randint(12, (8, 4), generator=generator)
            F.cross_entropy(model(tokens), tokens[:, 0] % 5).backward()
            opt.step()
            opt.zero_grad()
        table = model[0].weight.detach()
        assert torch.equal(table[0], before[0])  # it is zero
        assert self.only_decayed(table[12:], before[12:])
        assert (table[1:12] - before[1:12]).abs().mean() > 0.05

    def test_dead_units(self):
        model = small_mlp()
        dead = [2, 7, 30]
        with torch.no_grad():
            model[0].bias[dead] = -1e4
        opt = NGOptimizer(model.parameters(), model=model)
        into = model[0].weight.detach().clone()
        out_of = model[2].weight.detach().clone()
        for seed in range(60):
            train_step(model, opt, seed)
        assert self.only_decayed(model[0].weight.detach()[dead], into[dead])
        assert self.only_decayed(model[2].weight.detach()[:, dead], out_of[:, dead])
        assert (model[0].bias[dead] == -1e4).all()

    def test_rows_without_further_gradients_stop(self):
        """Momentum, which moves them, decays within a hundred steps."""
        p = nn.Parameter(self.noise(12, 9, step=-1))
        opt = NGOptimizer([p], total_steps=100_000)
        for step in range(400):
            p.grad = self.noise(12, 9, step=step)
            if step >= 200:
                p.grad[3] = 0
            if step == 300:
                before = p.detach().clone()
            opt.step()
        shares = (p.detach() * before).sum(1) / before.square().sum(1)  # that are left
        moved = (p.detach() - shares[:, None] * before).square().mean(1).sqrt()
        assert moved[3] < 0.03 * moved[torch.arange(12) != 3].mean()


class TestScaleOfTheLoss:
    """Rounding of gradients differs unless factors are powers of two; training
    amplifies that."""

    @pytest.mark.parametrize("make", [small_mlp, small_cnn])
    @pytest.mark.parametrize("total_steps", [None, STEPS])
    def test_powers_of_two_change_no_bit(self, make, total_steps):
        expected = train(make, STEPS, total_steps=total_steps)
        assert np.mean(expected[-20:]) < 0.5 * expected[0]
        for factor in (2.0**-20, 2.0**20):
            scaled = train(make, STEPS, [factor] * STEPS, total_steps=total_steps)
            assert scaled == expected

    @pytest.mark.parametrize("make", [small_mlp, small_cnn])
    @pytest.mark.parametrize("total_steps", [None, STEPS])
    def test_other_factors_change_rounding_alone(self, make, total_steps):
        run = partial(train, make, STEPS, total_steps=total_steps)
        exact, expected = run(dtype=torch.float64), run()
        for factor in (1e-6, 1e6):
            scaled = partial(run, [factor] * STEPS)
            assert distance(scaled(dtype=torch.float64), exact) < 1e-3, factor
            losses = scaled()
            assert distance(losses[:8], expected[:8]) < 1e-3, factor
            end = pytest.approx(np.mean(expected[-20:]), rel=0.1)
            assert np.mean(losses[-20:]) == end

    @pytest.mark.parametrize("make", [small_mlp, small_cnn])
    @pytest.mark.parametrize("at", [0, 1, 2, 5, 40])
    @pytest.mark.parametrize("size", [1e3, 1e6])
    def test_one_step_of_a_huge_loss(self, make, at, size):
        assert self.spiked(make, at, size) < 1.5 * self.spiked(make, at, 1.0)

    @staticmethod
    @cache
    def spiked(make, at, size):
        """The held-out loss after 31 more steps than until the huge loss."""
        model, shape = make(), SHAPES[make]
        scales = [size if t == at else 1.0 for t in range(at + 31)]
        train(lambda: model, at + 31, scales, shape=shape)
        return loss_of(model.eval(), 10**6, 2000, shape).item()


class TestGradientsThatAreNotFinite:
    def steps(self, model, opt, seeds):
        for seed in seeds:
            train_step(model, opt, seed, size=8)

    @pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("before", [0, 1, 2, 12])
    @pytest.mark.parametrize("name", ["2.weight", "2.bias"])
    def test_the_step_of_that_tensor_alone_is_skipped(self, odd, before, name):
        model, twin = small_mlp(), small_mlp()
        opt = NGOptimizer(model.parameters())
        other = NGOptimizer(twin.parameters())
        for m, o in ((model, opt), (twin, other)):
            self.steps(m, o, range(before))
            o.zero_grad()
            loss_of(m, 50, 8).backward()
        value = model.get_parameter(name).detach().clone()
        state = {k: v.clone() for k, v in opt.state[model.get_parameter(name)].items()}
        model.get_parameter(name).grad.view(-1)[3] = odd
        opt.step()
        other.step()
        for key, p in model.named_parameters():
            if key == name:
                continue
            assert torch.equal(p, twin.get_parameter(key))
            pair = opt.state[p], other.state[twin.get_parameter(key)]
            kept = pair[0].keys() - PRODUCTS
            assert all(torch.equal(pair[0][k], pair[1][k]) for k in kept)
            assert pair[0]["skipped"] == 0
        p = model.get_parameter(name)
        assert torch.equal(p, value)
        after = opt.state[p]
        assert (after["step"], after["skipped"]) == (before + 1, 1)
        # the average includes the weights once more
        weight = average_weight(before, SoapConfig().average_power)
        average = state.get("average", value)
        near = average + weight * (value - average)
        torch.testing.assert_close(after["average"], near)
        # agreement is the network's, from the gradients before this one
        kept = state.keys() - COUNTS - PRODUCTS - {"average", "agreement"}
        assert not {k for k in kept if not torch.equal(state[k], after[k])}
        self.steps(model, opt, range(60, 80))
        assert after["skipped"] == 1
        assert all(p.isfinite().all() for p in model.parameters())

    def test_a_bad_first_step_does_not_slow_training(self):
        losses = {}
        for bad in (False, True):
            model = small_mlp()
            opt = NGOptimizer(model.parameters())
            if bad:
                for p in model.parameters():
                    p.grad = torch.full_like(p, float("nan"))
                opt.step()
            self.steps(model, opt, range(80))
            losses[bad] = loss_of(model, 1000, 200).item()
        assert losses[True] < 1.2 * losses[False]

    @pytest.mark.parametrize("total_steps", [None, 50])
    def test_the_largest_numbers_with_alternating_signs(self, total_steps):
        shapes = ((6, 5), (6,), (4, 3, 3, 3), ())
        params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        opt = NGOptimizer(params, total_steps=total_steps)
        for step in range(30):
            for p in params:
                p.grad = torch.full_like(p, 3e38 if step % 2 else -3e38)
            opt.step()
        for p in params:
            assert p.isfinite().all()
            assert all(v.isfinite().all() for v in opt.state[p].values())
            assert not torch.equal(p, torch.ones_like(p))
        for p in params:
            p.grad = torch.full_like(p, 1e-3)
        opt.step()
        assert all(p.isfinite().all() for p in params)

    def test_the_largest_numbers_after_ordinary_ones(self):
        model = small_mlp()
        opt = NGOptimizer(model.parameters())
        self.steps(model, opt, range(20))
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.where(torch.rand_like(p) < 0.5, 3e38, -3e38)
        opt.step()
        for p, b in zip(model.parameters(), before, strict=True):
            assert p.isfinite().all()
            assert (p - b).abs().max() < 0.5
