"""The best rule for a family: members, search, evolution, gate."""

import sys
import types

import pytest
import torch
from torch import nn

from meta_train.specialize import run as program
from meta_train.specialize.evolution import Evolution
from meta_train.specialize.family import Family, load_family, log_losses
from meta_train.specialize.hand_rules import KINDS, rules_of_search, tuned
from meta_train.specialize.report import Level, chosen, gain, steps_to
from meta_train.specialize.run import Settings, run
from ngopt import NGOptimizer, load_pretrained
from ngopt.soap.soap import Soap
from ngopt.specialized.first_order import FirstOrder

HORIZONS = 8, 20
RULES = {
    "default": Soap(),
    "Adam": FirstOrder(lr=0.01),
    "Muon": FirstOrder(uses_muon=True, lr=0.01),
}


class Noise(nn.Module):
    """Whose output vmap cannot compute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0 * x.detach().abs().max().item()


def member(seed: int) -> tuple:
    """A regression on two batches in turn."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 1))
    batches = [torch.randn(16, 3), torch.randn(16, 3)]
    return model, batches, loss


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - x.prod(1, keepdim=True)).square().mean() + 1e-6


def unstacked(seed: int) -> tuple:
    model, batches, function = member(seed)
    return nn.Sequential(model, Noise()), batches, function


@pytest.fixture
def module(monkeypatch):
    module = types.ModuleType("my_family")
    module.member = member
    monkeypatch.setitem(sys.modules, "my_family", module)
    return module


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("has_feedback", [False, True])
def test_stacked_runs_equal_single_ones(name, has_feedback):
    family, count = Family("f", member), 6
    evolution = Evolution.start(count, has_feedback)
    draw = torch.Generator().manual_seed(0)
    rows = 0.3 * torch.randn(4, len(evolution.mean), generator=draw)
    seeds = [0, 1, 0, 2]
    rates = evolution.rates(rows, HORIZONS)
    stacked = log_losses(family, seeds, RULES[name], 10, rates)
    assert family.stacks
    assert len(set(stacked.tolist())) == 4
    family.stacks = False
    single = log_losses(family, seeds, RULES[name], 10, rates)
    torch.testing.assert_close(stacked, single, rtol=1e-3, atol=1e-4)


def test_a_run_equals_that_of_the_optimizer():
    model, batches, function = Family("f", member).member(3)
    losses = log_losses(Family("f", member), [3], Soap(), 10)
    optimizer = NGOptimizer(model.named_parameters(), total_steps=10)
    for step in range(10):
        optimizer.zero_grad()
        value = function(model, batches[step % 2])
        value.backward()
        optimizer.step()
    assert losses.item() == pytest.approx(value.log().item(), abs=1e-4)


def test_networks_that_do_not_stack_are_trained_one_after_another():
    family = Family("f", unstacked)
    losses = log_losses(family, [0, 1], Soap(), 10)
    assert not family.stacks
    expected = log_losses(Family("f", member), [0, 1], Soap(), 10)
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_positive_is_an_error():
    def negative(seed: int) -> tuple:
        return *member(seed)[:2], lambda model, x: model(x).mean() - 5

    with pytest.raises(ValueError, match="expected positive losses"):
        log_losses(Family("f", negative), [0], Soap(), 10)


def test_a_loss_of_zero_counts_as_a_tiny_one():
    def ending(seed: int) -> tuple:
        model, batches, _ = member(seed)
        before = model[3].bias.detach().clone()

        def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return (model[3].bias - before + 1e-6).clamp(min=0).mean()

        return model, batches, loss_of

    assert log_losses(Family("f", ending), [0], Soap(), 10).item() < -60


def test_batches_that_cannot_be_started_again_are_an_error():
    def once(seed: int) -> tuple:
        model, batches, function = member(seed)
        return model, iter(batches), function

    with pytest.raises(ValueError, match="batches that can be started again"):
        log_losses(Family("f", once), [0], Soap(), 10)


def test_networks_of_other_shapes_are_an_error():
    def growing(seed: int) -> tuple:
        return nn.Linear(3, 1 + seed), [torch.randn(4, 3)], loss

    with pytest.raises(ValueError, match="equal shapes for all seeds; .* for seed 1"):
        log_losses(Family("f", growing), [0, 1], Soap(), 10)


def test_a_loss_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError, match="expected a loss that is one number"):
        Family("vectors", lambda seed: (*member(seed)[:2], lambda model, x: model(x)))


def test_a_module_without_members_is_an_error(module):
    del module.member
    with pytest.raises(ValueError, match=r"expected a function member\(seed\)"):
        load_family("my_family")
    module.member = lambda seed: nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"to return .*; got Linear"):
        load_family("my_family")


def test_an_evolution_starts_from_given_knots():
    knots = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    for has_feedback in (False, True):
        rates = Evolution.start(6, has_feedback, knots).result(HORIZONS, copies=2)
        torch.testing.assert_close(rates.knots, knots.repeat(2, 1, 1))


def test_evolution_makes_steps_that_are_too_short_longer():
    family, rule = Family("f", member), FirstOrder(lr=1e-4)
    evolution = Evolution.start(6, has_feedback=False)
    for i in range(12):
        evolution.step(family, rule, HORIZONS, progress=i / 12)
    assert evolution.result(HORIZONS).knots.mean() > 0.1
    seeds = range(5_000_000, 5_000_016)
    before = log_losses(family, seeds, rule, 15)
    after = log_losses(family, seeds, rule, 15, evolution.result(HORIZONS, 16))
    assert (before - after).mean() > 0


def test_the_search_finds_the_rule_with_the_lowest_loss():
    tried = []

    def loss_of(rule: FirstOrder) -> float:
        tried.append(rule)
        return abs(rule.lr - 0.0133) + abs(rule.beta1 - 0.5) + abs(rule.beta2 - 0.95)

    rule, value, _ = tuned("Adam", loss_of)
    assert (rule.lr, rule.beta1, rule.beta2) == (pytest.approx(0.0133), 0.5, 0.95)
    assert value == pytest.approx(0, abs=1e-3)
    for kind in set(KINDS) - {"Adam"}:
        tuned(kind, lambda rule: tried.append(rule) or 0.0)
    assert len(tried) == rules_of_search()


def losses_of(*means: float) -> dict:
    noise = torch.linspace(-1, 1, 64)
    return {
        f"level {i}": {10: mean + noise, 20: mean - noise}
        for i, mean in enumerate(means)
    }


def test_the_simplest_of_equal_levels_is_kept():
    levels = [Level(f"level {i}", Soap()) for i in range(3)]
    losses = losses_of(0.0, -1.0, -1.0)
    losses["level 2"][10] = losses["level 2"][10] + torch.randn(64)
    assert chosen(levels, losses).name == "level 1"
    assert chosen(levels, losses_of(0.0, -1.0, -2.0)).name == "level 2"
    assert chosen(levels, losses_of(0.0, 1.0, 0.0)).name == "level 0"
    assert gain(losses_of(0.0, -1.0), "level 1", "level 0")[0] == pytest.approx(1)


def test_steps_to_a_loss_lie_between_measured_horizons():
    losses = {10: torch.zeros(2), 20: torch.full((2,), -2.0)}
    assert steps_to(losses, -1.0) == pytest.approx(15)
    assert steps_to(losses, 1.0) == 10
    assert steps_to(losses, -3.0) == float("inf")


def test_a_run_writes_a_rule_and_resumes(module, tmp_path, monkeypatch, capsys):
    for name in ("GATE_SEEDS", "TEST_SEEDS"):
        monkeypatch.setattr(program, name, getattr(program, name)[:8])
    monkeypatch.setattr(program, "SEARCH_MEMBERS", (2, 2))
    settings = Settings("my_family", (8, 12), 0.05, tmp_path)
    path = run(settings)
    printed = capsys.readouterr().out
    assert "default" in printed and "nats below" in printed
    if path is not None:
        rule = load_pretrained(path)
        assert isinstance(rule, Soap | FirstOrder)
        assert rule.multiplier.horizons == (8, 12)
    monkeypatch.setattr(program, "log_losses", None)
    monkeypatch.setattr(program, "measure", None)
    assert run(settings) == path
    assert printed.endswith(capsys.readouterr().out)
    with pytest.raises(ValueError, match="Choose another --folder"):
        run(Settings("my_family", (8, 14), 0.05, tmp_path))
    sys.modules["my_family"].member = lambda seed: (nn.Linear(3, 5), *member(seed)[1:])
    with pytest.raises(ValueError, match="shapes .* Choose another --folder"):
        run(settings)


@pytest.mark.parametrize(("minutes", "members"), [(1e-6, 3), (1e6, 12)])
def test_short_searches_have_fewer_members(minutes, members, tmp_path):
    settings = Settings("my_family", (8, 12), minutes, tmp_path)
    assert program.search_members(Family("family", member), settings) == members


@pytest.mark.parametrize("horizons", [(4, 10), (20, 10)])
def test_horizons_out_of_range_are_an_error(horizons, tmp_path):
    with pytest.raises(ValueError, match="expected horizons of 5 steps or more"):
        Settings("my_family", horizons, 1.0, tmp_path)
