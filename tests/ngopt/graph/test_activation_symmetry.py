"""The canonical form computes the same function,
and is the same for all networks that differ by symmetries."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call

from ngopt import build_graph
from ngopt.graph import canonical, symmetries
from tasks.networks.siren import FREQUENCY, Siren
from tests.networks import FromFunction


def tanh_mlp():
    return nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)
    )


def relu_cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 2, groups=2), nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False),
    )  # fmt: skip


NETWORKS = {
    "siren": (lambda: Siren((2, 6, 5, 3)), (4, 2), ["phase", "phase"]),
    "tanh": (tanh_mlp, (4, 3), ["sign", "sign"]),
    "relu": (relu_cnn, (2, 2, 5, 5), ["scale", "scale", "scale"]),
}
EXACT = {"rtol": 1e-9, "atol": 1e-11}


class Between(nn.Module):
    """A function of the sum of two linear maps, and a layer behind it."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first = nn.ModuleList([nn.Linear(3, 5), nn.Linear(3, 5)])
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.function(self.first[0](x) + self.first[1](x)))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.relu(), "scale"),
        (lambda x: 2 * x.relu() / 3, "scale"),
        (lambda x: x.relu().tanh(), None),
        (lambda x: x.relu() + 1, None),
        (lambda x: x * x.relu(), None),
        (lambda x: 1 / x.relu(), None),
        (lambda x: x.tanh().tanh(), "sign"),
        (lambda x: 3 / x.tanh(), None),
        (lambda x: (2 * x).sin() * 3, "phase"),
        (lambda x: x.sin().sin(), "sign"),
        (lambda x: x + x.sin(), None),
        (lambda x: x - x.sin(), None),
        (lambda x: x.sin() * x.sin(), None),
        (lambda x: torch.nn.functional.dropout(x, 0.5).sin(), "phase"),
        (lambda x: x, None),
    ],
)
def test_symmetry_under_all_functions_of_a_neuron(function, expected):
    graph = build_graph(Between(function), torch.randn(4, 3))
    kinds = [kind for kind in symmetries(graph) if kind]
    assert kinds == ([expected] if expected else [])


def test_one_of_several_biases_of_a_sine_neuron_is_moved():
    torch.manual_seed(0)
    model = Between(lambda x: torch.sin(FREQUENCY * x)).double()
    inputs = torch.randn(4, 3, dtype=torch.float64)
    graph = build_graph(model, inputs)
    form, _ = canonical(graph, [p.detach() for p in model.parameters()], FREQUENCY)
    torch.testing.assert_close(outputs(model, form, inputs), model(inputs), **EXACT)
    bias = form[1] + form[3]
    assert ((bias >= 0) & (bias <= torch.pi / 2 / FREQUENCY + 1e-12)).all()


@pytest.fixture(params=NETWORKS)
def case(request):
    make, shape, expected = NETWORKS[request.param]
    torch.manual_seed(0)
    model = make().double()
    inputs = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)  # so that phases are beyond half a period
    return model, inputs, build_graph(model, inputs), expected


def outputs(model, params, inputs):
    names = [name for name, _ in model.named_parameters()]
    return functional_call(model, dict(zip(names, params, strict=True)), (inputs,))


def changed(graph, model, generator):
    """Parameters of another network with the same function,
    changed layer by layer as symmetries allow."""
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = [name.removesuffix(".weight") for name in values if name.endswith("weight")]
    layers = dict(model.named_modules())
    for layer, following in pairwise(names):
        weight, bias = values[f"{layer}.weight"], values[f"{layer}.bias"]
        n = len(weight)
        kind = next(g.activation for g in graph.groups if g.name.startswith(layer))
        signs = 2.0 * torch.randint(2, (n,), generator=generator) - 1
        inward = outward = signs.double()
        if kind in ("relu", "leaky_relu"):
            inward = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
            outward = 1 / inward
        weight *= inward.view(-1, *[1] * (weight.ndim - 1))
        bias *= inward
        if kind == "sin":
            periods = torch.randint(-2, 3, (n,), generator=generator).double()
            bias += periods * torch.pi / FREQUENCY
            outward = outward * (1 - 2.0 * (periods % 2))
        weight = values[f"{following}.weight"]
        if isinstance(layers[following], nn.Conv2d):
            groups = layers[following].groups
            grouped = weight.unflatten(0, (groups, -1))  # shares memory
            grouped *= outward.view(groups, 1, -1, 1, 1)
        else:
            weight *= outward.repeat_interleave(weight[0].numel() // n)
    return list(values.values())


def test_symmetries_of_groups(case):
    _, _, graph, expected = case
    assert [kind for kind in symmetries(graph) if kind] == expected


def test_networks_of_the_same_function_have_one_form_which_computes_it(case):
    model, inputs, graph, _ = case
    params = [p.detach() for p in model.parameters()]
    other = changed(graph, model, torch.Generator().manual_seed(1))
    form, _ = canonical(graph, params, FREQUENCY)
    other_form, _ = canonical(graph, other, FREQUENCY)
    torch.testing.assert_close(form, other_form, **EXACT)
    for network in (form, other):
        torch.testing.assert_close(
            outputs(model, network, inputs), model(inputs), **EXACT
        )
        assert not all(map(torch.allclose, network, params))


def test_phases_lie_within_a_quarter_period():
    torch.manual_seed(0)
    model = Siren((2, 40, 40, 1)).double()
    graph = build_graph(model, torch.randn(3, 2, dtype=torch.float64))
    params = [10 * p.detach() for p in model.parameters()]
    form = canonical(graph, params, FREQUENCY).params
    for bias in (form[1], form[3]):
        assert ((bias >= 0) & (bias <= torch.pi / 2 / FREQUENCY + 1e-12)).all()
    assert (form[5] < 0).any() or torch.equal(form[5], params[5])


def test_updates_of_the_canonical_form_are_multiplied_by_factors(case):
    model, inputs, graph, _ = case
    params = [p.detach() for p in model.parameters()]
    form, factors = canonical(graph, params, FREQUENCY)
    torch.manual_seed(2)
    updates = [1e-3 * torch.randn_like(p) for p in params]
    ours = outputs(model, [p + u for p, u in zip(params, updates, strict=True)], inputs)
    theirs = [p + f * u for p, f, u in zip(form, factors, updates, strict=True)]
    torch.testing.assert_close(outputs(model, theirs, inputs), ours, **EXACT)


def test_stacked_networks(case):
    model, _, graph, _ = case
    generator = torch.Generator().manual_seed(3)
    params = [p.detach() for p in model.parameters()]
    networks = [params, changed(graph, model, generator), [p + 0.1 for p in params]]
    stacked = [torch.stack(values) for values in zip(*networks, strict=True)]
    together = canonical(graph, stacked, FREQUENCY, batch_dims=1)
    for number, params in enumerate(networks):
        expected = canonical(graph, params, FREQUENCY)
        for part, alone in zip(together, expected, strict=True):
            of_network = [value[number] for value in part]
            torch.testing.assert_close(of_network, list(alone), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.last(m.norm(m.first(x)).relu()),
        lambda m, x: m.last((h := m.first(x).relu()) + m.second(h).relu()),
        lambda m, x: m.last(nn.functional.gelu(m.first(x))),
        lambda m, x: m.last(m.first(m.first(x).relu()).relu()),
    ],
    ids=["norm", "residual", "gelu", "tied"],
)
def test_networks_without_symmetry(function):
    layers = {"first": (4, 4), "second": (4, 4), "last": (4, 2)}
    model = FromFunction(function, **layers, norm=nn.LayerNorm(4))
    assert not any(symmetries(build_graph(model, torch.randn(3, 4))))


def test_parameters_by_name_have_the_form_of_those_in_order():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    graph = build_graph(model, torch.randn(3, 2))
    by_name = canonical(graph, dict(model.named_parameters()))
    in_order = canonical(graph, list(model.parameters()))
    for x, y in zip(by_name.params, in_order.params, strict=True):
        assert torch.equal(x, y)
