"""Steps that undo each other become shorter, and no others do."""

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer


def restraint(opt):
    return [opt.state[p]["restraint"].item() for p in opt.param_groups[0]["params"]]


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(shape, gradients, total_steps=None):
    """A layer after steps with given gradients, and how restrained its steps are."""
    torch.manual_seed(0)
    layer = nn.Linear(*shape)
    opt = NGOptimizer(layer.named_parameters(), total_steps=total_steps)
    for weight, bias in gradients(layer):
        layer.weight.grad, layer.bias.grad = weight, bias
        opt.step()
    return restraint(opt)


def constant(layer):
    for _ in range(60):
        yield torch.ones_like(layer.weight), torch.ones_like(layer.bias)


def noise(layer):
    for step in range(300):
        shape = layer.weight.shape
        yield normal(*shape, seed=step), normal(shape[0], seed=999 + step)


def turning(layer, factor=1.0):
    """Every gradient points against the last two."""
    weight, bias = normal(*layer.weight.shape, seed=0), normal(len(layer.bias), seed=1)
    for step in range(100):
        scale = (-1) ** (step // 2) * factor**step
        yield scale * weight, scale * bias


def falling(layer):
    return turning(layer, 0.97)


@pytest.mark.parametrize("gradients", [constant, noise])
@pytest.mark.parametrize("total_steps", [None, 1000])
def test_equal_and_random_gradients_restrain_nothing(gradients, total_steps):
    assert min(trained((24, 16), gradients, total_steps)) > 0.95


def flat_and_steep(layer):
    """Gradients of 1/2 |layer|^2, which has its minimum at 0."""
    for _ in range(400):
        yield layer.weight.detach().clone(), layer.bias.detach().clone()


@pytest.mark.parametrize("gradients", [falling, flat_and_steep])
def test_a_matrix_and_its_bias_are_restrained_together(gradients):
    matrix, bias = trained((24, 16), gradients)
    assert matrix == bias < 0.8


def test_biases_are_not_restrained_for_matrices_that_are_not_measured():
    assert trained((257, 256), falling) == [1, 1]


def test_gradients_that_turn_and_do_not_fall_restrain_nothing():
    """As those of the batches of a short epoch."""
    assert min(trained((24, 16), turning)) > 0.95


def test_without_a_horizon_an_exact_fit_goes_on_and_others_follow():
    """Steps of full length would circle around the minimum."""
    x = normal(64, 8, seed=4)
    torch.manual_seed(0)
    layer = nn.Linear(8, 1)
    opt = NGOptimizer(layer.named_parameters())
    for scale in (1, 1.3):  # other data, which needs steps of full length again
        target = scale * normal(1, 8, seed=3)
        for _ in range(600):
            opt.zero_grad()
            loss = (layer(x) - x @ target.T - 0.5).square().mean()
            loss.backward()
            opt.step()
        assert loss < 1e-10
        assert max(restraint(opt)) < 0.05
