from math import factorial

import pytest
import torch

from tasks.networks.architectures import NetworkStack, architecture_of, make_module
from tasks.networks.cnn import cnn_description
from tasks.networks.input_network import ACTIVATIONS
from tasks.networks.siren import FREQUENCY, Siren
from tasks.shards import Networks
from tests.automorphisms import automorphisms, count_automorphisms
from tests.equivariance import assert_function_respects
from tests.tasks.stacks import siren_stack

SIREN = {"kind": "siren", "widths": [2, 5, 4, 1]}


def wild(norm=None, dimensions=2):
    """Layers that differ in width, a skip between strides."""
    return cnn_description(
        channels=[3, 4, 6, 8],
        kernels=[3, 5, 3],
        strides=[2, 2, 1],
        activations=["gelu", "silu", "sigmoid"],
        skips=[None, 0, 1],
        norm=norm,
        dimensions=dimensions,
    )


ARCHITECTURES = {
    "siren": SIREN,
    "cnn": wild(),
    "batch norm": wild("batch"),
    "group norm": wild("group"),
    "one dimension": wild("group", 1),
    "deep sets": {
        "kind": "deep-sets", "channels": 3, "widths": [8, 6, 5, 7],
        "activation": "relu",
    },
    "vit": {
        "kind": "vit", "channels": 3, "width": 8, "depth": 2, "heads": 2, "patch": 4,
    },
}  # fmt: skip
# kinds of groups without activations
WITHOUT_ACTIVATIONS = ("group", "product")


def stacked(count):
    models = [Siren(SIREN["widths"]) for _ in range(count)]
    names = [name for name, _ in models[0].named_parameters()]
    params = {
        name: torch.stack([m.get_parameter(name).detach() for m in models])
        for name in reversed(names)
    }
    return models, Networks(SIREN, params, {"label": torch.arange(count)})


def test_a_stack_has_the_parameters_in_the_order_of_the_graph():
    models, networks = stacked(3)
    stack = NetworkStack.from_networks(networks)
    shapes = [p.shape for p in models[0].parameters()]
    assert [p.shape[1:] for p in stack.params] == shapes
    assert stack.count == 3
    assert torch.equal(stack.select([2]).params[1][0], models[2].layers[0].bias)


def test_activations_of_a_siren_by_hand():
    models, networks = stacked(3)
    architecture, params = NetworkStack.from_networks(networks)
    points = torch.rand(7, 2)
    activations = architecture.group_activations(params, points)
    sizes = [group.size for group in architecture.graph.groups]
    assert [x.shape for x in activations] == [(3, 7, size) for size in sizes]
    first = torch.sin(FREQUENCY * models[1].layers[0](points))
    assert torch.allclose(activations[1][1], first, atol=1e-5)
    outputs = architecture.outputs(params, points)[1]
    assert torch.allclose(outputs, models[1](points), atol=1e-5)


def inputs_of(module, count):
    return torch.rand(count, *module.example_input().shape[1:])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_group_of_neurons_has_activations(name):
    architecture = architecture_of(ARCHITECTURES[name])
    graph, module = architecture.graph, architecture.module
    assert not graph.unplaced
    params = [torch.stack([p.detach(), 1.1 * p.detach()]) for p in module.parameters()]
    activations = architecture.group_activations(params, inputs_of(module, 3))
    for group, values in zip(graph.groups, activations, strict=True):
        if values is None:
            assert group.kind in WITHOUT_ACTIVATIONS
        else:
            assert values.shape[:3] == (2, 3, group.size), group.name


@pytest.mark.parametrize(
    "name", ["cnn", "batch norm", "group norm", "one dimension", "vit"]
)
def test_activations_are_outputs_of_layers_or_functions_of_them(name):
    architecture = architecture_of(ARCHITECTURES[name])
    graph, module = architecture.graph, architecture.module
    outputs = {}

    def keep(name):
        return lambda module, inputs, output: outputs.update({name: output})

    parts = module.named_modules()
    handles = [part.register_forward_hook(keep(name)) for name, part in parts]
    activations = module.group_activations(inputs_of(module, 3))
    for handle in handles:
        handle.remove()
    compared = []
    for number, group in enumerate(graph.groups):
        is_sum = "residual" in {block.kind for block in graph.blocks_into(number)}
        if group.name not in outputs or is_sum or group.name == "patch":
            continue
        output = ACTIVATIONS[group.activation or "none"](outputs[group.name])
        of_tokens = output.shape != activations[number].shape
        expected = output.mT if of_tokens else output
        torch.testing.assert_close(activations[number], expected)
        compared.append(group.name)
    assert len(compared) >= len(graph.groups) / 3, compared


# neurons that a skip joins move together
SYMMETRIES = {
    "cnn": factorial(4) * factorial(2) * factorial(2),
    "batch norm": factorial(4) * factorial(2) * factorial(2),
    # within halves of 4, 6 and 8 neurons: 0 and 1, 4 and 5, 6 and 7
    "group norm": 2 * 2 * 2,
    "one dimension": 2 * 2 * 2,
    "deep sets": factorial(8) * factorial(6) * factorial(5) * factorial(7),
    # the residual stream; in each block heads, neurons of queries with keys and of
    # values, the MLP
    "vit": factorial(8)
    * (2 * factorial(4) ** 2 * factorial(4) ** 2 * factorial(16)) ** 2,
}


@pytest.mark.parametrize("name", SYMMETRIES)
def test_the_symmetries_of_the_graph_are_those_of_the_network(name):
    description = dict(ARCHITECTURES[name])
    torch.manual_seed(0)
    module = make_module(description).double()
    example = torch.randn(2, *module.example_input().shape[1:], dtype=torch.float64)
    graph = architecture_of(description).graph
    assert count_automorphisms(graph) == SYMMETRIES[name]
    assert_function_respects(module, example, graph, automorphisms(graph))


def test_the_output_group_has_the_outputs():
    for description in ARCHITECTURES.values():
        architecture = architecture_of(description)
        module = architecture.module
        inputs = inputs_of(module, 3)
        params = [p.detach()[None] for p in module.parameters()]
        outputs = architecture.outputs(params, inputs)[0]
        torch.testing.assert_close(outputs, module(inputs))
        assert architecture.graph.groups[module.output_group].role == "output"


def test_equal_descriptions_have_one_architecture_made_without_random_numbers():
    state = torch.random.get_rng_state()
    architecture = architecture_of({"kind": "siren", "widths": [2, 3, 1]})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert architecture_of({"widths": [2, 3, 1], "kind": "siren"}) is architecture


@pytest.mark.parametrize(
    "description, message",
    [
        ({"kind": "nerf"}, "kind: expected one of siren.*got 'nerf'"),
        (
            {"kind": "siren", "widths": [2, 3, 1], "depth": 3},
            "architecture: siren: .*unexpected keyword argument 'depth'",
        ),
    ],
)
def test_unknown_kinds_and_arguments_are_named(description, message):
    with pytest.raises(ValueError, match=message):
        architecture_of(description)


@pytest.mark.parametrize(
    "bias, message",
    [
        (torch.ones(4, 2), r"shape \(3,\); got \(2,\)"),
        (torch.full((4, 3), torch.inf), "finite numbers"),
        (None, "got none"),
    ],
)
def test_unsuitable_parameters_are_named(bias, message):
    architecture, values = siren_stack(2, 3, 1)
    params = dict(zip(architecture.names, values, strict=True))
    params["layers.0.bias"] = bias
    if bias is None:
        del params["layers.0.bias"]
    with pytest.raises(ValueError, match=f"layers.0.bias: .*{message}"):
        NetworkStack.from_networks(Networks(architecture.description, params, {}))
