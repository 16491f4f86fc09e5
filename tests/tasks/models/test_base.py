import pytest
import torch

from tasks.models.base import Standardise
from tasks.networks.architectures import NetworkStack
from tests.graph_checks import assert_equal
from tests.tasks.stacks import siren_architecture


def stack(*widths, count=4):
    architecture = siren_architecture(*widths)
    shapes = [spec.shape for spec in architecture.graph.parameters]
    values = [k + (1 + k) * torch.randn(count, *s) for k, s in enumerate(shapes)]
    return NetworkStack(architecture, values)


def assert_standard(tensors):
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    assert joined.mean().abs() < 1e-5
    assert abs(joined.std(correction=0) - 1) < 1e-5


def test_every_tensor_has_mean_0_and_std_1_over_the_fitted_networks():
    networks = stack(2, 5, 4, 1)
    others = stack(2, 5, 4, 1, count=7)
    standardise = Standardise(networks.architecture)
    standardise.fit(iter([networks, others]))
    for pair in zip(standardise(networks), standardise(others), strict=True):
        assert_standard(pair)


def test_statistics_are_scalars_so_neurons_remain_exchangeable():
    networks = stack(2, 5, 4, 1)
    standardise = Standardise(networks.architecture)
    standardise.fit([networks])
    weight = networks.params[2]
    standardised = standardise(networks)[2]
    distance = weight[0, 0, 0] - weight[1, 2, 3]
    slope = (standardised[0, 0, 0] - standardised[1, 2, 3]) / distance
    torch.testing.assert_close(standardised, (weight - weight.mean()) * slope)


def test_parameters_are_unchanged_before_a_fit():
    networks = stack(2, 3, 1)
    assert_equal(Standardise(networks.architecture)(networks), networks.params)


def test_constant_parameters_become_zero():
    networks = stack(2, 3, 1)
    networks.params[1].fill_(0.25)
    standardise = Standardise(networks.architecture)
    standardise.fit([networks])
    assert not standardise(networks)[1].any()


def test_other_parameters_are_refused():
    deep = stack(2, 5, 4, 1)
    flat = stack(2, 5, 1)
    message = "expected networks with parameters .*layers.2.bias; got .*layers.1.bias$"
    with pytest.raises(ValueError, match=message):
        Standardise(deep.architecture)(flat)


def test_a_fit_without_networks_is_refused():
    message = "expected networks to take statistics from; got none"
    with pytest.raises(ValueError, match=message):
        Standardise().fit([])


def test_of_several_architectures_parameters_of_a_kind_share_their_statistics():
    deep = stack(2, 5, 4, 3, 1)
    flat = stack(2, 7, 1)
    standardise = Standardise()
    standardise.fit([deep, flat])
    deeps = standardise(deep)
    flats = standardise(flat)
    # the two hidden weights, and those that read inputs
    hidden, inputs = [deeps[2], deeps[4]], [deeps[0], flats[0]]
    biases = [deeps[1], deeps[3], deeps[5], flats[1]]
    for same in (hidden, inputs, biases):
        assert_standard(same)


def test_a_kind_without_training_data_has_the_statistics_of_all():
    deep = stack(2, 5, 4, 1)
    flat = stack(2, 5, 1)
    standardise = Standardise()
    standardise.fit([flat])
    everything = torch.cat([p.flatten() for p in flat.params])
    expected = (deep.params[2] - everything.mean()) / everything.std(correction=0)
    torch.testing.assert_close(standardise(deep)[2], expected)
