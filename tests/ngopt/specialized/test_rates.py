"""Rates of a rule, for the networks and horizons that they were learned on."""

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, load_pretrained, save_pretrained
from ngopt.cli import describe
from ngopt.functional import UpdateRule
from ngopt.pretrained.weights_file import recipe_and_table
from ngopt.soap.soap import Soap
from ngopt.specialized.first_order import FirstOrder
from ngopt.specialized.rates import FEATURES, BoundRates, Rates
from ngopt.specialized.storage import HandRule

BASES = {
    "default": Soap(),
    "Adam": FirstOrder(lr=0.02),
    "Muon": FirstOrder(uses_muon=True, lr=0.02),
}
STEPS, KNOTS, WIDTH = 20, 3, 4
HORIZONS = 10, 40


def network(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = nn.Linear(width, width)
    return nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), hidden, nn.Tanh(), nn.Linear(width, 1)
    )


SHAPES = tuple(tuple(p.shape) for p in network().parameters())


def random_rates(generator: int = 0) -> Rates:
    draw = torch.Generator().manual_seed(generator)
    knots = 0.3 * torch.randn(len(SHAPES), 2, KNOTS, generator=draw)
    hidden = torch.randn(FEATURES, WIDTH, generator=draw)
    output = 0.1 * torch.randn(WIDTH, 1, generator=draw)
    return Rates(knots, HORIZONS, SHAPES, hidden, output)


def zero_rates() -> Rates:
    rates = random_rates()
    knots, output = torch.zeros_like(rates.knots), torch.zeros(WIDTH, 1)
    return Rates(knots, HORIZONS, SHAPES, rates.hidden, output)


def train(optimizer: NGOptimizer, model: nn.Module, steps: int) -> None:
    x = torch.linspace(-1, 1, 32).view(-1, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - x.prod(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def trained(
    rule: UpdateRule, total_steps: int | None = STEPS, width: int = 8
) -> torch.Tensor:
    model = network(width)
    optimizer = NGOptimizer(model.parameters(), rule=rule, total_steps=total_steps)
    train(optimizer, model, STEPS)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def specialized(base: str, rates: Rates) -> HandRule:
    return replace(BASES[base], multiplier=rates)


@pytest.mark.parametrize("base", BASES)
def test_rates_of_zero_are_the_base_rule_to_the_bit(base):
    rule = specialized(base, zero_rates())
    assert torch.equal(trained(rule), trained(BASES[base]))
    assert not torch.equal(
        trained(specialized(base, random_rates())), trained(BASES[base])
    )


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"total_steps": 50}, "total_steps from 10 to 40; got 50"),
        ({"total_steps": None}, "total_steps from 10 to 40; got None"),
        ({"width": 16}, "parameters of shapes"),
    ],
)
def test_other_runs_have_the_base_rule_and_a_warning(base, options, expected):
    with pytest.warns(UserWarning, match=expected):
        weights = trained(specialized(base, random_rates()), **options)
    assert torch.equal(weights, trained(BASES[base], **options))


@pytest.mark.parametrize("base", BASES)
def test_with_a_scheduler_it_is_the_base_rule_with_a_warning(base):
    def scheduled(rule: UpdateRule) -> torch.Tensor:
        model = network()
        optimizer = NGOptimizer(model.parameters(), rule=rule, total_steps=STEPS)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for _ in range(5):
            train(optimizer, model, 1)
            scheduler.step()
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    with pytest.warns(UserWarning, match="expected its own schedule"):
        weights = scheduled(specialized(base, random_rates()))
    assert torch.equal(weights, scheduled(BASES[base]))


def test_print_shows_whether_rates_are_used():
    def printed(total_steps: int) -> str:
        rule = specialized("Adam", random_rates())
        optimizer = NGOptimizer(
            network().parameters(), rule=rule, total_steps=total_steps
        )
        return repr(optimizer)

    assert "learned rates on that of Adam" in printed(20)
    assert "alone (expected total_steps from 10 to 40; got 50)" in printed(50)


@pytest.mark.parametrize("base", BASES)
def test_a_file_gives_the_same_training(base, tmp_path):
    recipe, table = {"stages": [{"problem": "p"}]}, {"gain": 1.0}
    rule = specialized(base, replace(random_rates(), recipe=recipe, table=table))
    path = tmp_path / "family.safetensors"
    save_pretrained(rule, path)
    loaded = load_pretrained(path)
    assert type(loaded) is type(rule)
    assert recipe_and_table(loaded) == (recipe, table)
    description = describe(str(path))
    assert description["config"]["horizons"] == HORIZONS
    assert json.loads(json.dumps(description))["table"] == table
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(trained(loaded), trained(rule))


@pytest.mark.parametrize("base", BASES)
def test_a_state_dict_continues_to_the_bit(base):
    rule = specialized(base, random_rates())
    model = network()
    optimizer = NGOptimizer(model.parameters(), rule=rule, total_steps=STEPS)
    train(optimizer, model, 7)
    resumed = copy.deepcopy(model)
    other = NGOptimizer(resumed.parameters(), rule=rule, total_steps=STEPS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, model, 7)
    train(other, resumed, 7)
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("base", BASES)
def test_constant_knots_multiply_the_step(base):
    factor = torch.full((len(SHAPES), 2, KNOTS), 2.0).log()
    rule = specialized(base, Rates(factor, HORIZONS))
    changes = []
    for x in (rule, BASES[base]):
        model = network()
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        train(NGOptimizer(model.parameters(), rule=x, total_steps=STEPS), model, 1)
        after = nn.utils.parameters_to_vector(model.parameters()).detach()
        changes.append(after - before)
    torch.testing.assert_close(changes[0], 2 * changes[1], rtol=1e-3, atol=1e-6)


def test_knots_are_joined_by_lines():
    knots = torch.tensor([[[0.0, 1.0, -1.0]] * 2])
    rates = BoundRates(Rates(knots, HORIZONS), 20)
    logarithms = [float(rates(None, t, {}).log()) for t in (0, 0.25, 0.5, 0.75, 1, 2)]
    assert logarithms == pytest.approx([0, 0.5, 1, 0, -1, -1], abs=1e-6)


def test_knots_are_those_of_the_horizon():
    knots = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    rates = Rates(knots, (10, 40))
    assert torch.equal(rates.at(10), knots[:, 0])
    assert torch.equal(rates.at(40), knots[:, 1])
    torch.testing.assert_close(rates.at(20), torch.tensor([[0.5, 1.0]]))
    assert torch.equal(Rates(knots, (10, 10)).at(10), knots[:, 0])


def test_absent_gradients_change_nothing():
    model = network()
    rule = specialized("Adam", random_rates())
    optimizer = NGOptimizer(model.parameters(), rule=rule, total_steps=STEPS)
    model[2].requires_grad_(False)
    before = model[2].weight.clone()
    train(optimizer, model, 2)
    assert torch.equal(model[2].weight, before)
    model[2].requires_grad_(True)
    train(optimizer, model, 2)
    assert model[2].weight.isfinite().all()
    assert not torch.equal(model[2].weight, before)
