"""Adam and Muon as update rules."""

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer
from ngopt.specialized.first_order import FirstOrder

STEPS = 12


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
    ).double()


def trained(optimizer_of, steps: int = STEPS) -> list[torch.Tensor]:
    model = network()
    optimizer = optimizer_of(model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, 3, generator=generator).double()
        optimizer.zero_grad()
        (model(x) - x[:, :2].square()).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def with_rule(rule: FirstOrder, **options):
    return lambda model: NGOptimizer(model.parameters(), rule=rule, **options)


def test_adam_without_a_horizon_equals_torchs():
    rule = FirstOrder(lr=0.01, beta1=0.8, beta2=0.99)
    ours = trained(with_rule(rule, weight_decay=0.1))

    def adamw(model: nn.Module) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            model.parameters(), 0.01, (0.8, 0.99), weight_decay=0.1
        )

    for p, q in zip(ours, trained(adamw), strict=True):
        torch.testing.assert_close(p, q)


def test_muon_trains_matrices_and_adam_vectors_and_outputs():
    before = [p.detach() for p in network().parameters()]
    after = trained(with_rule(FirstOrder(uses_muon=True, lr=0.01)), steps=1)
    for i in (0, 2):
        # Newton-Schulz iterations bring singular values, but for tiny ones, near 1
        update = (after[i] - before[i]) / (0.01 * 0.2 * 8**0.5)
        values = torch.linalg.svdvals(update)
        assert values.median() > 0.6 and values.max() < 1.3
    for i in (1, 3, 4, 5):  # the first step of Adam has one size
        change = (after[i] - before[i]).abs()
        assert change.min() > 0.00999 and change.max() < 0.01001


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_last_steps_are_short(schedule):
    rule = FirstOrder(lr=0.01, schedule=schedule)
    optimizer_of = with_rule(rule, total_steps=STEPS)
    before, last = trained(optimizer_of, STEPS - 1), trained(optimizer_of)
    for p, q in zip(before, last, strict=True):
        assert (p - q).abs().max() < 0.01 / STEPS


def test_another_schedule_is_an_error():
    with pytest.raises(ValueError, match="expected a schedule of constant, linear"):
        FirstOrder(schedule="step")
