"""Networks of the `transformers` package come out whole."""

import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")
pytest.importorskip("transformers")

from ngopt import build_graph
from ngopt.graph.connectivity import components, unconnected
from tests.graph_checks import assert_inverse
from tests.ngopt.roles.role_labels import TRANSFORMERS, network


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_traced_whole(name):
    """With labels and a mask among the inputs, and with caches of keys among the
    outputs."""
    model, example = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = build_graph(model, example)
    assert graph.unplaced == () and unconnected(graph) == []
    assert len(set(components(graph))) == 1
    assert_inverse(graph, [p.detach() for p in model.parameters()])
    heads = sum(group.size for group in graph.groups if group.kind == "head")
    assert heads == {"t5": 6}.get(name, 2) * {"llama": 4}.get(name, 3)


def test_keys_and_values_of_a_cache_are_no_outputs():
    graph = build_graph(*network("gpt2"))
    outputs = [group.name for group in graph.groups if group.role == "output"]
    assert outputs == ["transformer.wte"]


class Cache:
    """An object in an output that is no tensor."""

    def __init__(self, keys):
        self.keys = keys


class Keeping(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return {"y": y, "kept": Cache(y), "count": 3}


def test_a_trace_removes_its_hook():
    model = Keeping(3, 4)
    graph = build_graph(model, torch.randn(2, 3))
    assert [group.role for group in graph.groups] == ["input", "output"]
    assert not model._forward_hooks
    assert isinstance(model(torch.randn(2, 3))["kept"], Cache)
