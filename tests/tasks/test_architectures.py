import pytest
import torch

from tasks.architectures import Stack, architecture_of
from tasks.shards import Networks
from tasks.siren import FREQUENCY, Siren

SIREN = {"kind": "siren", "widths": [2, 5, 4, 1]}


def stacked(count):
    models = [Siren(SIREN["widths"]) for _ in range(count)]
    names = [name for name, _ in models[0].named_parameters()]
    params = {name: torch.stack([m.get_parameter(name).detach() for m in models]) for name in reversed(names)}
    return models, Networks(SIREN, params, {"label": torch.arange(count)})


def test_a_stack_has_the_parameters_in_the_order_of_the_graph_whatever_that_of_the_file_is():
    models, networks = stacked(3)
    stack = Stack.of(networks)
    assert [p.shape[1:] for p in stack.params] == [p.shape for p in models[0].parameters()]
    assert stack.count == 3
    assert torch.equal(stack.select([2]).params[1][0], models[2].layers[0].bias)


def test_neurons_of_a_siren_are_those_of_each_network_by_hand_one_entry_for_each_group():
    models, networks = stacked(3)
    stack = Stack.of(networks)
    points = torch.rand(7, 2)
    found = stack.architecture.neurons(stack.params, points)
    assert [x.shape for x in found] == [(3, 7, group.size) for group in stack.architecture.graph.groups]
    first = torch.sin(FREQUENCY * models[1].layers[0](points))
    assert torch.allclose(found[1][1], first, atol=1e-5)
    assert torch.allclose(stack.architecture.outputs(stack.params, points)[1], models[1](points), atol=1e-5)


def test_of_one_description_there_is_one_architecture_and_making_it_draws_no_random_numbers():
    state = torch.random.get_rng_state()
    architecture = architecture_of({"kind": "siren", "widths": [2, 3, 1]})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert architecture_of({"widths": [2, 3, 1], "kind": "siren"}) is architecture


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind: expected one of siren.*got 'nerf'"):
        architecture_of({"kind": "nerf"})
