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
from tests.networks import mlp
from tests.zoo import zoo_graph, zoo_network

NAMES = ("gpt", "residual", "grouped", "lstm", "gated", "triplane")


@pytest.fixture(scope="module")
def networks():
    return {name: (zoo_network(name)[0], zoo_graph(name)) for name in NAMES}


def numbered(graph, features=()):
    """Values that say which element they are: all different."""
    values, start = [], 1
    for spec in graph.parameters:
        value = torch.arange(start, start + spec.numel, dtype=torch.float64).reshape(
            spec.shape
        )
        values.append(
            torch.stack([value * 10**k for k in range(features[0])], -1)
            if features
            else value
        )
        start += spec.numel
    return values


def oracle(graph, values):
    """Every edge of the edge list: source, target, block, the values of its slots."""
    edges = to_edge_list(graph)
    flat = [value.flatten().tolist() for value in values]
    rows = zip(
        edges.sources,
        edges.targets,
        edges.block,
        edges.parameter.tolist(),
        edges.element.tolist(),
        strict=True,
    )
    return Counter(
        (
            int(s),
            int(t),
            int(b),
            tuple(flat[p][e] for p, e in zip(ps, es, strict=True) if e >= 0),
        )
        for s, t, b, ps, es in rows
    )


def node_oracle(graph, values):
    """For every node the values of its biases."""
    edges = to_edge_list(graph)
    found = [[] for _ in range(sum(group.size for group in graph.groups))]
    for node, ps, es in zip(
        edges.node.tolist(),
        edges.node_parameter.tolist(),
        edges.node_element.tolist(),
        strict=True,
    ):
        found[node] += [
            float(values[p].flatten()[e]) for p, e in zip(ps, es, strict=True) if e >= 0
        ]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_networkx_has_the_edges_of_the_edge_list(networks, name):
    graph = networks[name][1]
    values = numbered(graph)
    found = to_networkx(graph, values)
    edges = Counter(
        (s, t, data["block"], tuple(data["values"]))
        for s, t, data in found.edges(data=True)
    )
    assert edges == oracle(graph, values)
    assert [found.nodes[n]["values"] for n in range(len(found))] == node_oracle(
        graph, values
    )
    by_name = {
        spec.name: value.flatten()
        for spec, value in zip(graph.parameters, values, strict=True)
    }
    for *_, data in [*found.edges(data=True), *found.nodes(data=True)]:
        assert [
            float(by_name[parameter][element]) for parameter, element in data["slots"]
        ] == data["values"]
    assert all(
        data["kind"] == graph.blocks[data["block"]].kind
        for *_, data in found.edges(data=True)
    )


def test_networkx_nodes_know_their_group(networks):
    graph = networks["gated"][1]
    found = to_networkx(graph)
    places = [(g, i) for g, group in enumerate(graph.groups) for i in range(group.size)]
    for node, (g, i) in enumerate(places):
        data = found.nodes[node]
        group = graph.groups[g]
        assert (data["group"], data["index"]) == (g, i)
        assert data["name"] == group.name
        assert (data["kind"], data["role"], data["depth"]) == (
            group.kind,
            group.role,
            group.depth,
        )
        assert data["activation"] == group.activation
        assert "values" not in data
    assert len(found) == len(places)
    assert {data["activation"] for _, data in found.nodes(data=True)} >= {
        "silu",
        "tanh",
        None,
    }


@pytest.mark.parametrize("name", NAMES)
def test_pyg_has_the_edges_of_the_edge_list(networks, name):
    graph = networks[name][1]
    values = numbered(graph)
    data = to_pyg(graph, values)
    data.validate()
    rows = zip(
        data.edge_index.T.tolist(),
        data.edge_block.tolist(),
        data.edge_attr,
        data.edge_mask,
        strict=True,
    )
    assert Counter(
        (s, t, b, tuple(attr[mask].tolist())) for (s, t), b, attr, mask in rows
    ) == oracle(graph, values)
    biases = [x[mask].tolist() for x, mask in zip(data.x, data.node_mask, strict=True)]
    assert biases == node_oracle(graph, values)
    assert not data.edge_attr[~data.edge_mask].any()
    assert not data.x[~data.node_mask].any()
    kinds = [EDGE_KINDS[k] for k in data.edge_kind.tolist()]
    assert kinds == [graph.blocks[b].kind for b in data.edge_block.tolist()]
    groups = [graph.groups[g] for g in data.node_group.tolist()]
    assert [NODE_KINDS[k] for k in data.node_kind.tolist()] == [
        group.kind for group in groups
    ]
    assert data.node_depth.tolist() == pytest.approx([group.depth for group in groups])
    assert data.num_nodes == len(groups)


def test_features_come_behind_slots(networks):
    graph = networks["residual"][1]
    data = to_pyg(graph, numbered(graph, (2,)))
    one = to_pyg(graph, numbered(graph))
    torch.testing.assert_close(
        data.edge_attr, torch.stack([one.edge_attr, 10 * one.edge_attr], -1)
    )
    torch.testing.assert_close(data.x, torch.stack([one.x, 10 * one.x], -1))
    found = to_networkx(graph, numbered(graph, (2,)))
    assert all(
        pair[1] == 10 * pair[0]
        for *_, edge in found.edges(data=True)
        for pair in edge["values"]
    )


def test_complex_values_are_pairs_of_slots():
    values = [
        torch.randn(3, 2, dtype=torch.complex128),
        torch.randn(3, dtype=torch.complex128),
    ]
    data = to_pyg(build_graph(values), values)
    torch.testing.assert_close(
        data.edge_attr, torch.view_as_real(values[0]).reshape(6, 2), rtol=0, atol=0
    )
    torch.testing.assert_close(
        data.x[2:], torch.view_as_real(values[1]), rtol=0, atol=0
    )


def test_gradients_flow_from_pyg_to_parameters():
    model = mlp(2, 3, 1)
    data = to_pyg(build_graph(model), list(model.parameters()))
    ((data.edge_attr**2).sum() + (data.x**2).sum()).backward()
    for parameter in model.parameters():
        torch.testing.assert_close(parameter.grad, 2 * parameter.detach())


def test_a_batch_keeps_graphs_apart(networks):
    graph = networks["gated"][1]
    other = networks["residual"][1]
    values = numbered(graph)
    parts = [to_pyg(graph, values, slots=9), to_pyg(other, numbered(other), slots=9)]
    batch = Batch.from_data_list([parts[0], parts[1], parts[0]])
    assert batch.num_nodes == 2 * parts[0].num_nodes + parts[1].num_nodes
    ends = batch.batch[batch.edge_index]
    assert torch.equal(ends[0], ends[1])
    assert torch.bincount(ends[0]).tolist() == [parts[k].num_edges for k in (0, 1, 0)]
    for k, part in enumerate((parts[0], parts[1], parts[0])):
        back = batch.get_example(k)
        keys = set(part.keys())  # in no fixed order
        assert set(back.keys()) == keys
        assert all(torch.equal(back[key], part[key]) for key in keys - {"num_nodes"})


def test_too_few_slots_and_values_that_do_not_fit_are_errors(networks):
    graph = networks["residual"][1]
    with pytest.raises(ValueError, match="expected at least 9 slots, .*; got 8"):
        to_pyg(graph, slots=8)
    for function in (to_pyg, to_networkx):
        with pytest.raises(
            ValueError,
            match=f"expected {len(graph.parameters)} values, one per parameter; got 1",
        ):
            function(graph, [torch.zeros(3)])


@pytest.mark.parametrize(
    ("function", "library"), [(to_networkx, "networkx"), (to_pyg, "torch_geometric")]
)
def test_a_missing_library_is_named(function, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ImportError,
        match=rf"{function.__name__} needs {library}; .*pip install 'ngopt\[graph\]'",
    ):
        function(build_graph(mlp(2, 3, 1)))


def test_summary_is_a_table_of_groups(networks):
    lines = networks["residual"][1].summary().splitlines()
    assert lines[0].split() == [
        "group",
        "nodes",
        "from",
        "edges",
        "and",
        "biases",
        "slots",
        "elements",
        "activation",
        "role",
    ]
    row = next(line for line in lines if " bn2 " in line)
    assert (
        row.split() == "5 bn2 6 4, 6 2 x one to one + 2 x beta 1 24 relu hidden".split()
    )
    assert lines[-1].startswith(
        "52 nodes in 11 groups, 572 parameter elements in 10 blocks and 7 biases; "
        "1 component"
    )


class Dense(nn.Module):
    """Concatenates the outputs of all layers before, through a norm, as DenseNet."""

    def __init__(self, layers: int = 5):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(4 + 3 * k) for k in range(layers))
        self.layers = nn.ModuleList(
            nn.Linear(4 + 3 * k, 3 + (k == layers - 1)) for k in range(layers)
        )

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(norm(x).relu())], dim=1)
        return x


def test_summary_abbreviates_what_is_many():
    graph = build_graph(Dense(), torch.randn(2, 4))
    lines = graph.summary().splitlines()
    (norm,) = [line for line in lines if " norms.4 " in line]
    assert "16" in norm.split()  # 4 + 4 * 3 neurons in five groups, a single row
    assert "5 x one to one + 5 x beta" in norm
    (last,) = [line for line in lines if " layers.4 " in line]
    assert "5 groups  4 -> 4 + 4 x (3 -> 4) + bias" in last
    elements = [
        line[line.index("beta") :].split()[2] for line in lines if " norms." in line
    ]
    assert [int(e) for e in elements] == [2 * (4 + 3 * k) for k in range(5)]
    wide = build_graph([("a" * 30 + "." + "b" * 30 + ".weight", torch.zeros(2, 3))])
    assert "..." + "b" * 30 in wide.summary()
    assert "a" * 10 not in wide.summary()


def test_blocks_of_many_sizes_are_summed():
    class Sizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(2, n) for n in range(1, 6))
            self.last = nn.Linear(15, 3)

        def forward(self, x):
            return self.last(torch.cat([part(x).relu() for part in self.parts], dim=1))

    assert (
        "5 blocks: 15 -> 3 + bias" in build_graph(Sizes(), torch.randn(2, 2)).summary()
    )


def test_names_are_shortened_from_the_front():
    assert shorten("layer1.conv", 11) == "layer1.conv"
    assert shorten("encoder.layer1.conv", 16) == "...layer1.conv"
    assert shorten("encoder." + "x" * 40, 20) == "..." + "x" * 17
    for width in range(8, 40):
        assert (
            len(
                shorten(
                    "encoder.layers.encoder_layer_11.self_attention.out_proj", width
                )
            )
            <= width
        )
