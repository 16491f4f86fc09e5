import copy

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector

from harness.random import seeded
from meta_train.training.unroll import Optimizee, inner_gradient, unroll, whole_run
from ngopt.metanets import METANETS, NeuralGraphGNN
from ngopt.metanets.gnn import GNNConfig
from ngopt.metanets.stepping.rule import MetanetRule
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.graph_checks import assert_equal
from tests.meta_train.closed_form import RecoveredGradient, Regression
from tests.meta_train.training.meta_gradients import directional_derivative
from tests.metanets import metanet_for

STEPS = 4


def unrolled(optimizee, metanet, steps=STEPS, **options):
    rule = MetanetRule(metanet, optimizee.graph)
    start = optimizee.start(rule)
    return unroll(optimizee, start, rule, steps, **options)


def meta_gradient(optimizee, metanet):
    _, losses = unrolled(optimizee, metanet, create_graph=True)
    weights = list(metanet.parameters())
    gradient = torch.autograd.grad(losses.sum(), weights, materialize_grads=True)
    return losses, gradient


def test_second_order_unroll_equals_higher():
    optimizee = Optimizee(Regression(), seed=3)
    losses, (found,) = meta_gradient(optimizee, RecoveredGradient(lr=0.3))

    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    model = optimizee.problem.init(3)
    inner = torch.optim.SGD(model.parameters(), lr=0.3)
    with higher.innerloop_ctx(
        model, inner, override={"lr": [lr]}, copy_initial_weights=True
    ) as (fmodel, optimizer):
        expected = []
        for step in range(STEPS):
            loss = optimizee.problem.loss(fmodel, optimizee.problem.batch(3, step))
            expected.append(loss)
            optimizer.step(loss)
    (reference,) = torch.autograd.grad(torch.stack(expected).sum(), lr)
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, reference, rtol=1e-8, atol=1e-10)
    assert reference.abs() > 1e-3


@pytest.mark.parametrize("name", sorted(METANETS))
def test_second_order_unroll_equals_finite_differences(name):
    torch.manual_seed(0)
    optimizee = Optimizee(Regression(), seed=1)
    metanet = metanet_for(name, optimizee.graph)
    _, gradient = meta_gradient(optimizee, metanet)

    def meta_loss():
        return unrolled(optimizee, metanet)[1].sum()

    direction, expected = directional_derivative(meta_loss, metanet, 1e-6)
    assert expected.abs() > 1e-6
    found = parameters_to_vector(gradient) @ direction
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_meta_gradients_are_finite_at_zero_gradients():
    def dead():
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        nn.init.constant_(model[0].bias, -100.0)  # no unit of the first layer is active
        nn.init.zeros_(model[2].weight)
        return model

    torch.manual_seed(0)
    optimizee = Optimizee(Regression(dead), seed=1)
    rule = MetanetRule(NeuralGraphGNN(), optimizee.graph)
    _, grads, _ = inner_gradient(optimizee, optimizee.start(rule))
    assert grads[0].abs().max() == 0
    for metanet in (metanet_for(name, optimizee.graph) for name in METANETS):
        _, gradient = meta_gradient(optimizee, metanet)
        assert all(g.isfinite().all() for g in gradient)
        assert any(g.abs().max() > 0 for g in gradient)


def test_buffers_and_dropout():
    def layers():
        norm, dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)
        return nn.Sequential(nn.Linear(3, 4), norm, dropout, nn.Linear(4, 2))

    torch.manual_seed(0)
    metanet = NeuralGraphGNN(GNNConfig(width=4, layers=1)).double()
    optimizee = Optimizee(Regression(layers), seed=2)
    rule = MetanetRule(metanet, optimizee.graph)
    start = optimizee.start(rule)
    inner, losses = unroll(optimizee, start, rule, 3)
    assert start.buffers["1.num_batches_tracked"] == 0
    assert inner.buffers["1.num_batches_tracked"] == 3
    means = [state.buffers["1.running_mean"] for state in (inner, start)]
    assert not torch.equal(*means)
    # the network as torch trains it, with the same dropout masks
    network = Regression(layers).init(2)
    inputs, targets = optimizee.problem.batch(2, 0)
    with seeded(2, 2, 0):
        expected = F.mse_loss(network(inputs), targets)
    _, buffers = optimizee.loss(start.params, start.buffers, 0)
    torch.testing.assert_close(losses[0], expected.detach())
    torch.testing.assert_close(buffers["1.running_mean"], network[1].running_mean)
    again, repeated = unrolled(optimizee, metanet, 3)
    assert torch.equal(losses, repeated)
    other, _ = optimizee.loss(start.params, start.buffers, 1)
    assert not torch.equal(other, losses[0])
    model = optimizee.model_at(inner)
    assert not model.training
    assert optimizee.model.training
    assert torch.equal(model[1].running_mean, again.buffers["1.running_mean"])


def test_two_unrolls_equal_one_of_the_same_length():
    torch.manual_seed(0)
    metanet = NeuralGraphGNN().double()
    optimizee = Optimizee(Regression(), seed=2)
    rule = MetanetRule(metanet, optimizee.graph)
    whole, losses = unrolled(optimizee, metanet, 5)
    half, first = unrolled(optimizee, metanet, 2)
    rest, second = unroll(optimizee, half, rule, 3)
    assert torch.equal(losses, torch.cat([first, second]))
    assert_equal(whole.params, rest.params)
    assert rest.step == 5


def test_whole_run_evaluates_the_trained_network():
    metanet = RecoveredGradient()
    optimizee = Optimizee(Regression(), seed=2)
    inner, _ = unrolled(optimizee, metanet, 30)
    expected = optimizee.problem.evaluate(optimizee.model_at(inner), "validation")
    assert whole_run(optimizee, LearnedOptimizer(metanet), 30) == expected
    untrained = optimizee.problem.evaluate(optimizee.model, "validation")
    assert expected.loss < untrained.loss


def test_initial_weights_depend_on_the_seed():
    a, b = (Optimizee(Regression(), seed=s) for s in (1, 2))
    rule = MetanetRule(RecoveredGradient(), a.graph)
    assert not torch.equal(a.start(rule).params[0], b.start(rule).params[0])
    assert torch.equal(a.start(rule).params[0], copy.deepcopy(a).start(rule).params[0])
