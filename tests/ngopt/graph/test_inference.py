from functools import cache

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.graph_checks import assert_inverse, edges_with, random_values
from tests.networks import FromFunction, cnn, mlp
from tests.zoo import GPT, Attention
from tests.zoo.convolutional import Residual


def topology(graph):
    """What is connected to what, whatever groups are called and in whatever order they
    are listed."""
    behind = {b.target: b.view for b in graph.weights}

    def group(i):
        return graph.groups[i].size, graph.groups[i].role, behind.get(i)

    blocks = {
        (b.view, b.shape, b.slot_shape, group(b.source), group(b.target))
        for b in graph.weights
    }
    return blocks, {(b.view, group(b.group)) for b in graph.biases}


def first(*layers: nn.Module):
    """An embedding as the first layer, whose input torch.export must be given."""
    return FromFunction(lambda m, x: m.layers(x), layers=nn.Sequential(*layers))


SEQUENTIAL = {
    "mlp": (mlp(5, 8, 8, 8, 3), torch.randn(2, 5)),
    "cnn": (cnn(), torch.randn(2, 2, 16, 17)),
    "normed": (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.LayerNorm(4),
            nn.Linear(4, 2),
        ),
        torch.randn(2, 3, 9, 9),
    ),
    "depthwise": (
        nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6, bias=False),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 4, 1),
            nn.Flatten(), nn.Linear(4 * 49, 3),
        ),
        torch.randn(2, 3, 9, 9),
    ),
    "embedding": (
        first(nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(),
              nn.Linear(9, 11)),
        torch.randint(11, (2, 5)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("named", [False, True])
def test_parameters_alone_give_the_traced_topology(name, named):
    model, example = SEQUENTIAL[name]
    inferred = build_graph(model.named_parameters() if named else model.parameters())
    assert topology(inferred) == topology(build_graph(model, example))
    assert unconnected(inferred) == []


def wrong_edges(inferred, traced):
    """Weights that the inferred graph joins though no path of the traced one leads from
    one to the other."""
    ways = {}
    for block in traced.blocks:
        ways.setdefault(block.source, set()).add(block.target)
    reach = {}

    def reachable(group):
        if group not in reach:
            reach[group] = {group}
            for target in ways.get(group, ()):
                reach[group] |= reachable(target)
        return reach[group]

    ends = {}
    for block in traced.weights:
        ends.setdefault(block.view.parameter, []).append((block.source, block.target))
    into = {}
    for block in inferred.weights:
        into.setdefault(block.target, []).append(block.view.parameter)
    wrong = []
    names = [spec.name for spec in inferred.parameters]
    for block in inferred.weights:
        after = block.view.parameter
        for before in into.get(block.source, []):
            sources = {source for source, _ in ends[after]}
            if all(sources.isdisjoint(reachable(target)) for _, target in ends[before]):
                wrong.append((names[before], names[after]))
    return wrong


def big(name):
    models = pytest.importorskip("torchvision.models")
    if name == "vit":
        model = models.VisionTransformer(32, 8, 2, 4, 24, 48)
    else:
        model = models.get_model(name)
    return model, torch.randn(2, 3, 32, 32)


@cache
def traced_network(name):
    """A network and its traced graph."""
    model, example = {
        "gpt": lambda: (GPT(tokens=50, width=24), torch.randint(50, (2, 6))),
        "attention": lambda: (
            nn.Sequential(nn.Linear(5, 8), Attention(8, 2, fused=False)),
            torch.randn(2, 4, 5),
        ),
        "residual": lambda: (Residual(), torch.randn(2, 2, 8, 8)),
    }.get(name, lambda: big(name))()
    return model, build_graph(model, example)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "named"),
    [
        (name, named)
        for name in ("gpt", "vit", "resnet18", "resnet50", "residual")
        for named in (False, True)
    ]
    # without names this is the parameter list of an MLP
    + [("attention", True)],
)
def test_no_edge_is_wrong(name, named):
    model, traced = traced_network(name)
    inferred = build_graph(model.named_parameters() if named else model.parameters())
    assert wrong_edges(inferred, traced) == []
    assert_inverse(inferred, random_values(inferred))


def test_blocks_of_a_resnet_are_connected():
    """What is certain is connected: of a ResNet's 62 parameters no component is a
    single one but the stem's input."""
    model, _ = big("resnet18")
    graph = build_graph(model.named_parameters())
    sources = {b.source for b in graph.blocks}
    targets = {b.target for b in graph.blocks}
    joined = [b for b in graph.weights if b.source in targets or b.target in sources]
    assert len(joined) == len(graph.weights)
    assert len(graph.weights) == 41


def conv1d_block(width=6):
    """Names and shapes of a GPT-2 of transformers, whose weights are (n_in, n_out)."""
    layers = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    named = [("ln.weight", torch.ones(width)), ("ln.bias", torch.ones(width))]
    for name, shape in layers.items():
        named.append((f"{name}.weight", torch.zeros(shape)))
        named.append((f"{name}.bias", torch.zeros(shape[1])))
    return named


def test_the_output_axis_has_the_length_of_the_bias():
    parameters = [
        ("a.weight", torch.zeros(3, 5)),
        ("a.bias", torch.zeros(5)),
        ("b.weight", torch.zeros(5, 2)),
        ("b.bias", torch.zeros(2)),
    ]
    graph = build_graph(parameters)
    assert unconnected(graph) == []
    assert [group.size for group in graph.groups] == [3, 5, 2]
    assert [b.view.strides for b in graph.weights] == [(0, 1, 5), (0, 1, 2)]


def test_square_weights_of_conv1d_are_read_as_their_siblings():
    parameters = conv1d_block()
    # the same names with torch's linear layers
    linear = [(name, p.T if p.dim() == 2 else p) for name, p in parameters]
    # and the square layer alone, whose axes no other bias shows
    alone = [(name, p) for name, p in linear if "c_proj" in name and "attn" in name]
    for named, strides in ((parameters, (1, 6)), (linear, (6, 1)), (alone, (6, 1))):
        (block,) = edges_with(build_graph(named), "attn.c_proj.weight")
        assert block.view.strides[1:] == strides


def test_names_decide_where_order_cannot():
    """Without names, two vectors behind a bias-free weight are a norm;
    names distinguish a bias from a lone scale."""
    specs = [
        ("fc.weight", (4, 3)),
        ("fc.bias", (4,)),
        ("scale.weight", (4,)),
        ("out.weight", (2, 4)),
    ]
    tensors = [(name, torch.zeros(shape)) for name, shape in specs]
    named = build_graph(tensors)
    assert [b.view.parameter for b in named.biases] == [1]
    assert [b.view.parameter for b in named.blocks] == [0, 2, 3]
    unnamed = build_graph([t for _, t in tensors])
    assert [b.view.parameter for b in unnamed.blocks] == [0, 1, 3]
    assert [(b.view.parameter, b.kind) for b in unnamed.biases] == [(2, "beta")]
