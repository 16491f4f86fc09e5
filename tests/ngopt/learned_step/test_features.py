"""Features that the step size is predicted from."""

import math

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.learned_step.features import (
    OF_GRADIENTS,
    gradient_features,
    known_features,
    layer_positions,
)
from ngopt.roles.from_graph import roles_of
from ngopt.soap.config import Measured
from tests.networks import cnn


def known(model, total_steps=500):
    named = list(model.named_parameters())
    shapes = [p.shape for _, p in named]
    return known_features(roles_of(build_graph(named)), shapes, total_steps)


def measured(weight_rms, grad_rms, density):
    values = {"weight_rms": weight_rms, "grad_rms": grad_rms, "density": density}
    return Measured(**{key: torch.tensor(x) for key, x in values.items()})


def test_shapes_of_an_mlp():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    features = known(model, 1000)
    assert features["log steps"] == pytest.approx(math.log(2))
    assert features["log matrices"] == pytest.approx(math.log(2))
    assert features["mean log rows"] == pytest.approx(math.log(8 * 2) / 2)
    assert features["narrowest log rows"] == pytest.approx(math.log(8))
    assert features["mean log fan"] == pytest.approx(math.log(4 * 8) / 2)
    assert features["largest log fan"] == pytest.approx(math.log(8))
    assert features["share of vectors"] == pytest.approx(26 / (26 + 32 + 16))
    assert features["norms per matrix"] == pytest.approx(2 / 4)
    assert features["biases per matrix"] == 2 / 2
    assert features["share of blocks"] == features["deep without norms"] == 0
    assert features["log elements"] == pytest.approx(math.log(26 + 32 + 16))
    assert features["log outputs"] == pytest.approx(math.log(2))
    assert features["share of output"] == pytest.approx(16 / (26 + 32 + 16))
    assert features["share of convolutions"] == features["share of tables"] == 0


def test_convolutions_and_tables():
    assert 0 < known(cnn())["share of convolutions"] < 1
    model = nn.Sequential(nn.Embedding(30, 4), nn.Linear(4, 30, bias=False))
    assert known(model)["share of tables"] == pytest.approx(0.5)


def test_depth_without_norms():
    layers = [nn.Linear(3, 3) for _ in range(10)]
    features = known(nn.Sequential(*layers))
    assert features["deep without norms"] == pytest.approx((10 - 6) ** 0.5)
    assert features["log matrices without norms"] == pytest.approx(math.log(10))
    features = known(nn.Sequential(*layers, nn.LayerNorm(3)))
    assert features["deep without norms"] == features["log matrices without norms"] == 0


def test_heads_are_blocks():
    model = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.Linear(8, 3)])
    assert known(model)["share of blocks"] > 0


def test_positions_of_layers():
    model = nn.Sequential(
        nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2, bias=False)
    )
    roles = roles_of(build_graph(model.named_parameters()))
    assert layer_positions(roles) == [-1, -1, -1, -1, 0, 0, 1]
    assert layer_positions(roles[:-1]) == [0] * 6


def gradients_of(depths, sizes, matrices=None, numels=None):
    """Features of gradients; every matrix has 10 elements unless numels are given."""
    if numels is None:
        numels = [10.0] * len(sizes.weight_rms)
    matrices = matrices or range(len(depths))
    depths, numels = torch.tensor(depths), torch.tensor(numels)
    features = gradient_features(depths, numels, sizes, matrices)
    return {name: value.item() for name, value in features.items()}


def test_vectors_have_a_share_of_the_gradient():
    sizes = measured([1.0, 1.0, 1.0], [3.0, 4.0, 4.0], [1.0, 1.0, 1.0])
    features = gradients_of([0.5, 1.0], sizes, [0, 2], [5.0, 2.0, 1.0])
    expected = 2 * 16 / (5 * 9 + 2 * 16 + 16)
    assert features["vectors' log share"] == pytest.approx(math.log(expected))
    without = sizes._replace(grad_rms=torch.tensor([3.0, 0.0, 4.0]))
    features = gradients_of([0.5, 1.0], without, [0, 2], [5.0, 2.0, 1.0])
    assert features["vectors' log share"] == pytest.approx(-10)


def test_gradients_that_vanish_have_a_positive_slope():
    depths = [0.25, 0.5, 0.75, 1.0]
    powers = [math.exp(3 * depth) for depth in depths]
    sizes = measured([1.0, 0.5, 1.0, 1.0], powers, [1.0, 0.5, 1.0, 0.0])
    features = gradients_of(depths, sizes._replace(weight_rms=torch.ones(4)))
    assert features["slope of gradients"] == pytest.approx(3, rel=1e-5)
    assert features["spread of gradients"] == pytest.approx(3 * 0.078125**0.5, rel=1e-5)
    assert features["share of zeros"] == pytest.approx((0.5 + 1) / 4)
    assert features["largest share of zeros"] == 1
    # neither the loss' scale nor a scale of all weights changes it
    scaled = {"weight_rms": 7 * sizes.weight_rms, "grad_rms": 1e-9 * sizes.grad_rms}
    expected = pytest.approx(gradients_of(depths, sizes), 1e-4)
    assert gradients_of(depths, sizes._replace(**scaled)) == expected


def test_zeros_and_infinite_gradients_have_no_slope():
    depths = [0.5, 0.75, 1.0]
    full = measured([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    zero_weight = full._replace(weight_rms=torch.tensor([1.0, 1.0, 0.0]))
    rms = [torch.tensor([1.0, 2.0, value]) for value in (0.0, torch.inf, torch.nan)]
    for sizes in (zero_weight, *(full._replace(grad_rms=x) for x in rms)):
        features = gradients_of(depths, sizes)
        assert features["slope of gradients"] == pytest.approx(math.log(2) / 0.25, 1e-5)
        assert features["spread of gradients"] == pytest.approx(math.log(2) / 2, 1e-5)
        missing = 0 if sizes is zero_weight else 1 / 3
        assert features["matrices without gradient"] == pytest.approx(missing)
    none = full._replace(grad_rms=torch.zeros(3))
    expected = dict.fromkeys(OF_GRADIENTS, 0.0)
    expected["matrices without gradient"] = 1.0
    assert gradients_of(depths, none) == expected


def test_gradients_behind_a_zero_output_matrix_do_not_count():
    sizes = measured([1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.75])
    features = gradients_of([0.5, 0.75, 1.0], sizes)
    assert features["share of zeros"] == features["largest share of zeros"] == 0.25
    assert features["slope of gradients"] == features["spread of gradients"] == 0
