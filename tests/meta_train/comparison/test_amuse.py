"""AMUSE: three sequences of weights, of which parameters hold one."""

import copy

import torch
from torch import nn

from meta_train.comparison.amuse import Amuse
from ngopt.newton_schulz import orthogonalized

WARMUP, STEPS, LR = 3, 12, 0.01


def start() -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))


def gradient(y: torch.Tensor) -> torch.Tensor:
    target = torch.linspace(-1, 1, 4)
    return y - target


def train(optimizer: Amuse, p: nn.Parameter, steps: int) -> None:
    for _ in range(steps):
        p.grad = gradient(p.detach())
        optimizer.step()


def test_sequences_equal_the_papers():
    p = start()
    x, z = p.detach().clone(), p.detach().clone()
    momentum, rates, weight, share_at_warmup = torch.zeros_like(x), 0.0, 0.6, 1.0
    for t in range(1, STEPS + 1):
        y = (1 - weight) * z + weight * x
        lr = LR * min(1, t / WARMUP)
        rates += lr**2
        share = lr**2 / rates
        momentum = 0.95 * momentum + 0.05 * gradient(y)
        nesterov = 0.05 * gradient(y) + 0.95 * momentum
        direction = orthogonalized(nesterov)
        z = (1 - lr * 0.05) * z - lr * 0.2 * 6**0.5 * direction
        x = (1 - share) * x + share * z
        if t <= WARMUP:
            share_at_warmup = share
        else:
            odds = share / (1 - share) * (1 - share_at_warmup) / share_at_warmup
            weight = 1 - odds**0.8 * (1 - 0.6)
    optimizer = Amuse([p], LR, WARMUP)
    train(optimizer, p, STEPS)
    torch.testing.assert_close(p.detach(), (1 - weight) * z + weight * x)
    optimizer.eval()
    torch.testing.assert_close(p.detach(), x)
    optimizer.train()
    torch.testing.assert_close(p.detach(), (1 - weight) * z + weight * x)
    assert 0.6 < weight < 1


def test_vectors_and_chosen_matrices_have_steps_of_rmsprop():
    vector, table = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(4, 3))
    optimizer = Amuse([vector, table], LR, 1, [table], weight_decay=0)
    for p in (vector, table):
        p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    optimizer.eval()
    for p in (vector, table):
        torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - LR))


def test_a_saved_state_continues_to_the_bit():
    p = start()
    optimizer = Amuse([p], LR, WARMUP)
    train(optimizer, p, 5)
    q = nn.Parameter(p.detach().clone())
    resumed = Amuse([q], LR, WARMUP)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, p, 5)
    train(resumed, q, 5)
    assert torch.equal(p, q)


def test_averages_before_the_first_step_are_the_weights():
    p, measured = start(), start()
    optimizer, measured_first = Amuse([p], LR, WARMUP), Amuse([measured], LR, WARMUP)
    measured_first.eval()
    torch.testing.assert_close(measured.detach(), p.detach(), rtol=0, atol=0)
    train(optimizer, p, STEPS)
    train(measured_first, measured, STEPS)
    torch.testing.assert_close(measured.detach(), p.detach(), rtol=0, atol=0)
