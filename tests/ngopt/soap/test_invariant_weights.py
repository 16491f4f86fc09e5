"""Weights whose scale has no effect, as a norm follows: relative steps count."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ngopt import NGOptimizer
from tests.ngopt.soap.test_cancelled import Normed


def trained(scale, steps, model=None):
    """A network whose first weights are some times those of PyTorch, and its run."""
    torch.manual_seed(0)
    model = model or Normed()
    with torch.no_grad():
        model.cancelled.weight.mul_(scale)
    opt = NGOptimizer(model.named_parameters(), total_steps=1000)
    start = [w.detach().clone() for w in (model.cancelled.weight, model.other.weight)]
    for _ in range(steps):
        x = torch.randn(32, 1, 6, 6)
        opt.zero_grad()
        cross_entropy(model(x), (x.sum((1, 2, 3)) > 0).long()).backward()
        opt.step()
    return model, opt.state, start


def test_first_changes_are_relative_before_a_norm_alone():
    relative, others = [], []
    for scale in (1.5, 4, 6.5):
        model, _, (before, other) = trained(scale, 1)
        change = model.cancelled.weight.detach() - before
        relative.append(change.norm().item() / before.norm().item())
        others.append((model.other.weight.detach() - other).norm().item())
    assert relative == pytest.approx([relative[0]] * 3, rel=0.01)
    assert others == pytest.approx([others[0]] * 3, rel=0.01)


@pytest.mark.parametrize("steps", [1, 12])
def test_they_are_known_by_their_gradients(steps):
    model, state, _ = trained(6, steps)
    assert state[model.cancelled.weight]["invariant"] == 1
    for p in (model.other.weight, model.other.bias):
        assert state[p]["invariant"] == 0


class Gated(Normed):
    """Nothing but the gate has a gradient in the first step."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.gate * super().forward(x)


def test_a_gradient_of_zero_is_no_evidence():
    slopes = []
    for model in (Normed(), Gated()):
        with torch.no_grad():
            model.other.weight.mul_(6)
        model, state, _ = trained(6, 5, model)
        invariant = state[model.cancelled.weight]["invariant"]
        assert invariant == (not isinstance(model, Gated))
        assert state[model.other.weight]["invariant"] == 0
        slopes.append(state[model.other.weight]["slope"].item())
    ratio = model.other.weight.detach().square().mean() * 3 * 96
    assert slopes[1] == pytest.approx(slopes[0], rel=0.1)
    assert ratio.sqrt() > 5  # by so much its steps would be too long
