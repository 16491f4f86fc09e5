import pytest
import torch

from tasks.models.base import Standardise
from tasks.networks.architectures import NetworkStack, architecture_of


def stack(*widths, count=4, scale=1.0):
    architecture = architecture_of({"kind": "siren", "widths": list(widths)})
    shapes = [spec.shape for spec in architecture.graph.parameters]
    values = [
        k + scale * (1 + k) * torch.randn(count, *shape)
        for k, shape in enumerate(shapes)
    ]
    return NetworkStack(architecture, values)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_every_tensor_has_mean_0_and_std_1_over_all_that_it_was_fitted_to():
    some = stack(2, 5, 4, 1)
    others = stack(2, 5, 4, 1, count=7)
    standardise = Standardise(some.architecture)
    standardise.fit(iter([some, others]))
    for pair in zip(standardise(some), standardise(others), strict=True):
        joined = torch.cat([value.flatten() for value in pair])
        assert joined.mean().abs() < 1e-5
        assert abs(joined.std(correction=0) - 1) < 1e-5


def test_one_number_for_a_tensor_so_that_neurons_may_still_change_places():
    some = stack(2, 5, 4, 1)
    standardise = Standardise(some.architecture)
    standardise.fit([some])
    weight = some.params[2]
    found = standardise(some)[2]
    slope = (found[0, 0, 0] - found[1, 2, 3]) / (weight[0, 0, 0] - weight[1, 2, 3])
    torch.testing.assert_close(found, (weight - weight.mean()) * slope)


def test_before_a_fit_nothing_changes():
    some = stack(2, 3, 1)
    assert all(map(torch.equal, Standardise(some.architecture)(some), some.params))


def test_what_never_differs_becomes_zero():
    some = stack(2, 3, 1)
    some.params[1].fill_(0.25)
    standardise = Standardise(some.architecture)
    standardise.fit([some])
    assert not standardise(some)[1].any()


def test_other_parameters_are_refused():
    deep = stack(2, 5, 4, 1)
    flat = stack(2, 5, 1)
    message = "expected networks with parameters .*layers.2.bias; got .*layers.1.bias$"
    with pytest.raises(ValueError, match=message):
        Standardise(deep.architecture)(flat)


def test_without_networks_there_is_no_fit():
    with pytest.raises(
        ValueError, match="expected networks to take statistics from; got none"
    ):
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
        joined = torch.cat([value.flatten() for value in same])
        assert joined.mean().abs() < 1e-5
        assert abs(joined.std(correction=0) - 1) < 1e-5


def test_a_kind_that_was_not_there_takes_the_statistics_of_all():
    deep = stack(2, 5, 4, 1)
    flat = stack(2, 5, 1)
    standardise = Standardise()
    standardise.fit([flat])
    everything = torch.cat([p.flatten() for p in flat.params])
    expected = (deep.params[2] - everything.mean()) / everything.std(correction=0)
    torch.testing.assert_close(standardise(deep)[2], expected)
