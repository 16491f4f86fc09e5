import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.graph.activation_symmetry import ACTIVATIONS
from ngopt.graph.inference.from_sequential import FUNCTION_MODULES, sequential_graph
from tests.ngopt.graph.test_neural_graph import topology


@pytest.mark.parametrize("kind", FUNCTION_MODULES, ids=lambda kind: kind.__name__)
def test_a_sequential_network_is_read_as_it_is_traced(kind):
    name = FUNCTION_MODULES[kind]
    is_pool = "Pool" in kind.__name__
    is_softmax = kind in (nn.Softmax, nn.LogSoftmax)
    module = kind(*(1,) * (is_pool or is_softmax))
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), module, nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)
    )
    read = sequential_graph(model)
    traced = build_graph(model, torch.randn(2, 3, 1, 1))
    assert topology(read) == topology(traced)
    activations = [g.activation for g in read.groups]
    assert activations == [g.activation for g in traced.groups]
    assert activations == [None, name if name in ACTIVATIONS else "tanh", None]
    assert [g.symmetry for g in read.groups] == [g.symmetry for g in traced.groups]


class Mirrored(nn.Module):
    """Adds to each neuron the one at its place from the end."""

    def forward(self, x):
        return x + x.flip(1)


@pytest.mark.parametrize(
    "module",
    [nn.ChannelShuffle(2), nn.GroupNorm(2, 4, affine=False), Mirrored()],
    ids=["shuffle", "norm", "own"],
)
def test_modules_that_may_mix_neurons_are_traced(module):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), module, nn.Conv2d(4, 2, 1))
    assert sequential_graph(model) is None
    assert build_graph(model) == build_graph(model, torch.randn(2, 3, 5, 5))


def test_sequential_networks_with_shared_or_other_layers_are_traced():
    layer = nn.Linear(4, 4)
    for layers in ((layer, nn.ReLU(), layer), (layer, nn.BatchNorm1d(4))):
        model = nn.Sequential(*layers)
        assert sequential_graph(model) is None
        assert build_graph(model) == build_graph(model, torch.randn(2, 4))
