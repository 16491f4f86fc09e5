"""Permuting hidden neurons permutes the updates of the rule in the same way, in
float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from ngopt import build_graph
from ngopt.functional import Hyper, update_all
from ngopt.roles.from_graph import roles_of
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap
from tests.automorphisms import automorphisms, subproducts
from tests.equivariance import permute, random_permutations
from tests.networks import mlp


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True, dropout=0.0)
        self.out = nn.Linear(8, 7)

    def forward(self, x):
        return self.out(self.layer(self.tokens(x)))[:, -1]


def wide_cnn():
    """The second convolution has 36 * 9 columns: kernel and channels are apart."""
    return nn.Sequential(
        nn.Conv2d(2, 36, 3), nn.ReLU(), nn.Conv2d(36, 5, 3), nn.Tanh(),
        nn.Conv2d(5, 4, 2, groups=1),
        nn.Flatten(), nn.Linear(4 * 9, 3),
    )  # fmt: skip


def images(step, size=4):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 2, 8, 8, generator=generator, dtype=torch.float64)


def vectors(step, size=4):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 6, generator=generator, dtype=torch.float64)


def texts(step, size=4):
    return torch.randint(7, (size, 5), generator=torch.Generator().manual_seed(step))


def training(model, inputs, params, rule, steps):
    """Parameters after training with gradients of the network itself: few examples, low
    rank."""
    names = [name for name, _ in model.named_parameters()]
    state = rule.init(params)
    hyper = Hyper([1.0] * len(params), [1.0] * len(params))
    for step in range(steps):
        params = [p.detach().requires_grad_() for p in params]
        x = inputs(step)
        out = functional_call(model, dict(zip(names, params, strict=True)), (x,))
        loss = F.cross_entropy(out, torch.arange(len(x)) % out.shape[1])
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            deltas, state = update_all(rule, grads, state, params, hyper)
            params = [p + d for p, d in zip(params, deltas, strict=True)]
    return params


def assert_moves_with(model, inputs, graph, moves, config, steps=12):
    rule = Soap(config).bind(graph)
    generator = torch.Generator().manual_seed(0)
    start = [
        p.detach() + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for p in model.parameters()
    ]
    plain = training(model, inputs, start, rule, steps)
    for move in moves:
        expected = move(plain)
        assert any(
            (e - p).abs().max() > 1e-3 for e, p in zip(expected, plain, strict=True)
        )
        found = training(model, inputs, move(start), rule, steps)
        for e, f in zip(expected, found, strict=True):
            torch.testing.assert_close(f, e, rtol=0, atol=1e-7)


CASES = {
    "mlp": (partial(mlp, 6, 9, 8, 3), vectors),
    "cnn": (wide_cnn, images),
    "transformer": (Transformer, texts),
}


def the_case(name):
    torch.manual_seed(0)
    make, inputs = CASES[name]
    model = make().double()
    return model, inputs, build_graph(model, inputs(0))


IN_PIECES = pytest.param(
    SoapConfig(max_factor_size=6, precondition_frequency=3),
    marks=pytest.mark.xfail(
        reason="rows too long for a factor are cut, of hidden neurons too", strict=True
    ),
    id="in pieces",
)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "config",
    [
        SoapConfig(),
        SoapConfig(precondition_frequency=3, factor_memory_ratio=1.0),
        IN_PIECES,
    ],
)
def test_training_moves_with_the_neurons(name, config):
    model, inputs, graph = the_case(name)
    found = automorphisms(graph)
    assert found
    moves = [partial(a.move, graph) for a in subproducts(found, 2)]
    assert_moves_with(model, inputs, graph, moves, config)


def test_heads_are_exchanged():
    """What `subproducts` may leave out: both heads of a layer, with all that belongs to
    them."""
    model, inputs, graph = the_case("transformer")
    exchanges = [a for a in automorphisms(graph) if self_moves_heads(a, graph)]
    assert exchanges
    assert_moves_with(
        model, inputs, graph, [partial(exchanges[0].move, graph)], SoapConfig()
    )
    rule = Soap().bind(graph)
    (packed,) = next(
        rows
        for rows, role in zip(rule.layouts, roles_of(rule.graph), strict=True)
        if "in_proj_w" in role.name
    )
    assert [(a.name, a.parts, a.size) for a in packed.axes[:1]] == [("rows", 6, 4)]


def self_moves_heads(symmetry, graph):
    """Whether a row of one head of the queries comes from the other."""
    names = [spec.name for spec in graph.parameters]
    values = [torch.zeros(spec.shape) for spec in graph.parameters]
    weight = values[names.index("layer.self_attn.in_proj_weight")]
    weight[:4] = 1
    moved = symmetry.move(graph, values)[names.index("layer.self_attn.in_proj_weight")]
    return not torch.equal(moved, weight)


def test_by_the_order_of_neurons_in_groups():
    model, inputs, graph = the_case("cnn")
    permutations = random_permutations(graph, torch.Generator().manual_seed(0))
    move = partial(permute, graph, permutations=permutations)
    assert_moves_with(model, inputs, graph, [move], SoapConfig())
    layouts = Soap().bind(graph).layouts[2]
    assert [(axis.name, axis.size) for axis in layouts[0].axes] == [
        ("rows", 5),
        ("kernel", 9),
        ("channels", 36),
    ]


def test_a_dead_unit_moves_with_its_place():
    """The null space of the factors, too, belongs to neurons."""
    model, inputs, graph = the_case("mlp")
    with torch.no_grad():
        model[0].bias[[1, 4]] = -100
    permutations = random_permutations(graph, torch.Generator().manual_seed(0))
    assert_moves_with(
        model,
        inputs,
        graph,
        [partial(permute, graph, permutations=permutations)],
        SoapConfig(),
    )


def test_how_a_matrix_lies_in_memory_changes_nothing():
    """`Conv1D` of transformers holds (inputs, outputs), `Linear` the transposed."""
    linear = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    turned = nn.Sequential(Conv1D(9, 6), nn.Tanh(), Conv1D(3, 9)).double()
    models = linear, turned
    values = [p.detach().clone() for p in linear.parameters()]
    values = values, [p.mT.contiguous() if p.dim() == 2 else p for p in values]
    found = []
    for model, params in zip(models, values, strict=True):
        rule = Soap().bind(build_graph(model, vectors(0)), total_steps=40)
        found.append(training(model, vectors, params, rule, 15))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y.mT if y.dim() == 2 else y)
