"""What holds of every situation, and how they are divided."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from meta_train.problems import LISTS, load_problem
from meta_train.problems.situations import (
    DEVELOPING,
    KINDS,
    SITUATIONS,
    TESTING,
    VALIDATING,
    equations,
    finetuning,
    games,
    pretrained,
    rewards,
    starts,
    tables,
    texts,
)
from tasks.datasets import DatasetUnavailable


@pytest.fixture(scope="module", autouse=True)
def little_pretraining():
    """Trained networks need not be good here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "PRETRAINING", 0.02)
        pretrained.weights.cache_clear()
        yield
    pretrained.weights.cache_clear()


@pytest.fixture(params=SITUATIONS)
def problem(request):
    problem = load_problem(request.param)
    try:
        problem.batch(0, 0)
        problem.init(0)
    except DatasetUnavailable as error:
        pytest.skip(f"data cannot be had: {error}")
    return problem


def flat(batch):
    return torch.cat([leaf.double().flatten() for leaf in tree_leaves(batch)])


def weights(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().float()


def test_everything_follows_from_the_seed(problem):
    torch.manual_seed(1)
    first, batch = weights(problem.init(3)), flat(problem.batch(3, 5))
    torch.manual_seed(2)
    assert torch.equal(weights(problem.init(3)), first)
    assert torch.equal(flat(problem.batch(3, 5)), batch)
    if problem.batch_size is not None:
        assert not torch.equal(flat(problem.batch(4, 5)), batch)
        assert not torch.equal(flat(problem.batch(3, 6)), batch)


def test_a_step_changes_all_that_is_trained_and_evaluation_nothing(problem):
    model = problem.init(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(4):  # behind what is zero the gradients come later
        optimizer.zero_grad()
        loss = problem.loss(model, problem.batch(0, step))
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    for name, p in model.named_parameters():
        assert p.isfinite().all(), name
        assert torch.equal(p, before[name]) != p.requires_grad, name
    after = weights(model.eval())
    losses = set()
    for split in ("validation", "test"):
        found = problem.evaluate(model, split, 40)
        losses.add(found.loss)
        torch.rand(1)
        assert problem.evaluate(model, split, 40) == found
        assert found.loss > 0
        assert found.accuracy is None or 0 <= found.accuracy <= 1
    assert torch.equal(weights(model), after)
    assert len(losses) == 2 or "bandit" in problem.name  # its states change nothing


def test_a_third_of_every_kind_develops_validates_and_tests():
    assert (LISTS["situations"], LISTS["situations-validation"]) == (
        DEVELOPING,
        VALIDATING,
    )
    assert LISTS["situations-test"] == TESTING
    names = [*DEVELOPING, *VALIDATING, *TESTING]
    assert len(set(names)) == len(names) == len(SITUATIONS) >= 90
    for develop, validate, test in KINDS.values():
        assert len(develop) == len(validate) == len(test) >= 1
    assert {n: p.name for n, p in SITUATIONS.items()} == {n: n for n in SITUATIONS}


def test_horizons_span_what_people_train():
    for part in (DEVELOPING, VALIDATING, TESTING):
        steps = {load_problem(name).steps for name in part}
        assert min(steps) <= 10
        assert max(steps) == 10_000
        assert {30, 100, 300} <= steps | {60, 200} and len(steps) >= 10


@pytest.mark.parametrize(
    "build",
    [
        lambda name: finetuning.with_lora(name, 4),
        lambda name: finetuning.with_adapters(name, 8),
    ],
)
def test_adapted_networks_begin_as_what_they_adapt(build):
    codes = torch.arange(32)[None]
    model = build("gpt-code")
    torch.testing.assert_close(model(codes), pretrained.pretrained("gpt-code")(codes))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("up" in name or "down" in name for name in trained)


def test_thirds_have_other_texts():
    parts = [texts.code(third).splitlines() for third in range(3)]
    lines = [{x for x in part if len(x) > 60} for part in parts]
    for k in range(3):
        assert len(lines[k]) > 500
        shared = len(lines[k] & lines[k - 1]) / len(lines[k])
        assert shared < 0.01


def test_fine_tuning_moves_to_another_text():
    lower, mixed = texts.LOWER_CASE(), texts.MIXED_CASE()
    assert lower == lower.lower()
    assert mixed != mixed.lower()
    assert "def " in texts.STATEMENTS() and '"""' not in texts.STATEMENTS()
    sentence = "Return the sample arithmetic mean of data."
    assert sentence in texts.DOCSTRINGS() and sentence not in texts.STATEMENTS()
    for text in (texts.MIXED_CASE, texts.STATEMENTS, texts.documentation):
        assert min(map(len, texts.windows(text, 32)[1:])) >= 512


def test_equal_data_come_in_another_order_under_another_name():
    one, other = load_problem("long-mlp-10000"), load_problem("batch-1")
    assert one.data is other.data
    kept = dataclasses.replace(other, batch_size=one.batch_size)
    assert not torch.equal(kept.batch(0, 0)[1], one.batch(0, 0)[1])


@pytest.mark.parametrize(
    "equation", [equations.POISSON, equations.HELMHOLTZ, equations.OSCILLATOR]
)
def test_solutions_leave_no_residual(equation):
    x = equation.length * torch.rand(64, equation.dimensions, dtype=torch.float64)
    x.requires_grad_()
    residual = equation.residual(equation.solution(x), x)
    assert residual.abs().max() < 1e-9
    # and a trial that is given zeros is no solution
    zeros = torch.zeros_like(x[:, 0]) * x[:, 0]
    assert (
        equation.residual(equation.trial(x, zeros) + 0 * x.sum(1) ** 2, x).std() > 0.01
    )


def test_the_energy_distance_of_points():
    x = torch.zeros(3, 2)
    assert games.energy_distance(x, x) == 0
    assert games.energy_distance(x, x + torch.tensor([3.0, 4.0])) == 10


def test_a_critic_gets_no_gradient_from_the_generators_loss():
    players = games.Players(2, 8)
    players.fixed_critic(torch.randn(4, 2, requires_grad=True)).sum().backward()
    assert all(p.grad is None for p in players.parameters())


def test_regret_and_met_modes_by_hand():
    bandit = load_problem("bandits-10")
    model = bandit.init(0)
    best = rewards.TEN_ARMS(torch.zeros(1, 1))[0].argmax(1)
    with torch.no_grad():
        model.logits.scatter_(1, best[:, None], 50)
    floor = rewards.REGRET_FLOOR
    assert bandit.evaluate(model, "test").loss == pytest.approx(floor, abs=1e-6)
    with torch.no_grad():
        model.logits.zero_()
    means = rewards.TEN_ARMS(torch.zeros(1, 1))[0]
    expected = (means.amax(1) - means.mean(1)).mean().item() + floor
    assert bandit.evaluate(model, "test").loss == pytest.approx(expected, rel=1e-5)
    gan = load_problem("gan-ring-8")
    assert gan._mode_coverage(gan.modes) == 1
    assert gan._mode_coverage(gan.modes[:2].repeat(4, 1)) == pytest.approx(0.25)
    assert gan._mode_coverage(gan.modes + 5) == 0


def test_starts_have_the_sizes_they_are_named_for():
    with torch.no_grad():
        model = starts.started(lambda: nn.Linear(400, 300), starts.he)
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
