from itertools import pairwise

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from meta_train.training.estimators import PES, TBPTT, SecondOrderTBPTT
from meta_train.training.unroll import (
    Inner,
    Optimizee,
    Stack,
    hyper_of,
    inner_gradient,
    moved,
    stacked,
    unroll,
)
from ngopt.functional import update_all
from ngopt.metanets import METANETS, FeedForward
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.meta_train.closed_form import Drift, RecoveredGradient, Regression, Slope
from tests.meta_train.training.meta_gradients import (
    directional_derivative,
    first_estimate,
)
from tests.metanets import metanet_for


@pytest.fixture
def optimizee():
    torch.manual_seed(0)
    return Optimizee(Regression(), seed=1)


@pytest.fixture
def few_tracked(monkeypatch):
    """Sets how many updates have one autograd graph."""

    def track(count):
        place = "meta_train.training.estimators.tracked_updates"
        monkeypatch.setattr(place, lambda metanet, graph: count)

    return track


def learned_from(metanet):
    return LearnedOptimizer(metanet)


def by_autograd(optimizee, learned, steps, limit=float("inf"), horizon=None):
    """The first-order meta-gradient through one autograd graph: parameters are
    detached where the optimizer reads them."""
    metanet, rule = learned.metanet, learned.bind(optimizee.graph, horizon)
    inner, losses = optimizee.start(rule), []
    hyper = hyper_of(optimizee)
    for _ in range(steps):
        _, grads, buffers = inner_gradient(optimizee, inner)
        detached = [p.detach() for p in inner.params]
        deltas, state = update_all(rule, grads, inner.state, detached, hyper)
        after = moved(inner._replace(params=detached), deltas, state, buffers)
        # the update as a function of detached values,
        # applied to parameters that carry the autograd graph
        changes = [a - p for a, p in zip(after.params, detached, strict=True)]
        params = [p + u for p, u in zip(inner.params, changes, strict=True)]
        inner = Inner(params, buffers, after.state, inner.step + 1)
        loss, _ = optimizee.loss(inner.params, inner.buffers, inner.step)
        losses.append(loss.clamp(max=limit))
    mean = torch.stack(losses).mean()
    weights = list(metanet.parameters())
    gradient = torch.autograd.grad(mean, weights, materialize_grads=True)
    return mean, parameters_to_vector(gradient)


@pytest.mark.parametrize("name", sorted(METANETS))
@pytest.mark.parametrize("tracked", [5, 2])
def test_adjoint_equals_autograd_with_detached_features(
    name, tracked, optimizee, few_tracked
):
    few_tracked(tracked)
    learned = learned_from(metanet_for(name, optimizee.graph))
    found, state = first_estimate(TBPTT(), optimizee, learned, 5)
    loss, expected = by_autograd(optimizee, learned, 5)
    assert found.meta_loss == pytest.approx(loss.item(), abs=1e-14)
    torch.testing.assert_close(found.meta_gradient, expected, rtol=1e-9, atol=1e-12)
    assert expected.norm() > 1e-4
    assert state.step == 5


@pytest.mark.parametrize("name", ["lstm", "ng-gnn", "ng-t"])
@pytest.mark.parametrize("tracked", [7, 2])
def test_stored_context_has_an_adjoint_over_all_steps_that_use_it(
    name, tracked, optimizee, few_tracked
):
    few_tracked(tracked)
    metanet = metanet_for(name, optimizee.graph).reconfigured(graph_every=3)
    learned = learned_from(metanet)
    found, _ = first_estimate(TBPTT(), optimizee, learned, 7)
    _, expected = by_autograd(optimizee, learned, 7)
    # the context is bfloat16, and so are sums of its derivatives
    assert (found.meta_gradient - expected).norm() < 0.01 * expected.norm()
    graph = [p.numel() for n, p in metanet.named_parameters() if "head" not in n]
    assert expected[: sum(graph)].norm() > 1e-5


def test_adjoint_with_a_cooldown(optimizee):
    learned = LearnedOptimizer(
        metanet=FeedForward().double(), cooldown=Cooldown(1.5, 0.6)
    )
    found, _ = first_estimate(TBPTT(total_steps=5), optimizee, learned, 5)
    _, expected = by_autograd(optimizee, learned, 5, horizon=5)
    torch.testing.assert_close(found.meta_gradient, expected, rtol=1e-9, atol=1e-12)
    _, constant = by_autograd(optimizee, learned, 5)
    assert not torch.allclose(expected, constant, rtol=0.1)


def test_clamped_losses_have_no_gradient(optimizee):
    learned = learned_from(FeedForward().double())
    losses = []
    for k in range(1, 5):
        estimate, _ = first_estimate(TBPTT(), optimizee, learned, k)
        losses.append(estimate.meta_loss * k)
    single = [losses[0], *(b - a for a, b in pairwise(losses))]
    limit = sum(single) / 4  # some losses above, some below
    assert min(single) < limit < max(single)
    found, _ = first_estimate(TBPTT(loss_limit=limit), optimizee, learned, 4)
    loss, expected = by_autograd(optimizee, learned, 4, limit)
    assert found.meta_loss == pytest.approx(loss.item(), abs=1e-14)
    torch.testing.assert_close(found.meta_gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "estimator",
    [TBPTT(), SecondOrderTBPTT(), PES()],
    ids=["tbptt", "second order", "pes"],
)
def test_truncations_continue_the_inner_training(estimator, optimizee):
    learned = learned_from(RecoveredGradient())
    state = estimator.start(optimizee, learned)
    before = parameters_to_vector(learned.metanet.parameters()).clone()
    losses = []
    for _ in range(60):
        estimate, state = estimator.estimate(optimizee, learned, state, 4)
        losses.append(estimate.meta_loss)
    assert torch.equal(parameters_to_vector(learned.metanet.parameters()), before)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def total_estimates(estimator, seeds, truncations=3, steps=2):
    """Of whole inner trainings, one for each seed; all at once."""
    optimizees = [Optimizee(Slope(), seed) for seed in seeds]
    learned = learned_from(Drift())
    state = stacked([estimator.start(optimizee, learned) for optimizee in optimizees])
    total = torch.zeros(len(optimizees))
    for _ in range(truncations):
        estimate, state = estimator.estimate(Stack(optimizees), learned, state, steps)
        total += estimate.meta_gradient.squeeze(1)
    return total


def test_pes_is_unbiased_over_truncations_and_truncated_es_is_not():
    # p_t = 1 + t theta and L = 3 p; the truncations' mean losses have slopes 3 * (1.5,
    # 3.5, 5.5).
    truth = 3 * (1.5 + 3.5 + 5.5)
    greedy = 3 * 3 * 1.5
    samples = 600
    cases = (PES(0.1), truth), (PES(0.1, persistent=False), greedy)
    for estimator, expected in cases:
        values = total_estimates(estimator, range(samples))
        error = values.std() / samples**0.5
        assert abs(values.mean() - expected) < 4 * error
        assert error < 0.1 * (truth - greedy)


def test_pes_matches_the_gradient_of_a_smooth_meta_loss(optimizee):
    """One truncation with a small sigma: the pair's difference is the directional
    derivative."""
    learned = learned_from(RecoveredGradient())
    estimate, state = first_estimate(PES(sigma=1e-5), optimizee, learned, 1)
    noise = state.perturbation
    # exact after one step, where nothing is detached
    _, gradient = by_autograd(optimizee, learned, 1)
    assert gradient.abs().max() > 1e-4
    expected = noise * (noise @ gradient) / 1e-10
    torch.testing.assert_close(estimate.meta_gradient, expected, rtol=1e-3, atol=1e-9)


def test_second_order_is_the_derivative_of_the_mean_loss(optimizee):
    """By finite differences, over a second truncation whose start counts as given."""
    metanet = metanet_for("ff", optimizee.graph)
    learned = learned_from(metanet)
    estimator = SecondOrderTBPTT(tail=0.5)
    _, start = first_estimate(estimator, optimizee, learned, 3)
    found, _ = estimator.estimate(optimizee, learned, start, 4)

    def meta_loss():
        rule = learned.bind(optimizee.graph)
        inner, losses = unroll(optimizee, start, rule, 4)
        last, _ = optimizee.loss(inner.params, inner.buffers, inner.step)
        return (losses[3] + last) / 2

    direction, expected = directional_derivative(meta_loss, metanet, 1e-6)
    assert expected.abs() > 1e-6
    derivative = found.meta_gradient @ direction
    torch.testing.assert_close(derivative, expected, rtol=1e-5, atol=1e-10)
