import numpy as np
import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.functional import update_all
from ngopt.soap.config import SoapConfig
from ngopt.soap.eigenbasis import RenewalSchedule, renewal_positions, renewed
from ngopt.soap.soap import Soap
from tests.ngopt.soap.test_soap import PLAIN_STEPS, constant


def gradients(steps, *shape):
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(steps, *shape, generator=generator, dtype=torch.float64)


class Reference:
    """The rule for one matrix (out, in), step by step and in full matrices."""

    def __init__(self, config, rows, columns):
        self.config, self.t = config, 0
        self.m = np.zeros((rows, columns))
        self.v = np.zeros((rows, columns))
        self.size = 0.0
        self.factors = [np.zeros((n, n)) for n in (rows, columns)]
        self.bases = [np.eye(n) for n in (rows, columns)]
        self.products = np.zeros(3)
        self.largest = 0.0
        self.next_restraint = 1.0

    def direction(self, g, due):
        """due: which of both bases are renewed after this step."""
        c, t = self.config, self.t + 1
        if t == 1:
            self.scale = 2.0 ** round(np.log2(np.sqrt((g**2).mean())))
        g = g / self.scale
        self.size = 0.95 * self.size + 0.05 * (g**2).mean()
        rms = np.sqrt(self.size / (1 - 0.95**t))
        self.largest = max(self.largest, rms)
        self.restraint = max(self.next_restraint, rms / self.largest)
        before = self.m
        self.m = c.beta1 * self.m + (1 - c.beta1) * g
        for k, product in enumerate((g @ g.T, g.T @ g)):
            kept = c.beta_factor * self.factors[k]
            self.factors[k] = kept + (1 - c.beta_factor) * product
        if t == 1:
            self.renew((0, 1))
        left, right = self.bases
        self.v = c.beta2 * self.v + (1 - c.beta2) * (left.T @ g @ right) ** 2
        damping = c.epsilon**2 * self.size / (1 - 0.95**t)
        ahead = c.beta1 * self.m + (1 - c.beta1) * g
        rotated = left.T @ ahead @ right / (1 - c.beta1 ** (t + 1))
        scaled = rotated / np.sqrt(self.v / (1 - c.beta2**t) + damping)
        share = 0.1 * c.nesterov
        correction = (1 - c.beta1**t) * (1 - share) + share
        root = np.sqrt(self.v / (1 - c.beta2**t) + damping) * correction
        pair = [(left.T @ x @ right / root).ravel() for x in (g, before)]
        self.remember(*pair)
        self.renew(due)
        self.t = t
        return left @ scaled @ right.T

    def remember(self, g, m):
        """The step after this one is shorter if g is opposite to m."""
        self.products = 0.8 * self.products + np.array([g @ g, g @ m, m @ m])
        gg, gm, mm = self.products
        least = 0.2 + 2 / 3 / np.sqrt(self.m.size)
        undone = (-gm / np.sqrt(gg * mm) - least) / 0.8 if self.t else 0
        self.next_restraint = self.restraint * np.exp(-0.05 * max(undone, 0))

    def renew(self, due):
        for k in due:
            pair = (torch.tensor(x)[None] for x in (self.factors[k], self.bases[k]))
            self.bases[k] = renewed(*pair)[0].numpy()


def due_at(step, shape, every):
    """Which bases of a matrix are renewed after a step: those of one size in order."""
    counts = {n: shape.count(n) for n in sorted(shape, reverse=True)}
    found = []
    places = renewal_positions(counts)
    for size, indices, _ in RenewalSchedule(places, every).at(step):
        found += [k for k in range(2) if shape[k] == size][indices]
    return found


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 2, 10])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_a_matrix_is_the_reference(shape, every):
    sizes = {"step_size": 0.02, "weight_exponent": 0.5, "output": 1.25}
    settings = {"epsilon": 1e-3, "precondition_frequency": every}
    config = SoapConfig(**sizes, **settings, **PLAIN_STEPS)
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
@pytest.mark.parametrize("nesterov", [1.0, 0.0])
def test_steps_that_undo_each_other_become_shorter(nesterov):
    shape = 5, 3
    config = SoapConfig(**PLAIN_STEPS, nesterov=nesterov, precondition_frequency=1)
    linear = nn.Linear(3, 5, bias=False, dtype=torch.float64)
    rule = Soap(config).bind(build_graph(linear), total_steps=1000)
    params = [linear.weight.detach()]
    state, reference = rule.init(params), Reference(config, *shape)
    for t, noise in enumerate(gradients(60, *shape)):
        turn = torch.from_numpy(reference.m)
        g = noise if t == 0 else 0.2 * noise - 3 * turn / turn.square().mean().sqrt()
        g = g * 0.93**t  # as in a fit
        _, state = update_all(rule, [g], state, params, constant(1))
        reference.direction(g.numpy(), due_at(t, shape, 1))
        expected = reference.restraint
        assert state[0]["restraint"].item() == pytest.approx(expected, rel=1e-9)
    assert 0.1 < reference.restraint < 0.8


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
            step_size = 0.009 * (1 - t / 11)
        x = x - 2.0 * 0.7 * step_size * u
        np.testing.assert_allclose(params[1].numpy(), x, rtol=1e-10, atol=1e-12)
        share = 11 / (t + 10)
        average = (1 - share) * average + share * x
        if total_steps is None:
            found = state[1]["average"].numpy()
            np.testing.assert_allclose(found, average, rtol=1e-10, atol=1e-12)
        else:
            assert "average" not in state[1]
