"""Features that the step size is predicted from."""

import math

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.base.network_features import (
    FirstMeasures,
    gradient_features,
    known_features,
)
from ngopt.roles.from_graph import roles_of
from tests.networks import cnn


def known(model, total_steps=500):
    named = list(model.named_parameters())
    shapes = [p.shape for _, p in named]
    return known_features(roles_of(build_graph(named)), shapes, total_steps)


def measures(rms, grad_rms, dense):
    return FirstMeasures(*map(torch.tensor, (rms, grad_rms, dense)), excesses={})


def test_shapes_of_an_mlp():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    found = known(model, 1000)
    assert found["log steps"] == pytest.approx(math.log(2))
    assert found["log matrices"] == pytest.approx(math.log(2))
    assert found["mean log rows"] == pytest.approx(math.log(8 * 2) / 2)
    assert found["narrowest log rows"] == pytest.approx(math.log(8))
    assert found["mean log fan"] == pytest.approx(math.log(4 * 8) / 2)
    assert found["largest log fan"] == pytest.approx(math.log(8))
    assert found["share of vectors"] == pytest.approx(26 / (26 + 32 + 16))
    assert found["norms per matrix"] == pytest.approx(2 / 4)
    assert found["share of convolutions"] == found["share of tables"] == 0


def test_convolutions_and_tables():
    assert 0 < known(cnn())["share of convolutions"] < 1
    model = nn.Sequential(nn.Embedding(30, 4), nn.Linear(4, 30, bias=False))
    assert known(model)["share of tables"] == pytest.approx(0.5)


def test_gradients_that_vanish_have_a_positive_slope():
    depths = torch.tensor([0.25, 0.5, 0.75, 1.0])
    powers = [math.exp(3 * depth) for depth in depths.tolist()]
    own = measures([1.0, 0.5, 1.0, 1.0], powers, [1.0, 0.5, 1.0, 0.0])
    even = own._replace(rms=torch.ones(4))
    found = gradient_features(depths, even, range(4))
    assert found["slope of gradients"].item() == pytest.approx(3, rel=1e-5)
    assert found["share of zeros"].item() == pytest.approx((0.5 + 1) / 4)
    # neither the loss' scale nor a scale of all weights changes it
    other = FirstMeasures(7 * own.rms, 1e-9 * own.grad_rms, own.dense, {})
    expected = gradient_features(depths, own, range(4))
    for name, value in gradient_features(depths, other, range(4)).items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-4)


def test_zeros_and_infinite_gradients_have_no_slope():
    depths = torch.tensor([0.5, 0.75, 1.0])
    full = measures([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    zero_weight = full._replace(rms=torch.tensor([1.0, 1.0, 0.0]))
    others = [zero_weight]
    for value in (0.0, torch.inf, torch.nan):
        others.append(full._replace(grad_rms=torch.tensor([1.0, 2.0, value])))
    for own in others:
        found = gradient_features(depths, own, range(3))
        slope = found["slope of gradients"].item()
        assert slope == pytest.approx(math.log(2) / 0.25, rel=1e-5)
    none = full._replace(grad_rms=torch.zeros(3))
    found = gradient_features(depths, none, range(3))
    assert [value.item() for value in found.values()] == [0, 0]


def test_gradients_behind_a_zero_output_matrix_do_not_count():
    own = measures([1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.75])
    found = gradient_features(torch.tensor([0.5, 0.75, 1.0]), own, range(3))
    assert found["share of zeros"].item() == 0.25
    assert found["slope of gradients"].item() == 0
