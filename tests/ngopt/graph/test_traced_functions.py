import torch
import torch.nn.functional as F
from torch import nn

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.graph_checks import assert_inverse, biases_with, edges_with, random_values
from tests.networks import Between, FromFunction, edges_of
from tests.zoo import zoo_graph


def ends_of(graph, parameter):
    """Source group, source neurons and target group of all uses of a weight."""
    uses = edges_with(graph, parameter)
    return [(graph.groups[b.source].name, b.source_index, b.target) for b in uses]


def test_a_scale_shared_by_heads_is_a_node_with_an_edge_to_each():
    graph = zoo_graph("head norms")
    size = {g.name: g.size for g in graph.groups}
    names = "q", "q_norm", "q_norm.weight", "q_norm.groups"
    assert [size[f"1.{name}"] for name in names] == [6, 6, 3, 2]
    names = [graph.groups[b.source].name for b in graph.blocks]
    spread = graph.blocks[names.index("1.q_norm.weight")]
    assert (spread.kind, spread.shape) == ("spread", (3, 2, 1))
    assert spread.target_index == (0, 3, 1, 4, 2, 5)
    assert edges_of(graph, "1.q_norm") == [
        ("residual", "1.q"),
        ("spread", "1.q_norm.groups"),
        ("spread", "1.q_norm.weight"),
    ]
    kinds = {graph.groups[b.group].name: b.kind for b in graph.biases}
    assert (kinds["1.k_norm.weight"], kinds["1.k_norm.bias"]) == ("gamma", "beta")


def test_a_weight_has_a_use_for_every_row_of_neurons():
    graph = zoo_graph("shared")
    linear = ends_of(graph, "linear.weight")
    conv = ends_of(graph, "conv.weight")
    assert [use[:2] for use in linear] == [("stem", (0, 1, 2)), ("stem", (3, 4, 5))]
    assert [use[:2] for use in conv] == [("linear", None)] * 2
    for uses in (linear, conv):
        assert len({target for *_, target in uses}) == 2


def test_places_under_one_norm_are_slots():
    graph = zoo_graph("shuffled")
    assert {g.name: g.size for g in graph.groups if g.kind == "neuron"} == {
        "x": 1, "stem": 3, "up": 4, "batch": 4, "group": 4, "out": 2,
    }  # fmt: skip
    up, *_ = edges_with(graph, "up.weight")
    # a kernel for each of the four places of a channel
    assert (up.shape, up.slot_shape) == ((1, 4, 3), (4, 3, 3))
    assert [b.slot_shape for b in biases_with(graph, "up.bias")] == [(4,)]
    assert ends_of(graph, "out.weight")[0][:2] == ("group", None)


def test_sums_and_differences_by_hand():
    graph = zoo_graph("dueling")
    assert edges_of(graph, "depthwise") == [("weight", "sub")]
    assert edges_of(graph, "sub") == [("left", "stem"), ("right", "mean")]
    assert edges_of(graph, "sub_1") == [("left", "up"), ("right", "down")]
    assert edges_of(graph, "add") == [("left", "sub_1"), ("right", "sub_1")]
    left, right = (b for b in graph.blocks if graph.groups[b.target].name == "add")
    assert (left.source_index, left.target_index) == (None, None)
    assert (right.source_index, right.target_index) == (None, (5, 4, 3, 2, 1, 0))
    # the value is newer than the advantages, of which it meets three
    assert edges_of(graph, "add_1") == [("left", "value"), ("right", "advantage")]
    outputs = [(g.name, g.size) for g in graph.groups if g.role == "output"]
    assert outputs == [("sub_2", 3)]


def test_matrix_products_by_hand():
    graph = zoo_graph("mixture")
    products = edges_of(graph, "einsum_1.products")
    assert products == [("left", "gate"), ("right", "experts")]
    assert edges_of(graph, "einsum_1") == [("pool", "einsum_1.products")]
    (pool,) = (b for b in graph.blocks if graph.groups[b.target].name == "einsum_1")
    assert pool.shape == (5, 1, 3)
    # the neurons are those of every place, so that a weight is used once,
    # that of each of the experts
    names = "first.weight", "experts", "last.weight"
    assert [len(ends_of(graph, name)) for name in names] == [1, 3, 1]
    graph = zoo_graph("prefixed")
    keys, *_ = biases_with(graph, "keys")
    assert (graph.groups[keys.group].name, keys.view.shape) == ("k", (4, 2))
    # 4900 products of neurons are too many: the first factor is not in the graph
    model = Between(lambda x: x.mT @ x, (5, 70), (70, 2))
    graph = build_graph(model, torch.randn(2, 70, 5))
    assert not unconnected(graph)
    assert [group.name for group in graph.groups if group.is_pinned] == ["first"]


def mixer(m, x):
    """Channels, then a layer and a norm over positions, then channels again."""
    x = m.mix(m.first(x).transpose(1, 2))
    return m.last(m.norm(x).transpose(1, 2))


def test_layers_over_positions_do_not_mix_channels():
    layers = {"first": (3, 4), "mix": (5, 5), "norm": nn.LayerNorm(5), "last": (4, 2)}
    graph = build_graph(FromFunction(mixer, **layers), torch.randn(2, 5, 3))
    assert {g.name: g.size for g in graph.groups}["first"] == 4
    assert [g.size for g in graph.groups if g.kind == "position"] == [5, 5]
    (last,) = (b for b in graph.weights if graph.groups[b.target].name == "last")
    assert last.shape == (1, 2, 4)


def weighted(m, index, x):
    """Rows of a table, weighted by a neuron."""
    return m.out(m.table(index, per_sample_weights=m.score(x)[..., 0]))


def test_bags_of_rows_with_weights():
    table = nn.EmbeddingBag(9, 5, mode="sum")
    model = FromFunction(weighted, score=(3, 1), table=table, out=(5, 2))
    graph = build_graph(model, (torch.randint(9, (2, 4)), torch.randn(2, 4, 3)))
    (factor,) = (g.name for g in graph.groups if g.kind == "product")
    assert edges_of(graph, factor) == [("left", "score"), ("right", "table")]
    assert edges_of(graph, "out") == [("weight", factor)]


def test_constants_before_there_are_neurons():
    model = FromFunction(lambda m, x: m.last(F.one_hot(x, 5).float()), last=(5, 3))
    graph = build_graph(model, torch.randint(5, (4,)))
    assert graph.unplaced == () and graph.numel == 18


def windowed(m, x):
    """Uses every other row of a table, part of a matrix,
    and rows of another table one after the other."""
    x = m.first(x) + m.table[:, 1:6:2]
    for row in m.rows:
        x = torch.tanh(x + row)
    return m.last(torch.tanh(F.linear(x, m.wide[1:5, :4])))


def test_elements_that_the_network_does_not_use_have_a_place():
    shapes = {"table": (1, 8, 4), "rows": (3, 4), "wide": (6, 5)}
    tables = {name: nn.Parameter(torch.randn(n)) for name, n in shapes.items()}
    model = FromFunction(windowed, first=(3, 4), last=(4, 2), **tables)
    graph = build_graph(model, torch.randn(2, 3, 3))
    unused = {g.name: g.size for g in graph.groups if g.role == "isolated"}
    assert unused == {"table.unused": 5 * 4, "wide.unused": 30 - 16}
    assert_inverse(graph, random_values(graph))
    # one after the other, not all alike
    rows = biases_with(graph, "rows")
    assert [(b.kind, b.slot_shape) for b in rows] == [("shift", (3,))]
