import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch

from ngopt import build_graph
from ngopt.graph import to_edge_list
from ngopt.graph.kinds import EDGE_KINDS, NODE_KINDS
from ngopt.graph.summary import shorten
from ngopt.graph.views.networkx_and_pyg import to_networkx, to_pyg
from tests.networks import FromFunction, mlp
from tests.zoo import zoo_graph, zoo_network

NAMES = ("gpt", "residual", "grouped", "lstm", "gated", "triplane")


@pytest.fixture(scope="module")
def networks():
    return {name: (zoo_network(name)[0], zoo_graph(name)) for name in NAMES}


def numbered(graph):
    """Values of all elements, from 1: all different."""
    return graph.unflatten(torch.arange(1.0, graph.numel + 1, dtype=torch.float64))


def paired(graph):
    """Two features for each element: its number, and ten times its number."""
    return [torch.stack([value, 10 * value], -1) for value in numbered(graph)]


def oracle(graph, values):
    """Every edge of the edge list: source, target, block, the values of its slots."""
    edges = to_edge_list(graph)
    counts = Counter()
    places = edges.sources.tolist(), edges.targets.tolist(), edges.block.tolist()
    slots = edges.parameter.tolist(), edges.element.tolist()
    for *place, parameters, elements in zip(*places, *slots, strict=True):
        counts[*place, tuple(slot_values(values, parameters, elements))] += 1
    return counts


def slot_values(values, parameters, elements):
    """The values of slots, without those that have no element."""
    slots = zip(parameters, elements, strict=True)
    return [float(values[p].flatten()[e]) for p, e in slots if e >= 0]


def node_oracle(graph, values):
    """For every node the values of its biases."""
    edges = to_edge_list(graph)
    at_nodes = [[] for _ in range(sum(group.size for group in graph.groups))]
    slots = edges.node_parameter.tolist(), edges.node_element.tolist()
    for node, parameters, elements in zip(edges.node.tolist(), *slots, strict=True):
        at_nodes[node] += slot_values(values, parameters, elements)
    return at_nodes


@pytest.mark.parametrize("name", NAMES)
def test_networkx_has_the_edges_of_the_edge_list(networks, name):
    graph = networks[name][1]
    values = numbered(graph)
    view = to_networkx(graph, values)
    edges = Counter()
    for source, target, data in view.edges(data=True):
        edges[source, target, data["block"], tuple(data["values"])] += 1
        assert data["kind"] == graph.blocks[data["block"]].kind
    assert edges == oracle(graph, values)
    on_nodes = [view.nodes[node]["values"] for node in range(len(view))]
    assert on_nodes == node_oracle(graph, values)
    by_name = dict(zip([spec.name for spec in graph.parameters], values, strict=True))
    for *_, data in [*view.edges(data=True), *view.nodes(data=True)]:
        slots = [float(by_name[name].flatten()[k]) for name, k in data["slots"]]
        assert slots == data["values"]


def test_networkx_nodes_have_the_attributes_of_their_group(networks):
    graph = networks["gated"][1]
    nodes = to_networkx(graph).nodes
    places = [(g, i) for g, group in enumerate(graph.groups) for i in range(group.size)]
    for node, (number, index) in enumerate(places):
        data = nodes[node]
        assert (data["group"], data["index"]) == (number, index)
        for key in ("name", "kind", "role", "depth", "activation"):
            assert data[key] == getattr(graph.groups[number], key)
        assert "values" not in data
    assert len(nodes) == len(places)
    assert {nodes[node]["activation"] for node in nodes} >= {"silu", "tanh", None}


@pytest.mark.parametrize("name", NAMES)
def test_pyg_has_the_edges_of_the_edge_list(networks, name):
    graph = networks[name][1]
    values = numbered(graph)
    data = to_pyg(graph, values)
    data.validate()
    edges = Counter()
    ends = *data.edge_index.tolist(), data.edge_block.tolist()
    for *place, attr, mask in zip(*ends, data.edge_attr, data.edge_mask, strict=True):
        edges[*place, tuple(attr[mask].tolist())] += 1
    assert edges == oracle(graph, values)
    biases = [x[mask].tolist() for x, mask in zip(data.x, data.node_mask, strict=True)]
    assert biases == node_oracle(graph, values)
    assert not data.edge_attr[~data.edge_mask].any()
    assert not data.x[~data.node_mask].any()
    kinds = [EDGE_KINDS[k] for k in data.edge_kind.tolist()]
    assert kinds == [graph.blocks[b].kind for b in data.edge_block.tolist()]
    groups = [graph.groups[g] for g in data.node_group.tolist()]
    kinds = [NODE_KINDS[k] for k in data.node_kind.tolist()]
    assert kinds == [group.kind for group in groups]
    assert data.node_depth.tolist() == pytest.approx([group.depth for group in groups])
    assert data.num_nodes == len(groups)


def test_features_come_behind_slots(networks):
    graph = networks["residual"][1]
    data = to_pyg(graph, paired(graph))
    one = to_pyg(graph, numbered(graph))
    for pairs, single in ((data.edge_attr, one.edge_attr), (data.x, one.x)):
        torch.testing.assert_close(pairs, torch.stack([single, 10 * single], -1))
    for *_, edge in to_networkx(graph, paired(graph)).edges(data=True):
        assert all(second == 10 * first for first, second in edge["values"])


def test_complex_values_are_pairs_of_slots():
    values = [torch.randn(shape, dtype=torch.complex128) for shape in ((3, 2), (3,))]
    data = to_pyg(build_graph(values), values)
    weight, bias = map(torch.view_as_real, values)
    assert torch.equal(data.edge_attr, weight.reshape(6, 2))
    assert torch.equal(data.x[2:], bias)


def test_gradients_flow_from_pyg_to_parameters():
    model = mlp(2, 3, 1)
    data = to_pyg(build_graph(model), list(model.parameters()))
    ((data.edge_attr**2).sum() + (data.x**2).sum()).backward()
    for parameter in model.parameters():
        torch.testing.assert_close(parameter.grad, 2 * parameter.detach())


def test_a_batch_does_not_connect_graphs(networks):
    graph = networks["gated"][1]
    other = networks["residual"][1]
    one = to_pyg(graph, numbered(graph), slots=9)
    parts = [one, to_pyg(other, numbered(other), slots=9), one]
    batch = Batch.from_data_list(parts)
    assert batch.num_nodes == sum(part.num_nodes for part in parts)
    sources, targets = batch.batch[batch.edge_index]
    assert torch.equal(sources, targets)
    assert torch.bincount(sources).tolist() == [part.num_edges for part in parts]
    for k, part in enumerate(parts):
        back = batch.get_example(k)
        keys = set(part.keys())  # in no fixed order
        assert set(back.keys()) == keys
        assert all(torch.equal(back[key], part[key]) for key in keys - {"num_nodes"})


def test_too_few_slots_and_values_that_do_not_fit_are_errors(networks):
    graph = networks["residual"][1]
    with pytest.raises(ValueError, match="expected at least 9 slots, .*; got 8"):
        to_pyg(graph, slots=8)
    message = f"expected {len(graph.parameters)} values, one per parameter; got 1"
    for function in (to_pyg, to_networkx):
        with pytest.raises(ValueError, match=message):
            function(graph, [torch.zeros(3)])


@pytest.mark.parametrize(
    ("function", "library"), [(to_networkx, "networkx"), (to_pyg, "torch_geometric")]
)
def test_a_missing_library_is_named(function, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    name = function.__name__
    message = rf"{name} needs {library}; .*pip install 'ngopt\[graph\]'"
    with pytest.raises(ImportError, match=message):
        function(build_graph(mlp(2, 3, 1)))


def test_summary_is_a_table_of_groups(networks):
    lines = networks["residual"][1].summary().splitlines()
    header = "group nodes from edges and biases slots elements activation role"
    assert lines[0].split() == header.split()
    row = next(line for line in lines if " bn2 " in line)
    words = "5 bn2 6 4, 6 2 x one to one + 2 x beta 1 24 relu hidden"
    assert row.split() == words.split()
    counts = "52 nodes in 11 groups, 572 parameter elements in 10 blocks and 7 biases"
    assert lines[-1].startswith(f"{counts}; 1 component")


def dense(m, x):
    """Concatenates the outputs of all layers before, through a norm, as DenseNet."""
    for norm, layer in zip(m.norms, m.layers, strict=True):
        x = torch.cat([x, layer(norm(x).relu())], dim=1)
    return x


def test_summary_abbreviates_many_blocks():
    norms = nn.ModuleList(nn.BatchNorm1d(4 + 3 * k) for k in range(5))
    layers = nn.ModuleList(nn.Linear(4 + 3 * k, 3 + (k == 4)) for k in range(5))
    model = FromFunction(dense, norms=norms, layers=layers)
    lines = build_graph(model, torch.randn(2, 4)).summary().splitlines()
    (norm,) = [line for line in lines if " norms.4 " in line]
    assert "16" in norm.split()  # 4 + 4 * 3 neurons in five groups, a single row
    assert "5 x one to one + 5 x beta" in norm
    (last,) = [line for line in lines if " layers.4 " in line]
    assert "5 groups  4 -> 4 + 4 x (3 -> 4) + bias" in last
    norms = [line[line.index("beta") :].split() for line in lines if " norms." in line]
    assert [int(words[2]) for words in norms] == [2 * (4 + 3 * k) for k in range(5)]
    wide = build_graph([("a" * 30 + "." + "b" * 30 + ".weight", torch.zeros(2, 3))])
    assert "..." + "b" * 30 in wide.summary()
    assert "a" * 10 not in wide.summary()


def test_blocks_of_many_sizes_are_summed():
    model = FromFunction(
        lambda m, x: m.last(torch.cat([part(x).relu() for part in m.parts], dim=1)),
        parts=nn.ModuleList(nn.Linear(2, n) for n in range(1, 6)),
        last=(15, 3),
    )
    assert "5 blocks: 15 -> 3 + bias" in build_graph(model, torch.randn(2, 2)).summary()


def test_names_are_shortened_from_the_front():
    assert shorten("layer1.conv", 11) == "layer1.conv"
    assert shorten("encoder.layer1.conv", 16) == "...layer1.conv"
    assert shorten("encoder." + "x" * 40, 20) == "..." + "x" * 17
    name = "encoder.layers.encoder_layer_11.self_attention.out_proj"
    for width in range(8, 40):
        assert len(shorten(name, width)) <= width
