"""Roles of parameters and the matrices in them, against those assigned by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("torchvision")
pytest.importorskip("transformers")

from benchmarks.graph_building import FAMILIES
from ngopt import NeuralGraph, build_graph, parameter_roles
from ngopt.graph.transforms import join_graphs, reordered
from ngopt.roles.from_graph import ParameterRole, matrices_of_biases, roles_of
from tests.graph_checks import assert_inverse
from tests.networks import FromFunction
from tests.ngopt.roles.role_labels import TRANSFORMERS, label, network
from tests.selection import quick_first
from tests.zoo import ZOO, zoo_graph, zoo_network

MATRICES = ("embedding", "output", "matrix")
USUAL_FAMILIES = "resnet18", "mobilenet_v3_small", "convnext_tiny"


def assert_total(graph: NeuralGraph, roles: tuple[ParameterRole, ...]) -> None:
    """Matrices hold every element of their parameter once; other roles have none.

    All elements taken, as many as there are, none by two blocks: none twice in one
    either.
    """
    assert [role.name for role in roles] == [spec.name for spec in graph.parameters]
    for spec, role in zip(graph.parameters, roles, strict=True):
        assert (role.role in MATRICES) == bool(role.blocks), role
        assert 0 <= role.depth <= 1
        taken = torch.zeros(spec.numel, dtype=torch.bool)
        for block in role.blocks:
            view = block.view
            assert len(view.shape) >= 3
            lengths = {len(block.rows), len(block.columns), view.shape[0]}
            assert not block.rows or len(lengths) == 1
            elements = taken.as_strided(view.shape, view.strides, view.offset)
            assert not elements.any(), role
            elements.fill_(True)
        sizes = sum(block.view.numel for block in role.blocks)
        assert not role.blocks or (taken.all() and sizes == spec.numel), role


@pytest.mark.parametrize("name", ZOO)
def test_matrices_of_any_network_hold_every_element_once(name):
    model, _ = zoo_network(name)
    graph = zoo_graph(name)
    assert_total(graph, roles_of(graph))
    for parameters in (model.named_parameters(), model.parameters()):
        inferred = build_graph(parameters)
        assert_total(inferred, roles_of(inferred))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_roles_equal_those_assigned_by_hand(name):
    model, example = network(name)
    _assert_as_by_hand(name, model, build_graph(model, example))


@pytest.mark.slow
@pytest.mark.parametrize("family", quick_first(FAMILIES, USUAL_FAMILIES))
def test_torchvision_families_are_whole_with_roles_assigned_by_hand(family):
    model, example = network(family)
    graph = build_graph(model, example)
    assert graph.unplaced == ()
    assert "1 component, 0 elements unconnected" in graph.summary()
    assert_inverse(graph, [p.detach() for p in model.parameters()])
    _assert_as_by_hand(family, model, graph)


def _assert_as_by_hand(name: str, model: nn.Module, graph: NeuralGraph) -> None:
    names = [parameter for parameter, _ in model.named_parameters()]
    by_hand = {parameter: label(name, parameter) for parameter in names}
    inferred = build_graph(model.named_parameters())
    for of_network in (graph, inferred):
        roles = roles_of(of_network)
        assert_total(of_network, roles)
        if of_network is graph or name != "oddly named":
            assert {role.name: role.role for role in roles} == by_hand


def shapes(role: ParameterRole) -> list[tuple[int, ...]]:
    return [block.view.shape for block in role.blocks]


def zeros(sizes: dict[str, tuple[int, ...]]) -> list[tuple[str, Tensor]]:
    return [(name, torch.zeros(size)) for name, size in sizes.items()]


def test_each_head_is_a_matrix_whose_rows_are_outputs():
    """GPT-2 packs q, k and v into one (in, out) weight."""
    model, example = network("gpt2")
    roles = parameter_roles(model, example)
    role = roles["transformer.h.0.attn.c_attn.weight"]
    weight = dict(model.named_parameters())[role.name].detach()
    (block,) = role.blocks
    read = block.view.read(weight.flatten()[None, :, None]).view(block.view.shape)
    expected = [head for part in weight.T.chunk(3) for head in part.split(8)]
    assert torch.equal(read, torch.stack(expected))
    assert shapes(roles["transformer.h.0.attn.c_proj.weight"]) == [(1, 24, 24)]
    assert shapes(roles["transformer.wte.weight"]) == [(1, 24, 50)]


def test_a_bias_is_of_the_matrix_that_leads_to_the_same_neurons():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    for graph in (build_graph(model), build_graph(model.named_parameters())):
        assert matrices_of_biases(graph, roles_of(graph)) == [0, 0, 2, 3, 4, 4]


def test_grouped_queries_have_fewer_keys():
    roles = parameter_roles(*network("llama"))
    expected = {"q": (4, 6, 24), "k": (2, 6, 24), "v": (2, 6, 24), "o": (1, 24, 24)}
    for part, shape in expected.items():
        assert shapes(roles[f"model.layers.1.self_attn.{part}_proj.weight"]) == [shape]


def test_matrices_with_the_same_inputs_have_equal_columns():
    roles = parameter_roles(*network("bert"))
    layer = "bert.encoder.layer.0.attention.self"
    names = [f"{layer}.{part}.weight" for part in ("query", "key", "value")]
    q, k, v = (roles[name].blocks[0] for name in names)
    assert set(q.columns) == set(k.columns) == set(v.columns)
    assert len(set(q.columns)) == 1
    assert len({*q.rows, *k.rows, *v.rows}) == 9


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_each_gate_is_a_matrix(layer, gates):
    model = layer(3, 5, num_layers=2)
    traced = parameter_roles(model, torch.randn(4, 2, 3))
    for roles in (traced, parameter_roles(model.named_parameters())):
        assert shapes(roles["weight_ih_l0"]) == [(gates, 5, 3)]
        assert shapes(roles["weight_hh_l1"]) == [(gates, 5, 5)]
        assert roles["bias_hh_l0"].role == "bias"


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_biases_of_recurrent_layers_without_names(layer, bidirectional):
    model = nn.Sequential(
        nn.Embedding(30, 8),
        layer(8, 8, num_layers=2, bidirectional=bidirectional),
        nn.LayerNorm(8 + 8 * bidirectional),
        nn.Linear(8 + 8 * bidirectional, 30),
    )
    names = [role.role for role in parameter_roles(model.parameters()).values()]
    recurrent = ["matrix", "matrix", "bias", "bias"] * (4 if bidirectional else 2)
    assert names == ["embedding", *recurrent, "norm", "norm", "output", "bias"]


def test_a_recurrent_layer_without_names_that_reads_inputs():
    roles = parameter_roles(nn.LSTM(8, 8).parameters()).values()
    assert [role.role for role in roles] == ["matrix", "output", "bias", "bias"]


def test_a_norm_of_parallel_projections_is_not_recurrent():
    """Its vectors are as long as 4 gates, but the next weight reads all of them."""
    sizes = [(32, 5), (32, 8), (32,), (32,), (8, 32)]
    roles = parameter_roles([torch.zeros(size) for size in sizes]).values()
    assert [role.role for role in roles][2:4] == ["norm", "norm"]


def gated_unit(m, x):
    x = m.table(x)
    left, right = m.both(x).chunk(2, -1)
    return m.head(x + m.back(F.silu(left) * right))


def test_halves_of_a_gated_unit_are_two_matrices():
    """A table, and one weight for both halves of a gated linear unit."""
    layers = {"both": (4, 12), "back": (6, 4), "head": (4, 2)}
    model = FromFunction(gated_unit, table=nn.Embedding(7, 4), **layers)
    roles = parameter_roles(model, torch.randint(7, (2, 3)))
    assert shapes(roles["both.weight"]) == [(2, 6, 4)]
    assert shapes(roles["back.weight"]) == [(1, 4, 6)]
    assert roles["table.weight"].role == "embedding"
    assert roles["head.weight"].role == "output"


def test_cells_in_a_loop_have_gates():
    roles = roles_of(zoo_graph("cells"))
    by_name = {role.name: shapes(role) for role in roles if role.blocks}
    assert by_name["reader.weight_ih"] == [(4, 4, 3)]
    assert by_name["writer.weight_hh"] == [(3, 5, 5)]


def test_each_expert_is_a_matrix():
    roles = {role.name: role for role in roles_of(zoo_graph("mixture"))}
    assert shapes(roles["experts"]) == [(3, 5, 4)]


def test_convolutions():
    roles = {role.name: role for role in roles_of(zoo_graph("grouped"))}
    assert shapes(roles["depthwise.weight"]) == [(1, 4, 1, 3, 3)]
    assert shapes(roles["grouped.weight"]) == [(2, 3, 2, 3, 3)]
    # transposed: 4 to 3 channels
    assert shapes(roles["up.weight"]) == [(1, 3, 4, 2, 2)]
    assert roles["act.weight"].role == "other"


def test_a_layer_that_reads_several_groups_is_one_matrix():
    roles = {role.name: role for role in roles_of(zoo_graph("densenet"))}
    (block,) = roles["layers.1.weight"].blocks
    assert block.view.shape == (1, 2, 5, 3, 3)
    assert len(block.columns[0]) == 2


def test_the_loss_inside_a_network_leaves_its_output_the_output():
    model = FromFunction(
        lambda m, x, y: F.cross_entropy(m.last(m.first(x).relu()), y),
        first=(3, 4),
        last=(4, 5),
    )
    roles = parameter_roles(model, (torch.randn(6, 3), torch.randint(5, (6,))))
    weights = [roles[f"{name}.weight"] for name in ("first", "last")]
    assert [weight.role for weight in weights] == ["matrix", "output"]
    assert [weight.reads_input for weight in weights] == [True, False]


def test_unused_parameters_have_a_role_by_shape():
    model = FromFunction(
        lambda m, x: m.used(x),
        used=(3, 4),
        rest=(2, 5),
        lone=nn.Parameter(torch.zeros(())),
    )
    roles = parameter_roles(model, torch.randn(2, 3))
    assert shapes(roles["rest.weight"]) == [(1, 5, 2)]
    assert roles["lone"].role == "other"


def test_fused_and_transposed_weights_by_name():
    sizes = {"c_attn.weight": (4, 12), "c_attn.bias": (12,), "c_proj.weight": (4, 4)}
    roles = parameter_roles(zeros(sizes))
    attention = roles["c_attn.weight"].blocks[0]
    projection = roles["c_proj.weight"].blocks[0]
    assert (attention.view.shape, attention.view.strides) == ((3, 4, 4), (4, 1, 12))
    assert projection.view.strides == (0, 1, 4)


@pytest.mark.parametrize("named", [True, False])
def test_embeddings_behind_a_head_that_shares_one(named):
    """As XLM-R of transformers lists them: the head first, whose weights are those of
    the words."""
    sizes = {
        "head.bias": (50,),
        "head.dense.weight": (8, 8),
        "head.dense.bias": (8,),
        "head.norm.weight": (8,),
        "head.norm.bias": (8,),
        "head.words.weight": (50, 8),
        "kinds.weight": (2, 8),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "places.weight": (20, 8),
        "query.weight": (8, 8),
        "query.bias": (8,),
        "up.weight": (12, 8),
        "up.bias": (12,),
        "down.weight": (8, 12),
        "down.bias": (8,),
    }
    given = zeros(sizes)
    roles = parameter_roles(given if named else [p for _, p in given])
    by_name = dict(zip(sizes, (role.role for role in roles.values()), strict=True))
    tables = {name for name, role in by_name.items() if role == "embedding"}
    assert tables == {"head.words.weight", "kinds.weight", "places.weight"}
    assert "output" not in by_name.values()


def test_few_keys_and_gates_are_no_embeddings():
    """Matrices without biases in a row, whose columns are what the next one reads."""
    stem = [(8, 3, 2, 2), (8,)]
    one_head = [(8, 8), (2, 8), (2, 8), (8, 8)]  # queries, keys, values, output
    routed = [(4, 8), (12, 8), (12, 8), (8, 12)]  # routes, and a gated unit
    sizes = [*stem, *one_head, *routed, (5, 8)]
    roles = parameter_roles([torch.zeros(size) for size in sizes])
    assert "embedding" not in {role.role for role in roles.values()}


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("width", "words"), [(16, 64), (20, 80), (24, 24)])
def test_a_recurrent_layer_behind_a_table_of_any_size(layer, width, words):
    model = nn.Module()
    model.words = nn.Embedding(words, width)
    model.recurrent = layer(width, width)
    model.head = nn.Linear(width, words)
    for name, role in parameter_roles(model.named_parameters()).items():
        if name.startswith("recurrent.weight"):
            assert role.role == "matrix"
            assert role.blocks[0].view.shape[1:] == (width, width)


def test_layers_behind_a_table_are_no_embeddings():
    """Fused projections, the scale of a norm, and layers that are (in, out)."""
    words = {"words.weight": (50, 8)}
    fused = {"attention.weight": (24, 8), "out.weight": (8, 8)}
    scaled = {"norm.weight": (8,), "decay": (6, 4), "up": (12, 8)}
    places = {"places.weight": (9, 8)}
    in_out = {"up.weight": (8, 24), "up.bias": (24,)}
    in_out |= {"down.weight": (24, 8), "down.bias": (8,)}
    for tables, others in ((words, fused), (words, scaled), (words | places, in_out)):
        named = zeros(tables | others)
        for given in (named, [tensor for _, tensor in named]):
            roles = [role.role for role in parameter_roles(given).values()]
            assert roles[: len(tables)] == ["embedding"] * len(tables)
            assert "embedding" not in roles[len(tables) :]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer.layer_scale_parameter", (6,)),
        ("block.layer_scale_1", (6,)),
        ("mixer.A_log", (6, 4)),
        ("grn.weight", (1, 1, 1, 6)),
    ],
)
def test_names_of_factors(name, shape):
    given = [("in.weight", torch.zeros(6, 3)), (name, torch.zeros(shape))]
    assert parameter_roles(given)[name].role == "other"


def test_joined_graphs_keep_which_parameters_are_inferred():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    traced = build_graph(model, torch.randn(2, 3))
    roles = roles_of(join_graphs(traced, build_graph(model.named_parameters())))
    assert [role.role for role in roles] == ["matrix", "bias", "output", "bias"] * 2


def test_another_order_of_an_inferred_networks_parameters_changes_no_role():
    network = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 5))
    graph = build_graph(network.named_parameters())
    order = [4, 2, 3, 0, 1]  # the output first

    def facts(graph):
        roles = roles_of(graph)
        return [(role.name, role.role, role.place, len(role.blocks)) for role in roles]

    expected = facts(graph)
    assert facts(reordered(graph, order)) == [expected[number] for number in order]
    assert expected[3][1] == "output"
