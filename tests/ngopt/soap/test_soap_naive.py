"""The default against two other implementations of SOAP: naive code and heavyball."""

import numpy as np
import pytest
import torch
from torch import nn

from ngopt import NGOptimizer
from ngopt.soap.config import SoapConfig

TOTAL_STEPS = 1000
# Large singular values that differ, for eigenbases that are near the identity.
DIAGONAL = np.diag([4.0, 2.0, 1.0, 0.5])[:, :3]


def naive_soap(weights, gradients):
    """Weights after each step of docs/default.md on one matrix, by QR.

    What it leaves out has no effect here: these weights have no large singular values,
    are at least as large as PyTorch's, and have few inputs; three steps are no straight
    path; no gradient is clipped; the horizon is not short.
    """
    beta1, beta2, beta_factor, epsilon = 0.9, 0.95, 0.95, 1e-4
    w, initial_rms = weights.copy(), np.sqrt((weights**2).mean())
    left, right = (np.zeros((n, n)) for n in w.shape)
    q_left, q_right = np.eye(len(left)), np.eye(len(right))
    m, v, mean_square = np.zeros(w.shape), np.zeros(w.shape), 0.0
    for t, g in enumerate(gradients, start=1):
        left = beta_factor * left + (1 - beta_factor) * g @ g.T
        right = beta_factor * right + (1 - beta_factor) * g.T @ g
        m = beta1 * m + (1 - beta1) * g
        mean_square = 0.95 * mean_square + 0.05 * (g**2).mean()
        if t == 1:
            q_left, q_right = nearer(left, q_left), nearer(right, q_right)
        v = beta2 * v + (1 - beta2) * (q_left.T @ g @ q_right) ** 2
        nesterov = (beta1 * m + (1 - beta1) * g) / (1 - beta1 ** (t + 1))
        damping = epsilon**2 * mean_square / (1 - 0.95**t)
        root = np.sqrt(v / (1 - beta2**t) + damping)
        u = q_left @ ((q_left.T @ nesterov @ q_right) / root) @ q_right.T
        schedule = t / (0.08 * TOTAL_STEPS) * (1 - t / (TOTAL_STEPS + 1))
        size = np.sqrt((w**2).mean()) / initial_rms
        w = w - 0.009 * schedule * (size * u + 0.05 * w)
        q_left, q_right = nearer(left, q_left), nearer(right, q_right)
        yield w


def nearer(factor, basis):
    """A step of orthogonal iteration; small eigenvalues are raised (`LIFT`)."""
    lift = 1e-3 * np.diag(basis.T @ factor @ basis).max()
    q, r = np.linalg.qr(factor @ basis + lift * basis)
    return q * np.sign(np.diag(r))


@pytest.mark.parametrize("size", [1e-3, 1e-4])
def test_three_steps_are_those_of_a_naive_soap(size):
    """Gradients are diagonal but for elements of a size; angles of bases are
    proportional to it.

    `renewed` agrees with QR up to squares of these angles. These change the rotated
    elements off the diagonal, which are of this size, by a share of about this size.
    Adam divides them by their own size. So the largest difference of an update is a
    multiple of the size, in units of its largest element.
    """
    rng = np.random.RandomState(0)
    gradients = [
        DIAGONAL * rng.uniform(0.8, 1.2) + size * rng.standard_normal((4, 3))
        for _ in range(3)
    ]
    weights = 2 * np.linalg.qr(rng.standard_normal((4, 3)))[0]
    linear = nn.Linear(3, 4, bias=False, dtype=torch.float64)
    linear.weight.data.copy_(torch.tensor(weights))
    settings = {"total_steps": TOTAL_STEPS, "precondition_frequency": 1}
    opt = NGOptimizer(linear.parameters(), **settings)
    before = weights
    for g, expected in zip(gradients, naive_soap(weights, gradients), strict=True):
        start = linear.weight.detach().numpy().copy()
        linear.weight.grad = torch.tensor(g)
        opt.step()
        change = linear.weight.detach().numpy() - start
        difference = change - (expected - before)
        assert np.abs(difference).max() < 20 * size * np.abs(change).max()
        before = expected


def test_directions_are_those_of_heavyball(monkeypatch):
    """First the gradients have common singular vectors, to which the bases of both
    converge. Then three gradients are random. Both have the same basis for the first of
    them; for others bases differ by squares of angles of about .05, the weight of a
    gradient in the factors.
    """
    heavyball = pytest.importorskip("heavyball")
    monkeypatch.setattr(heavyball.utils, "compile_mode", None)
    rng = np.random.RandomState(0)
    left = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    right = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    sizes = np.array([8.0, 4.0, 2.0, 1.0])
    gradients = []
    for _ in range(200):
        values = sizes * rng.uniform(0.5, 1.5, 4) * rng.choice([-1, 1], 4)
        gradients.append(left[:, :4] @ np.diag(values) @ right.T)
    gradients += [3 * rng.standard_normal((5, 4)) for _ in range(3)]
    config = SoapConfig(nesterov=0.0, epsilon=1e-3)
    models = [nn.Linear(4, 5, bias=False) for _ in range(2)]
    settings = {"weight_decay": 0.0, "precondition_frequency": 1}
    ours = NGOptimizer(models[0].parameters(), rule=config, **settings)
    theirs = heavyball.SOAP(models[1].parameters(), lr=1e-3, eps=1e-3, **settings)
    cosines = []
    for g in gradients:
        directions = []
        for model, opt in zip(models, (ours, theirs), strict=True):
            before = model.weight.detach().clone()
            model.weight.grad = torch.tensor(g, dtype=torch.float32)
            opt.step()
            directions.append((model.weight.detach() - before).flatten())
        cosines.append(torch.cosine_similarity(*directions, dim=0).item())
    assert min(cosines[-4:-2]) > 1 - 1e-4
    assert min(cosines[-2:]) > 0.999
