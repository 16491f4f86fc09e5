"""Situations: how they are divided, and facts about their parts."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import nn

from meta_train.problems import load_problem
from meta_train.problems.situations import (
    DEVELOPING,
    REAL,
    SITUATIONS,
    TESTING,
    VALIDATING,
    equations,
    games,
    initialization,
    problems,
    rewards,
    tables,
    variants,
    zero_init,
)
from meta_train.problems.supervised import SupervisedProblem, on_device


def test_thirds_have_one_size():
    assert [len(part) for part in (DEVELOPING, VALIDATING, TESTING)] == [35, 35, 35]
    assert set(SITUATIONS) == {*DEVELOPING, *VALIDATING, *TESTING, *REAL}
    assert len(SITUATIONS) == 105 + len(REAL)


def test_the_order_of_equal_data_depends_on_the_name():
    one, other = load_problem("long-mlp-10000"), load_problem("batch-1")
    assert one.data is other.data
    kept = dataclasses.replace(other, batch_size=one.batch_size)
    assert not torch.equal(kept.batch(0, 0)[1], one.batch(0, 0)[1])


@pytest.mark.parametrize(
    "equation",
    [equations.POISSON, equations.HELMHOLTZ, equations.OSCILLATOR, equations.HEAT],
)
def test_solutions_have_no_residual(equation):
    x = equation.length * torch.rand(64, equation.dimensions, dtype=torch.float64)
    x.requires_grad_()
    residual = equation.residual(equation.solution(x), x)
    assert residual.abs().max() < 1e-9
    # and a trial that is given zeros is no solution
    zeros = torch.zeros_like(x[:, 0]) * x[:, 0]
    assert (
        equation.residual(equation.trial(x, zeros) + 0 * x.sum(1) ** 2, x).std() > 0.01
    )


@pytest.mark.parametrize("equation", [equations.POISSON, equations.HELMHOLTZ])
def test_trials_vanish_on_the_boundary_as_the_solutions_do(equation):
    x = equation.length * torch.rand(64, equation.dimensions)
    on_boundary = torch.arange(64) % equation.dimensions
    x[torch.arange(64), on_boundary] = equation.length * (torch.arange(64) % 4 // 2)
    trial = equation.trial(x, torch.randn(64))
    assert trial.abs().max() == 0
    torch.testing.assert_close(equation.solution(x), trial, atol=1e-5, rtol=0)


def test_trials_of_the_oscillator_have_its_initial_values():
    t = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    values = torch.randn(1, dtype=torch.float64) + t[:, 0].cos()
    for u in (equations.OSCILLATOR.trial(t, values), equations.OSCILLATOR.solution(t)):
        assert u.item() == 0
        assert equations.slopes(u, t).item() == pytest.approx(1)


def test_the_energy_distance_of_points():
    x = torch.zeros(3, 2)
    assert games.energy_distance(x, x) == 0
    assert games.energy_distance(x, x + torch.tensor([3.0, 4.0])) == 10


def test_the_generators_loss_has_no_gradient_for_the_critic():
    players = games.Players(2, 8)
    players.fixed_critic(torch.randn(4, 2, requires_grad=True)).sum().backward()
    assert all(p.grad is None for p in players.parameters())


def test_regret_and_covered_modes_by_hand():
    bandit = load_problem("bandits-10")
    model = bandit.init(0)
    means = bandit.rewards(torch.zeros(1, 1))[0]
    best = means.argmax(1)
    with torch.no_grad():
        model.logits.scatter_(1, best[:, None], 50)
    floor = rewards.REGRET_FLOOR
    assert bandit.evaluate(model, "test").loss == pytest.approx(floor, abs=1e-6)
    with torch.no_grad():
        model.logits.zero_()
    expected = (means.amax(1) - means.mean(1)).mean().item() + floor
    assert bandit.evaluate(model, "test").loss == pytest.approx(expected, rel=1e-5)
    gan = load_problem("gan-ring-8")
    assert gan._mode_coverage(gan.modes) == 1
    assert gan._mode_coverage(gan.modes[:2].repeat(4, 1)) == pytest.approx(0.25)
    assert gan._mode_coverage(gan.modes + 5) == 0


def test_initial_weights_have_their_standard_deviations():
    with torch.no_grad():
        model = initialization.he_normal(nn.Linear, 400, 300)
        assert model.weight.std() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
        assert not model.bias.any()
        model = load_problem("start-gpt-residual-300").init(0)
        assert model.blocks[0].mlp[0].weight.std() == pytest.approx(0.02, rel=0.05)
        assert model.blocks[0].mlp[2].weight.std() == pytest.approx(0.01, rel=0.05)
        model = load_problem("start-mlp-mup-300").init(0)
        assert model[-1].weight.std() == pytest.approx(1 / 256, rel=0.1)
        head = load_problem("start-mixer-head-100").init(0).head
        assert not head.weight.any()


def test_tokens_follow_zipfs_law():
    torch.manual_seed(0)
    counts = tables.zipf(100_000, 1000).bincount(minlength=1000)
    share = counts / counts.sum()
    # token k of V has log((k + 2) / (k + 1)) / log V
    assert share[0].item() == pytest.approx(0.100, abs=0.005)
    assert share[9].item() == pytest.approx(0.0138, abs=0.002)


def test_examples_for_evaluation_have_no_noise():
    problem = load_problem("zeros-scales-300")
    train, validation, _ = problem.data()
    for examples, noise in ((train, 0.1), (validation, 0.0)):
        x, y = examples.batch(torch.arange(1000))
        design = torch.stack([x, torch.ones_like(x)], -1)
        fitted = torch.linalg.lstsq(design.transpose(0, 1), y.mT[..., None]).solution
        rest = y.mT - (design.transpose(0, 1) @ fitted).squeeze(-1)
        assert rest.std().item() == pytest.approx(noise, abs=0.01)


def test_the_floor_of_squared_errors():
    targets = torch.tensor([[0.0, 10.0], [2.0, 14.0]])
    # variances 1 and 4
    loss = problems.squared_errors_with_floor(targets, targets)
    assert loss.item() == pytest.approx(2.5e-4)
    loss = problems.squared_errors_with_floor(targets + 1, targets)
    assert loss.item() == pytest.approx(1 + 2.5e-4)


def test_the_minimum_of_contrastive_divergence_is_zero():
    labels = torch.arange(12) % 3
    separated = torch.eye(3)[labels] - 1 / 3
    assert variants.contrastive_divergence(separated, labels).abs() < 1e-4
    assert variants.contrastive_divergence(separated, labels.roll(1) % 2) > 1


def test_contrasts_are_evaluated_at_the_batch_size_of_training():
    for name in ("contrast-fm7", "contrast-m7", "contrast-cnn-m14"):
        problem = variants.PROBLEMS[name]
        assert problem.evaluation_batch == problem.batch_size


def test_divergence_of_log_scales_by_hand():
    targets = torch.zeros(2, 12)
    best = zero_init.SCALES.log().expand(2, 12)
    assert zero_init.divergence((targets, best), targets).abs() < 1e-6
    # one scale too large and one scale off
    loss = zero_init.divergence((targets, best + 1), targets)
    assert loss.item() == pytest.approx(1 + 0.5 * (math.exp(-2) - 1), rel=1e-4)
    loss = zero_init.divergence((targets + zero_init.SCALES, best), targets)
    assert loss.item() == pytest.approx(0.5, rel=1e-4)


def test_gradients_are_clipped_as_by_torch():
    for name in ("clip-gru-200", "clip-columns-300"):
        clipped = load_problem(name)
        model, batch = clipped.init(0), clipped.batch(0, 0)
        plain = SupervisedProblem.loss(clipped, model, batch)
        params = list(model.parameters())
        plain.backward()
        norm = nn.utils.clip_grad_norm_(params, variants.MAX_NORM)
        expected = [p.grad.clone() for p in params]
        model.zero_grad()
        loss = clipped.loss(model, batch)
        loss.backward()
        assert loss.item() == plain.item()
        torch.testing.assert_close([p.grad for p in params], expected)
        assert norm > 1 or name != "clip-columns-300"


def test_drift_reports_the_loss_before_each_step():
    problem = dataclasses.replace(load_problem("drift-line"), steps=8)
    model = problem.init(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for step in range(8):
        batch = problem.batch(0, step)
        with torch.no_grad():
            outputs = model(batch.inputs)
        losses.append(problem.evaluation.loss(outputs, batch.clean).item())
        assert not torch.equal(batch.targets, batch.clean)
        optimizer.zero_grad()
        problem.loss(model, batch).backward()
        optimizer.step()
    metrics = problem.evaluate(model.eval(), "validation")
    assert metrics.loss == pytest.approx(sum(losses[2:]) / 6, rel=1e-5)


def test_generators_are_evaluated_by_their_averages():
    problem = load_problem("gan-ring-8")
    model = problem.init(0)
    first = model.average[1].weight.clone()
    with torch.no_grad():
        model.generator[1].weight += 1
    problem.loss(model, problem.batch(0, 0))
    moved = model.average[1].weight - first
    torch.testing.assert_close(moved, torch.full_like(moved, 0.02))
    before = problem.evaluate(model.eval(), "validation")
    with torch.no_grad():
        model.generator[5].weight.zero_()
    assert problem.evaluate(model, "validation") == before


def test_each_player_has_its_own_loss():
    players, real = games.Players(4, 16), torch.randn(32, 2)
    for is_relativistic in (False, True):
        game = partial(games.game, is_relativistic=is_relativistic)
        grads_by_penalty = []
        for penalty in (0.0, 10.0):
            torch.manual_seed(0)
            players.zero_grad()
            game(players, real, penalty).backward()
            grads_by_penalty.append([p.grad.clone() for p in players.parameters()])
        # the penalty is the critic's, and its weights alone decide slopes
        names = [name for name, _ in players.named_parameters()]
        for name, plain, penalised in zip(names, *grads_by_penalty, strict=True):
            if name.startswith("generator"):
                assert torch.equal(plain, penalised), name
            elif name.endswith("weight"):
                assert not torch.equal(plain, penalised), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "kind", ["gan-", "bandit", "cart-", "drift-", "clip-", "zeros-"]
)
def test_problems_train_on_a_gpu(kind):
    for name in filter(lambda name: name.startswith(kind), SITUATIONS):
        trains_on(load_problem(name), torch.device("cuda"))


def trains_on(problem, device):
    model = problem.init(0).to(device)
    loss = problem.loss(model, on_device(problem.batch(0, 0), device))
    loss.backward()
    assert loss.device.type == device.type
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert problem.evaluate(model.eval(), "validation", 40).loss > 0
