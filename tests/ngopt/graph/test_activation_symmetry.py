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
def test_what_all_functions_of_a_neuron_allow_together(function, expected):
    graph = build_graph(Between(function), torch.randn(4, 3))
    assert [kind for kind in symmetries(graph) if kind] == (
        [expected] if expected else []
    )


def test_of_several_biases_of_a_sine_neuron_one_is_moved():
    torch.manual_seed(0)
    model = Between(lambda x: torch.sin(FREQUENCY * x)).double()
    inputs = torch.randn(4, 3, dtype=torch.float64)
    graph = build_graph(model, inputs)
    params = [p.detach() for p in model.parameters()]
    found, _ = canonical(graph, params, FREQUENCY)
    torch.testing.assert_close(
        outputs(model, found, inputs), model(inputs), rtol=1e-9, atol=1e-11
    )
    bias = found[1] + found[3]
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
    for own, following in pairwise(names):
        n = len(values[f"{own}.weight"])
        kind = graph.groups[
            next(
                g for g, group in enumerate(graph.groups) if group.name.startswith(own)
            )
        ].activation
        signs = 2.0 * torch.randint(2, (n,), generator=generator) - 1
        inward = outward = signs.double()
        if kind in ("relu", "leaky_relu"):
            inward = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
            outward = 1 / inward
        values[f"{own}.weight"] *= inward.view(
            -1, *[1] * (values[f"{own}.weight"].ndim - 1)
        )
        values[f"{own}.bias"] *= inward
        if kind == "sin":
            periods = torch.randint(-2, 3, (n,), generator=generator).double()
            values[f"{own}.bias"] += periods * torch.pi / FREQUENCY
            outward = outward * (1 - 2.0 * (periods % 2))
        weight = values[f"{following}.weight"]
        repeats = weight[0].numel() * getattr(layers[following], "groups", 1) // n
        if isinstance(layers[following], nn.Conv2d):
            parts = outward.view(layers[following].groups, 1, -1, 1, 1)
            weight.copy_(
                (weight.unflatten(0, (layers[following].groups, -1)) * parts).flatten(
                    0, 1
                )
            )
        else:
            weight *= outward.repeat_interleave(repeats)
    return list(values.values())


def test_what_is_known_of_groups(case):
    _, _, graph, expected = case
    assert [kind for kind in symmetries(graph) if kind] == expected


def test_the_function_stays(case):
    model, inputs, graph, _ = case
    params = [p.detach() for p in model.parameters()]
    found, _ = canonical(graph, params, FREQUENCY)
    torch.testing.assert_close(
        outputs(model, found, inputs), model(inputs), rtol=1e-9, atol=1e-11
    )
    assert any(not torch.allclose(a, b) for a, b in zip(found, params, strict=True))


def test_networks_of_the_same_function_have_one_form(case):
    model, inputs, graph, _ = case
    params = [p.detach() for p in model.parameters()]
    other = changed(graph, model, torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        outputs(model, other, inputs), model(inputs), rtol=1e-9, atol=1e-11
    )
    for a, b in zip(
        canonical(graph, params, FREQUENCY).params,
        canonical(graph, other, FREQUENCY).params,
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_phases_lie_within_a_quarter_period():
    torch.manual_seed(0)
    model = Siren((2, 40, 40, 1)).double()
    graph = build_graph(model, torch.randn(3, 2, dtype=torch.float64))
    params = [10 * p.detach() for p in model.parameters()]
    found = canonical(graph, params, FREQUENCY).params
    for bias in (found[1], found[3]):
        assert ((bias >= 0) & (bias <= torch.pi / 2 / FREQUENCY + 1e-12)).all()
    assert (found[5] < 0).any() or torch.equal(found[5], params[5])


def test_updates_of_one_form_are_those_of_the_other_times_factors(case):
    model, inputs, graph, _ = case
    params = [p.detach() for p in model.parameters()]
    found, factors = canonical(graph, params, FREQUENCY)
    torch.manual_seed(2)
    updates = [1e-3 * torch.randn_like(p) for p in params]
    ours = outputs(model, [p + u for p, u in zip(params, updates, strict=True)], inputs)
    theirs = [p + f * u for p, f, u in zip(found, factors, updates, strict=True)]
    torch.testing.assert_close(
        outputs(model, theirs, inputs), ours, rtol=1e-9, atol=1e-11
    )


def test_stacked_networks(case):
    model, _, graph, _ = case
    generator = torch.Generator().manual_seed(3)
    several = [
        [p.detach() for p in model.parameters()],
        changed(graph, model, generator),
    ]
    several.append([p + 0.1 for p in several[0]])
    stacked = [torch.stack(some) for some in zip(*several, strict=True)]
    found = canonical(graph, stacked, FREQUENCY, batch_dims=1)
    for number, params in enumerate(several):
        own = canonical(graph, params, FREQUENCY)
        for a, b in zip(
            (*found.params, *found.factors), (*own.params, *own.factors), strict=True
        ):
            torch.testing.assert_close(a[number], b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("what", ["norm", "residual", "gelu", "tied"])
def test_what_has_no_such_symmetry(what):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.last = nn.Linear(4, 2)
            self.norm = nn.LayerNorm(4)

        def forward(self, x):
            if what == "norm":
                return self.last(self.norm(self.first(x)).relu())
            if what == "gelu":
                return self.last(nn.functional.gelu(self.first(x)))
            if what == "tied":
                return self.last(self.first(self.first(x).relu()).relu())
            x = self.first(x).relu()
            return self.last(x + self.second(x).relu())

    graph = build_graph(Net(), torch.randn(3, 4))
    assert not any(symmetries(graph))
