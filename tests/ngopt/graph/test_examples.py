"""Example inputs and parameters that `build_graph` refuses, or warns of."""

import pytest
import torch
from torch import nn

from ngopt import build_graph
from tests.graph_checks import assert_equal
from tests.networks import FromFunction

MLP = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
CNN = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))


@pytest.mark.parametrize(
    ("model", "shape", "layer"),
    [
        (MLP, (16,), "linear"),
        (nn.Sequential(nn.LayerNorm(16), MLP), (16,), "linear"),
        (CNN, (3, 8, 8), "conv2d"),
    ],
)
def test_an_input_without_a_batch_axis_warns(model, shape, layer):
    message = "expected an example_input with a batch axis first; got shape "
    with pytest.warns(UserWarning, match=message) as warned:
        build_graph(model, torch.randn(shape))
    (one,) = warned
    assert f"{shape}, which {layer} reads without one" in str(one.message)
    assert one.filename == __file__
    build_graph(model, torch.randn(1, *shape))  # without a warning


def test_a_vector_of_the_network_itself_has_no_batch_axis():
    parts = {"code": nn.Parameter(torch.randn(4)), "scale": (4, 3), "layer": (5, 3)}
    model = FromFunction(lambda m, x: m.layer(x) * m.scale(m.code), **parts)
    build_graph(model, torch.randn(2, 5))


@pytest.mark.parametrize(("model", "shape"), [(MLP, (4, 16)), (CNN, (2, 3, 8, 8))])
def test_integers_cannot_be_multiplied_by_weights(model, shape):
    message = "Sequential does not run on the example input: "
    with pytest.raises(ValueError, match=message):
        build_graph(model, torch.ones(shape, dtype=torch.int64))


def test_a_state_dict_is_an_error():
    with pytest.raises(ValueError, match=r"got OrderedDict. Pass the .items\(\)"):
        build_graph(MLP.state_dict())
    graph = build_graph(MLP.state_dict().items())
    values = MLP.state_dict()
    in_order = [values[p.name] for p in graph.parameters]
    assert_equal(graph.scatter(graph.gather(values)), in_order)
    del values[graph.parameters[1].name]
    with pytest.raises(ValueError, match=f"got none for {graph.parameters[1].name}"):
        graph.gather(values)
