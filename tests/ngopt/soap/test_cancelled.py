"""Biases that the network cancels: rounding is all that their gradients are."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from ngopt import NGOptimizer


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cancelled, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.other = nn.Linear(6 * 16, 3)

    def forward(self, x):
        return self.other(torch.relu(self.norm(self.cancelled(x))).flatten(1))


class Attention(nn.Module):
    """Softmax cancels what all keys have in common."""

    def __init__(self):
        super().__init__()
        self.cancelled, self.query, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.other = nn.Linear(36, 3)

    def forward(self, x):
        x = x.squeeze(1)
        given = self.query(x), self.cancelled(x), self.value(x)
        return self.other(scaled_dot_product_attention(*given).flatten(1))


@pytest.mark.parametrize("kind", [Normed, Attention])
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 0.05), (torch.float64, 1e-9)]
)
@pytest.mark.parametrize("is_traced", [False, True])
def test_they_rest(kind, dtype, most, is_traced):
    torch.manual_seed(0)
    model = kind().to(dtype)
    opt = NGOptimizer(model.named_parameters(), model=model if is_traced else None)
    biases = model.cancelled.bias, model.other.bias
    before = [bias.detach().clone() for bias in biases]
    for _ in range(20):
        x = torch.randn(32, 1, 6, 6, dtype=dtype)
        opt.zero_grad()
        cross_entropy(model(x), (x.sum((1, 2, 3)) > 0).long()).backward()
        opt.step()
    cancelled, other = (p - old for p, old in zip(biases, before, strict=True))
    assert cancelled.norm() < most * other.norm()
