import pytest
import torch
from torch import nn

from ngopt import build_graph
from tasks.models.pooling import AttentionPooling, common_outputs


def graph_of(*outputs):
    """An input of 3, and so many outputs in each of some groups."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(3, n) for n in outputs)

        def forward(self, x):
            return [head(x) for head in self.heads]

    return build_graph(Heads(), torch.randn(2, 3))


def states_of(graph, width=4):
    torch.manual_seed(0)
    return [torch.randn(5, group.size, width) for group in graph.groups]


def reversed_outputs(states, graph):
    """With the neurons of every output group in reverse order."""
    rows = zip(states, graph.groups, strict=True)
    return [x.flip(-2) if group.role == "output" else x for x, group in rows]


@pytest.mark.parametrize(("outputs", "size"), [(5, (2 + 5) * 4), (None, (2 + 1) * 4)])
def test_outputs_are_concatenated_if_all_networks_have_as_many(outputs, size):
    graph = graph_of(2, 3)
    pooling, states = AttentionPooling(4, 2, outputs), states_of(graph)
    pooled = pooling(states, graph)
    assert pooled.shape == (5, size) == (5, pooling.size)
    other = pooling(reversed_outputs(states, graph), graph)
    assert torch.allclose(pooled, other, atol=1e-6) == (outputs is None)


def test_a_single_output_equals_its_mean():
    graph = graph_of(1)
    concatenated, averaged = AttentionPooling(4, 2, 1), AttentionPooling(4, 2, None)
    concatenated.load_state_dict(averaged.state_dict())
    states = states_of(graph)
    assert torch.equal(concatenated(states, graph), averaged(states, graph))


def test_another_number_of_outputs_is_refused():
    graph = graph_of(3)
    with pytest.raises(ValueError, match="networks of 2 outputs.*got 3"):
        AttentionPooling(4, 2, 2)(states_of(graph), graph)


def test_common_outputs():
    assert common_outputs([graph_of(2, 3), graph_of(5)]) == 5
    assert common_outputs([graph_of(2), graph_of(3)]) is None
