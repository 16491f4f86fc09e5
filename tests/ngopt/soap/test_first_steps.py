"""How long steps are by the first weights, by the horizon and by the way."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ngopt import NGOptimizer
from ngopt.soap.config import SoapConfig
from ngopt.soap.first_steps import (
    MAX_AGREEMENT,
    agreement,
    chain_length,
    dense_counts,
    initial_size,
    mean_density,
    spectral_excess,
    trained,
)

CONFIG = SoapConfig()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FRESH = {
    "torch": lambda w: nn.init.kaiming_uniform_(w, a=5**0.5),
    "He": nn.init.kaiming_normal_,
    "Xavier": nn.init.xavier_uniform_,
    "GPT-2": lambda w: nn.init.normal_(w, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "zeros": nn.init.zeros_,
}


@pytest.mark.parametrize("shape", [(64, 64), (16, 200), (300, 40), (32, 16, 3, 3)])
@pytest.mark.parametrize("name", FRESH)
def test_fresh_matrices_have_little_excess(name, shape):
    torch.manual_seed(1)
    assert spectral_excess(FRESH[name](torch.empty(shape))) < 0.03


def test_the_excess_of_a_strong_direction_by_hand():
    left, right = normal(40, 1), normal(1, 60, seed=1)
    weight = normal(40, 60, seed=2) + 2 * left @ right
    largest = torch.linalg.matrix_norm(weight, 2)
    edge = weight.square().mean().sqrt() * (40**0.5 + 60**0.5)
    expected = (largest / edge / 1.02).log()
    assert expected > 0.5
    for scale in (1, 1e-20, 1e20):
        found = spectral_excess(scale * weight)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    permuted = weight[torch.randperm(40)][:, torch.randperm(60)]
    torch.testing.assert_close(spectral_excess(permuted), found, rtol=1e-4, atol=0)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_say_nothing(odd):
    weight = normal(8, 8)
    weight[2, 3] = odd
    assert spectral_excess(weight) == 0


def shares(params):
    matrices = [i for i, p in enumerate(params) if p.dim() > 1 and p.numel()]
    excess = torch.zeros(len(params))
    for i in matrices:
        excess[i] = spectral_excess(params[i])
    return trained(excess, matrices, [p.numel() for p in params], CONFIG)


def test_shares_of_trained_matrices_and_of_what_is_beside_them():
    low_rank = 2 * normal(50, 1) @ normal(1, 50, seed=1)
    params = [normal(50, 50), normal(50, 50, seed=2) + low_rank, torch.zeros(50)]
    share, untrained = shares([*params, torch.zeros(0, 3)])
    own = spectral_excess(params[1]).item()
    excess = np.array([0.3 * own / 2, own, own / 2, own / 2])
    expected = np.exp(-2 * excess).clip(0.4)
    assert share.tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    assert untrained.tolist() == [0, 0, 0, 0]
    share, untrained = shares([params[0], params[2]])
    assert share.tolist() == pytest.approx([1, 1], abs=0.02)
    assert untrained.tolist() == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize(
    ("same", "expected"), [(0.0, 0.0), (1.0, MAX_AGREEMENT), (0.6, 0.6)]
)
def test_agreement_is_the_share_of_what_gradients_have_in_common(same, expected):
    beta, n = 0.9, 200_000
    common, m = normal(n, seed=99), torch.zeros(n)
    for age in range(6):
        g = same**0.5 * common + (1 - same) ** 0.5 * normal(n, seed=age)
        m = beta * m + (1 - beta) * g
    squares, each = m.square().sum().view(1), torch.full((1,), float(n))
    found = agreement(squares, each, torch.full((1,), 6.0), beta)
    assert found == pytest.approx(expected, abs=0.02)


def first_steps(agree):
    """Records of a trained matrix after steps; agree: whether gradients do."""
    weight = nn.Parameter(first_weight())
    opt = NGOptimizer([weight], total_steps=50)
    records = []
    for step in range(12):
        weight.grad = normal(40, 60, seed=9 if agree else 10 + step)
        opt.step()
        record = opt.state[weight]
        records.append({key: float(record[key]) for key in ("untrained", "slope")})
    return records


def test_trained_weights_far_from_a_minimum_make_full_steps():
    near, far = first_steps(agree=False), first_steps(agree=True)
    assert near[0] == near[11] == far[0] == far[1]
    assert far[0]["untrained"] == 0
    assert far[2]["untrained"] == pytest.approx(MAX_AGREEMENT, abs=1e-5)
    share = math.exp(-CONFIG.trained_exponent * spectral_excess(first_weight()))
    wanted = max(share, CONFIG.trained_least) ** (-2 * MAX_AGREEMENT)
    assert far[2]["slope"] / far[0]["slope"] == pytest.approx(wanted, rel=1e-3)
    assert far[2] == far[7]


@pytest.mark.parametrize("scale", [1e-20, 3.0, 1e20])
def test_agreement_does_not_depend_on_the_loss_scale(scale):
    def found(scale):
        weights = [nn.Parameter(normal(8, 9, seed=i).double()) for i in range(3)]
        opt = NGOptimizer(weights)
        for step in range(6):
            for i, w in enumerate(weights):
                own = normal(8, 9, seed=10 * step + i) + normal(8, 9, seed=99)
                w.grad = 10.0**i * scale * own.double()
            opt.step()
        return float(opt.state[weights[0]]["agreement"])

    assert found(scale) == pytest.approx(found(1.0), rel=1e-4)


def test_parameters_that_begin_late_leave_others_alone():
    old, table, late = map(nn.Parameter, (first_weight(), normal(30, 8), normal(5, 8)))
    opt = NGOptimizer([old, table, late])
    for step in range(20):
        old.grad = normal(40, 60, seed=9)
        table.grad = torch.zeros(30, 8)
        table.grad[step % 3 :: 3] = 1
        if step >= 10:
            late.grad = normal(5, 8, seed=step)
        opt.step()
        if step == 9:
            before = {k: float(v) for k, v in opt.state[old].items() if v.dim() == 0}
            density = float(opt.state[table]["density"])
    for key in ("slope", "untrained", "agreement"):
        assert float(opt.state[old][key]) == before[key]
    assert float(opt.state[table]["density"]) == density
    assert float(opt.state[late]["agreement"]) != before["agreement"]


def first_weight():
    return normal(40, 60) + 2 * normal(40, 1) @ normal(1, 60, seed=1)


def test_what_step_sizes_follow():
    """As large as PyTorch's, three times, a quarter, zero; a vector."""
    rms = np.array([0.1, 0.3, 0.025, 0.0, 0.7])
    offset, slope = initial_size(rms, np.array([10.0, 10, 10, 10, 0]))
    assert (offset + slope * rms).tolist() == pytest.approx([1, 1, 0.25, 1, 1])
    assert (offset + slope * 2 * rms).tolist() == pytest.approx([2, 2, 0.5, 1, 1])
    assert (offset + slope * 0.05).tolist()[3] == pytest.approx(1 + 0.5)


def test_first_steps_by_initial_size():
    """Relative to PyTorch's initial weights; of smaller ones with the root."""
    lengths = []
    for size in (1, 3, 0.25, 0.01):
        torch.manual_seed(0)
        linear = nn.Linear(40, 40, bias=False)
        linear.weight.data *= size
        before = linear.weight.detach().clone()
        opt = NGOptimizer(linear.parameters(), weight_decay=0.0, total_steps=1000)
        linear.weight.grad = normal(40, 40)
        opt.step()
        lengths.append((linear.weight.detach() - before).norm().item())
    assert np.array(lengths[1:]) / lengths[0] == pytest.approx([1, 0.5, 0.25], rel=0.02)


def length_of(output, layers):
    """The length of a chain, from the gradients of a sum of squares."""
    params = [layer.weight for layer in layers]
    grads = torch.autograd.grad(output.square().sum(), params)
    pairs = zip(grads, params, strict=True)
    products = np.array([(g * p).sum().abs().item() for g, p in pairs])
    norms = np.array([g.norm().item() for g in grads])
    # copies of all of them make no difference
    twice = chain_length(np.tile(products, 2), np.tile(norms, 2))
    assert twice == pytest.approx(chain_length(products, norms))
    return twice


def test_the_length_of_a_chain():
    torch.manual_seed(0)
    layers = [nn.Linear(20, 20, bias=False) for _ in range(24)]
    x = normal(50, 20)
    chain = nn.Sequential(*(nn.Sequential(layer, nn.ReLU()) for layer in layers))
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
    assert length_of(chain(x), layers) == pytest.approx(24)
    assert length_of(chain[:3](x), layers[:3]) == pytest.approx(3)
    assert length_of(chain[:2](x), layers[:2]) == 0
    norms = nn.Sequential(*(nn.Sequential(x, nn.LayerNorm(20)) for x in layers))
    assert length_of(norms(x), layers) == 0
    shortcuts = x
    for layer in layers:
        shortcuts = shortcuts + 0.3 * layer(shortcuts).relu()
    assert length_of(shortcuts, layers) == 0
    # eight networks of three layers
    parallel = sum(chain[i : i + 3](x) * i for i in range(0, 24, 3))
    assert length_of(parallel, layers) == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_equal_products(scale):
    """Zeros and values that are not finite count for nothing."""
    products = scale * np.array([2.0, 0.0, 1.998, 3.0, np.nan, 0.0, 2.001, 0.0, np.inf])
    rms = np.arange(1.0, 10.0)
    assert chain_length(products, rms) == 3
    assert chain_length(torch.tensor(products), torch.tensor(rms)).item() == 3
    others = products[3] * np.arange(1.0, 4.0)  # 3 of 7
    assert chain_length(np.append(products, others), np.arange(12.0)) == 0
    for useless in (0.0, np.inf, np.nan):
        assert chain_length(np.full(4, useless), np.full(4, useless)) == 0


@pytest.mark.parametrize(
    ("depth", "size", "factor"),
    [(2, 4, 1), (3, 1, 1), (3, 4, 2), (7, 4, 2), (14, 1, 0.5), (28, 4, 0.5)],
)
def test_first_steps_of_chains(depth, size, factor):
    """By the root of their RMS and 7 / length, relative to a single layer.

    The gradient of each layer is its weights.
    """
    lengths = []
    for count, scale in ((1, 1.0), (depth, size)):
        torch.manual_seed(0)
        layers = nn.Sequential(*(nn.Linear(20, 20, bias=False) for _ in range(count)))
        before = layers[0].weight.detach().clone()
        for p in layers.parameters():
            p.data *= scale
            p.grad = p.detach() / p.detach().norm() ** 2
        NGOptimizer(layers.parameters(), weight_decay=0.0, total_steps=1000).step()
        lengths.append((layers[0].weight.detach() - scale * before).norm().item())
    assert lengths[1] / lengths[0] == pytest.approx(factor, rel=0.04)


def test_many_parameters_are_not_compared(monkeypatch):
    lengths = []
    for most in (28, 27):
        monkeypatch.setattr("ngopt.soap.first_steps.MOST_COMPARED", most)
        torch.manual_seed(0)
        layers = [nn.Parameter(torch.randn(5, 5)) for _ in range(28)]
        before = layers[0].detach().clone()
        for p in layers:
            p.grad = p.detach() / p.detach().norm() ** 2
        NGOptimizer(layers, weight_decay=0.0, total_steps=1000).step()
        lengths.append((layers[0].detach() - before).norm().item())
    assert lengths[0] < 0.6 * lengths[1]


def test_the_density_of_tables():
    grads = [torch.zeros(10, 4), torch.zeros(5), torch.zeros(0, 4)]
    grads[0][:2] = 1.0
    assert dense_counts(grads, [0, 2]).tolist() == [8, 0]
    share, count = np.array([0.2, 1.0]), np.array([1.0, 1.0])
    growth, density = mean_density(share, np.zeros(2), count)
    assert growth.tolist() == density.tolist() == pytest.approx([0.2, 1])
    growth, density = mean_density(np.array([0.1, 1.0]), density, 2 * count)
    assert density.tolist() == pytest.approx([0.15, 1])
    assert growth.tolist() == pytest.approx([0.75, 1])
    assert mean_density(np.zeros(1), np.zeros(1), count[:1])[0] == 1e-3


def test_tables_with_rare_rows_make_longer_steps():
    lengths = []
    for rows in (1, 20):  # of 20
        table = nn.Embedding(20, 4)
        opt = NGOptimizer(table.parameters(), model=table, total_steps=1000)
        before = table.weight.detach().clone()
        table(torch.arange(rows)).sum().backward()
        opt.step()
        lengths.append((table.weight.detach() - before)[0].norm().item())
    assert lengths[0] / lengths[1] == pytest.approx(20**CONFIG.rare_exponent, 0.05)


def steps(total_steps, count, gradient=lambda step: torch.ones(1)):
    """Lengths of the steps of a parameter."""
    p = nn.Parameter(torch.zeros(1))
    opt = NGOptimizer([p], total_steps=total_steps)
    found = []
    for step in range(count):
        p.grad = gradient(step)
        before = p.detach().clone()
        opt.step()
        found.append((p.detach() - before).norm().item())
    return found


@pytest.mark.parametrize(
    ("total_steps", "factor"), [(100, 5**0.4), (500, 1), (5000, 1)]
)
def test_short_trainings_make_longer_steps(total_steps, factor):
    warm_up = min(1 / (CONFIG.warmup * total_steps), 1)
    expected = CONFIG.step_size * factor * warm_up * (1 - 1 / (total_steps + 1))
    assert steps(total_steps, 1)[0] == pytest.approx(expected, rel=1e-3)


def test_straight_ways_grow_longer_and_others_do_not():
    straight = steps(None, 400)
    noise = steps(None, 400, gradient=lambda step: normal(1, seed=step))

    def usual(step):
        return CONFIG.anytime_step_size / (1 + step / CONFIG.anytime_constant) ** 0.5

    assert usual(30) < straight[30] < 4 * usual(30)
    longest = CONFIG.path_ratio_limit * usual(399)
    assert straight[399] == pytest.approx(longest, rel=1e-2)
    assert max(noise[100:]) < 1.5 * usual(100)


def test_matrices_with_many_elements_are_not_measured():
    small, large = nn.Parameter(normal(256, 256)), nn.Parameter(normal(257, 256))
    opt = NGOptimizer([small, large])
    for p in (small, large):
        p.grad = torch.ones_like(p)
    before = small.detach().clone()
    opt.step()
    opt.step()
    assert "displacement" not in opt.state[large]
    moved = opt.state[small]["displacement"].view(256, 256)
    torch.testing.assert_close(moved, small.detach() - before)
    assert opt.state[small]["distance"] == pytest.approx(
        moved.square().sum().item(), rel=1e-5
    )
