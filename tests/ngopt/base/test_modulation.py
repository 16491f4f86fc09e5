from dataclasses import replace

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, build_graph, load_pretrained
from ngopt.base.config import SoapConfig
from ngopt.base.modulation import SIGNALS, count_rows, modulated
from ngopt.base.soap import Soap
from ngopt.functional import Hyper, update_all
from ngopt.learned import LearnedOptimizer
from ngopt.pretrained import save_pretrained, weights_hash
from tests.networks import cnn, mlp


def factors(value, per_row):
    def modulation(signals, graph, progress):
        rows = [(len(s),) if per_row else () for s in signals]
        return [torch.full(shape, value) for shape in rows]

    return modulation


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(5, 4), nn.MultiheadAttention(4, 2), cnn()
    )
    return build_graph([*model.parameters()]), [
        p.detach() for p in model.parameters()
    ]


@torch.no_grad()
def deltas_of(modulation, steps=12, total_steps=None, weight_decay=0.05):
    graph, params = network()
    rule = Soap(SoapConfig(weight_decay=weight_decay)).bind(
        graph, modulation, total_steps
    )
    state, found = rule.init(params), []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        grads = [torch.randn(p.shape, generator=generator) for p in params]
        n = len(params)
        deltas, state = update_all(
            rule, grads, state, params, Hyper([1.0] * n, [0.0] * n)
        )
        params = [p + d for p, d in zip(params, deltas, strict=True)]
        found.append(deltas)
    return found, state


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("total_steps", [None, 20])
def test_ones_are_the_base_rule_bit_for_bit(per_row, total_steps):
    plain, state = deltas_of(None, total_steps=total_steps)
    found, other = deltas_of(factors(1.0, per_row), total_steps=total_steps)
    for step in zip(plain, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(*step, strict=True))
    for a, b in zip(state, other, strict=True):
        assert a.keys() == b.keys() - {"signals"}
        assert all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize("per_row", [False, True])
def test_twos_double_the_steps(per_row):
    (plain,), _ = deltas_of(None, 1, weight_decay=0.0)
    (found,), _ = deltas_of(factors(2.0, per_row), 1, weight_decay=0.0)
    assert all(torch.equal(2 * a, b) for a, b in zip(plain, found, strict=True))
    assert all(a.abs().max() > 0 for a in plain)


def test_each_row_has_its_own_factor():
    graph, params = network()
    rule = Soap().bind(graph)
    for p, layouts in zip(params, rule.layouts, strict=True):
        rows = count_rows(layouts)
        found = modulated(
            torch.ones_like(p), torch.arange(1.0, rows + 1), layouts
        )
        whole = found.flatten().sort().values
        assert torch.equal(
            whole,
            torch.arange(1.0, rows + 1).repeat_interleave(p.numel() // rows),
        )
    linear = rule.layouts[-2]  # of a plain matrix rows are outputs
    found = modulated(torch.ones(3, 6), torch.tensor([1.0, 2.0, 3.0]), linear)
    assert torch.equal(
        found, torch.tensor([1.0, 2.0, 3.0])[:, None].expand(3, 6)
    )


def test_what_a_modulation_is_given():
    seen = []

    def watching(signals, graph, progress):
        seen.append(([s.clone() for s in signals], graph, progress))
        return [torch.ones(()) for _ in signals]

    deltas_of(watching, 3, total_steps=10)
    graph, _ = network()
    rule = Soap().bind(graph)
    assert [progress for _, _, progress in seen] == [0, 0.1, 0.2]
    for signals, _, _ in seen:
        assert [s.shape for s in signals] == [
            (count_rows(rows), len(SIGNALS)) for rows in rule.layouts
        ]
    assert not any(s.any() for s in seen[0][0])
    assert all(s.isfinite().all() for s in seen[2][0])
    deltas_of(
        lambda *args: seen.append(args) or [torch.ones(())] * len(args[0]), 1
    )
    assert seen[-1][2] is None


@torch.no_grad()
def test_signals_by_hand():
    linear = nn.Linear(3, 2)
    params = [p.detach() for p in linear.parameters()]
    rule = Soap().bind(build_graph(linear), factors(1.0, True))
    grads = [
        torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]),
        torch.tensor([1.0, -2.0]),
    ]
    deltas, state = update_all(
        rule, grads, rule.init(params), params, Hyper([1.0] * 2, [0.0] * 2)
    )
    # the first direction of a vector is its gradient's sign
    bias = state[1]["signals"][0]
    assert bias[0] == pytest.approx(3 / 10**0.5, rel=1e-4)
    assert bias[2] == pytest.approx(
        (deltas[1].norm() / params[1].norm()).item(), rel=1e-4
    )
    assert bias[3] == pytest.approx(
        params[1].square().mean().sqrt().log().item(), rel=1e-4
    )
    rate = SoapConfig().open_step_size / 30
    size_of_weights = (
        params[0].square().mean().sqrt() * 3
    )  # in 1 / sqrt(3 fan_in)
    for row in range(2):
        agreement, size, movement, weights = state[0]["signals"][row].tolist()
        p, d = params[0][row], deltas[0][row]
        u = -(d + p * 0.05 * rate)
        assert agreement == pytest.approx(
            (u @ grads[0][row] / u.norm() / grads[0][row].norm()).item(),
            abs=1e-4,
        )
        assert size == pytest.approx(
            (u.square().mean().sqrt() / (rate * size_of_weights)).item(),
            rel=1e-3,
        )
        assert movement == pytest.approx((d.norm() / p.norm()).item(), rel=1e-4)
        assert weights == pytest.approx(
            p.square().mean().sqrt().log().item(), rel=1e-4
        )


def test_weights_files(tmp_path):
    learned = LearnedOptimizer(
        Soap(SoapConfig(step_size=0.03)), recipe={"stages": ["one"]}
    )
    path = tmp_path / "mine.safetensors"
    save_pretrained(learned, path)
    loaded = load_pretrained(path)
    assert isinstance(loaded.base, Soap)
    assert loaded.base.config == learned.base.config
    assert loaded.metanet is None
    assert weights_hash(loaded) == weights_hash(learned)
    for field, value in (
        ("step_size", 0.031),
        ("renew_every", 11),
        ("beta1", 0.8),
    ):
        other = Soap(replace(learned.base.config, **{field: value}))
        assert weights_hash(replace(learned, base=other)) != weights_hash(
            learned
        )
    model = mlp(2, 3, 1)
    opt = NGOptimizer(model.parameters(), weights=path)
    model(torch.ones(1, 2)).sum().backward()
    opt.step()
    NGOptimizer(mlp(2, 3, 1).parameters(), weights=learned).load_state_dict(
        opt.state_dict()
    )
    with pytest.raises(ValueError, match="made with weights"):
        NGOptimizer(mlp(2, 3, 1).parameters()).load_state_dict(opt.state_dict())


def test_the_default_is_the_base_rule_alone():
    learned = load_pretrained("default")
    assert isinstance(learned.base, Soap)
    assert learned.metanet is None
