import logging
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ngopt import NGOptimizer, build_graph
from ngopt.graph import register_rule
from ngopt.graph.rules import RULES
from ngopt.graph.topology import unconnected
from ngopt.models import FeedForward
from tests.zoo import GPT, Attention, Residual, zoo

FAMILIES = """resnet18 resnet50 vgg11_bn mobilenet_v3_small efficientnet_b0 convnext_tiny vit_b_16 swin_t densenet121
shufflenet_v2_x1_0 googlenet regnet_y_400mf""".split()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_torchvision_families_are_traced_whole(family):
    models = pytest.importorskip("torchvision.models")
    extra = {"init_weights": False} if family in ("googlenet", "vgg11_bn") else {}
    model = getattr(models, family)(weights=None, **extra)
    graph = build_graph(model, torch.randn(2, 3, 224, 224))
    assert graph.unplaced == ()
    assert "1 component, 0 elements unconnected" in graph.summary()
    values = [p.detach() for p in model.parameters()]
    back = graph.scatter(graph.gather(values))
    assert all(torch.equal(a, b) for a, b in zip(values, back, strict=True))
    assert sum(v.numel() for v in values) == graph.numel


def edges_of(graph, target):
    """(kind, source) of all blocks into a group, by the groups' names."""
    number = next(i for i, g in enumerate(graph.groups) if g.name == target)
    return sorted((b.kind, graph.groups[b.source].name) for b in graph.blocks if b.target == number)


def test_residual_network_by_hand():
    model, example = zoo()["residual"]
    graph = build_graph(model, example)
    assert edges_of(graph, "conv1") == [("weight", "stem")]
    assert edges_of(graph, "bn1") == [("gamma", "conv1"), ("residual", "stem")]
    # the projected skip and the block are only summed: one group, reached by the scales of both norms
    assert edges_of(graph, "bn2") == [("gamma", "conv2"), ("gamma", "down")]
    assert edges_of(graph, "squeeze") == [("weight", "bn2")]
    assert edges_of(graph, "fc") == [("weight", "mul")]
    assert edges_of(graph, "mul") == [("left", "bn2"), ("right", "excite")]
    activation = {g.name: g.activation for g in graph.groups}
    assert (activation["stem"], activation["excite"], activation["conv1"]) == ("relu", "sigmoid", None)


def test_attention_by_hand():
    graph = build_graph(Attention(6, 2, fused=False), torch.randn(2, 4, 6))
    q, k, v = (next(i for i, g in enumerate(graph.groups) if g.name == n) for n in "qkv")
    heads = next(i for i, g in enumerate(graph.groups) if g.kind == "head")
    assert graph.groups[heads].size == 2
    (pool,) = (b for b in graph.blocks if b.target == heads)
    assert (pool.kind, pool.shape) == ("pool", (2, 1, 3))
    products = pool.source
    assert {(b.kind, b.source, b.shape) for b in graph.blocks if b.target == products} == {
        ("left", q, (6, 1, 1)),
        ("right", k, (6, 1, 1)),
    }
    (weighted,) = (b.target for b in graph.blocks if b.source == heads)
    assert {(b.kind, b.source, b.shape) for b in graph.blocks if b.target == weighted} == {
        ("left", heads, (2, 3, 1)),
        ("right", v, (6, 1, 1)),
    }


def test_tied_parameters_have_a_place_for_each_use():
    graph = build_graph(GPT(), torch.randint(11, (2, 6)))
    assert len(graph.parameters) == len(list(GPT().parameters()))
    uses = [b for b in graph.weights if graph.parameters[b.view.parameter].name == "wte.weight"]
    assert [b.shape for b in uses] == [(1, 12, 11), (1, 11, 12)]
    values = graph.gather([torch.randn(s.shape, dtype=torch.float64) for s in graph.parameters])
    edges = [e + (1 if b is uses[1] else 0) for b, e in zip(graph.weights, values.edges, strict=True)]
    moved = graph.scatter(values._replace(edges=tuple(edges)))
    whole = graph.scatter(values)
    number = uses[0].view.parameter
    torch.testing.assert_close(moved[number], whole[number] + 0.5)  # the mean of both uses
    gradient_path = [v.clone().requires_grad_() for v in whole]
    sum(v.sum() for v in graph.scatter(graph.gather(gradient_path))).backward()
    torch.testing.assert_close(gradient_path[number].grad, torch.ones_like(whole[number]))


def test_an_input_is_guessed_where_none_is_given():
    model, example = zoo()["residual"]
    exact = build_graph(model, example)
    model = model.float()
    guessed = build_graph(model)
    assert guessed == exact
    model.double()


class Stubborn(nn.Module):
    """Takes an argument that nobody can guess."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x["features"]))


def test_parameters_decide_where_a_module_cannot_be_traced():
    with pytest.warns(UserWarning, match="as no input for Stubborn could be guessed"):
        graph = build_graph(Stubborn())
    assert [(b.source, b.target) for b in graph.blocks] == [(0, 1), (1, 2)]


class Halting(nn.Module):
    """Applies a layer as often as its own output says; counts, in a buffer, how often it was called."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, *, scale=1.0):
        self.calls += 1
        x = torch.tanh(self.first(x))
        for _ in range(1 + int(x.abs().sum() > 0)):
            x = torch.tanh(self.again(x))
        return {"logits": self.last(x) * scale}


def test_control_flow_that_depends_on_values(capfd):
    model = Halting()
    for example in (torch.randn(5, 3), {"x": torch.randn(5, 3), "scale": 2.0}):
        graph = build_graph(model, example)
        assert graph.unplaced == () and unconnected(graph) == []
        assert [graph.parameters[b.view.parameter].name for b in graph.weights] == [
            "first.weight", "again.weight", "again.weight", "last.weight",
        ]  # fmt: skip
    assert model.calls == 0
    assert capfd.readouterr() == ("", "")


def test_a_failing_rule_leaves_the_rest():
    model = nn.Sequential(nn.Linear(2, 3), Swish(), nn.Linear(4, 2))

    @register_rule(Swish)
    def swish(tracer, node, module, x):
        tracer.add_bias(tracer.elements(module.beta), tracer.nodes.new("swish", 4))
        raise KeyError("odd")

    try:
        with pytest.warns(UserWarning, match="the rule 'swish' failed at '.*' in Sequential: KeyError"):
            graph = build_graph(model, torch.randn(5, 2))
    finally:
        del RULES[Swish]
    assert graph.unplaced == ("1.weight", "1.beta")
    assert edges_of(graph, "0") == [("weight", "input")]


def test_bad_examples_and_lazy_modules():
    with pytest.raises(ValueError, match="Linear does not run on the example input"):
        build_graph(nn.Linear(3, 2), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"'1.weight' of a lazy module has no shape yet"):
        build_graph(nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2)))
    with pytest.raises(ValueError, match="example_input goes with a module"):
        build_graph(nn.Linear(3, 2).parameters(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one parameter"):
        build_graph(nn.ReLU(), torch.zeros(2))
    lazy = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2))
    graph = build_graph(lazy, torch.zeros(1, 3))
    assert isinstance(lazy[1].weight, nn.parameter.UninitializedParameter)
    lazy(torch.zeros(1, 3))
    assert graph == build_graph(lazy, torch.zeros(1, 3))
    assert graph.numel == 14


def test_lazy_buffers():
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"'1.running_mean' of a lazy module has no shape yet"):
        build_graph(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d(affine=False)))
    graph = build_graph(lazy, {"input": torch.randn(2, 3, 5, 5)})
    assert isinstance(lazy[1].running_mean, nn.parameter.UninitializedBuffer)
    lazy(torch.randn(2, 3, 5, 5))
    assert replace(graph, groups=()) == replace(build_graph(lazy, {"input": torch.randn(2, 3, 5, 5)}), groups=())


def test_frozen_parameters_stay_in_the_graph():
    model, example = zoo()["residual"]
    for p in model.stem.parameters():
        p.requires_grad_(False)
    assert build_graph(model, example).numel == sum(p.numel() for p in model.parameters())


class Normalised(nn.Module):
    """A weight under a parametrization that no rule knows."""

    def __init__(self):
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(F.linear(torch.relu(self.first(x)), torch.matrix_exp(self.odd)))


def test_a_parameter_without_a_rule_is_a_component_and_reported():
    graph = build_graph(Normalised(), torch.randn(2, 3))
    assert graph.unplaced in (("odd",), ())
    values = [torch.randn(s.shape) for s in graph.parameters]
    assert all(torch.equal(a, b) for a, b in zip(values, graph.scatter(graph.gather(values)), strict=True))
    fft = Residual()
    fft.spectrum = nn.Parameter(torch.randn(5))
    graph = build_graph(fft, torch.randn(2, 2, 8, 8))
    assert graph.unplaced == ("spectrum",)
    assert "no rule for: spectrum" in graph.summary()


class Swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.beta = nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = x @ self.weight.T
        return y * torch.sigmoid(torch.cumsum(y, -1) * self.beta)


def test_rules_for_modules_and_functions_of_ones_own():
    model = nn.Sequential(nn.Linear(2, 3), Swish(), nn.Linear(4, 2))
    seen = []

    @register_rule(Swish)
    def swish(tracer, node, module, x):
        from ngopt.graph.rules.edges import connect
        from ngopt.graph.tracing.values import Neurons

        seen.append(type(module))
        targets = tracer.nodes.new("swish", 4)
        connect(tracer, tracer.elements(module.weight), tracer.vector(x.labels, -1), targets)
        tracer.add_bias(tracer.elements(module.beta), targets, "slope")
        return Neurons(targets.expand(tracer.shape_of(node)))

    try:
        graph = build_graph(model, torch.randn(5, 2))
    finally:
        del RULES[Swish]
    assert seen == [Swish]
    assert edges_of(graph, "swish") == [("weight", "0")]
    assert edges_of(graph, "2") == [("weight", "swish")]
    assert [b.kind for b in graph.biases] == ["bias", "slope", "bias"]
    assert edges_of(build_graph(model, torch.randn(5, 2)), "2") != [("weight", "swish")]


def test_a_large_example_is_cut_down():
    model, example = zoo()["residual"]
    assert build_graph(model, example.repeat(2000, 1, 1, 1)) == build_graph(model, example)


def test_the_optimizer_says_what_it_could_not_connect(caplog):
    model = Residual()
    with caplog.at_level(logging.INFO, logger="ngopt"):
        NGOptimizer(model.parameters(), weights=FeedForward())
    (record,) = caplog.records
    assert "stay apart" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="ngopt"):
        NGOptimizer(nn.Linear(3, 2).parameters(), weights=FeedForward())
    assert not caplog.records


def ends_of(graph, parameter):
    """Source group, source neurons and target group of all uses of a weight."""
    uses = [b for b in graph.weights if graph.parameters[b.view.parameter].name == parameter]
    return [(graph.groups[b.source].name, b.source_index, b.target) for b in uses]


def test_a_scale_shared_by_heads_is_a_node_with_an_edge_to_each():
    graph = build_graph(*zoo()["head norms"])
    size = {g.name: g.size for g in graph.groups}
    assert [size[f"1.{name}"] for name in ("q", "q_norm", "q_norm.weight", "q_norm.groups")] == [6, 6, 3, 2]
    spread = next(b for b in graph.blocks if graph.groups[b.source].name == "1.q_norm.weight")
    assert (spread.kind, spread.shape, spread.target_index) == ("spread", (3, 2, 1), (0, 3, 1, 4, 2, 5))
    assert edges_of(graph, "1.q_norm") == [
        ("residual", "1.q"),
        ("spread", "1.q_norm.groups"),
        ("spread", "1.q_norm.weight"),
    ]
    kinds = {graph.groups[b.group].name: b.kind for b in graph.biases}
    assert (kinds["1.k_norm.weight"], kinds["1.k_norm.bias"]) == ("gamma", "beta")


def test_a_weight_has_a_use_for_every_row_of_neurons():
    graph = build_graph(*zoo()["shared"])
    linear, conv = ends_of(graph, "linear.weight"), ends_of(graph, "conv.weight")
    assert [use[:2] for use in linear] == [("stem", (0, 1, 2)), ("stem", (3, 4, 5))]
    assert [use[:2] for use in conv] == [("linear", None)] * 2
    assert len({target for *_, target in linear}) == len({target for *_, target in conv}) == 2


def test_places_that_a_norm_shares_are_slots():
    graph = build_graph(*zoo()["shuffled"])
    assert {g.name: g.size for g in graph.groups if g.kind == "neuron"} == {
        "x": 1, "stem": 3, "up": 4, "batch": 4, "group": 4, "out": 2,
    }  # fmt: skip
    up = next(b for b in graph.weights if graph.parameters[b.view.parameter].name == "up.weight")
    assert (up.shape, up.slot_shape) == ((1, 4, 3), (4, 3, 3)), "a kernel for each of the four places of a channel"
    assert [b.slot_shape for b in graph.biases if graph.groups[b.group].name == "up"] == [(4,)]
    assert ends_of(graph, "out.weight")[0][:2] == ("group", None)


def test_sums_and_differences_by_hand():
    graph = build_graph(*zoo()["dueling"])
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
    graph = build_graph(*zoo()["mixture"])
    assert edges_of(graph, "einsum_1.products") == [("left", "gate"), ("right", "experts")]
    assert edges_of(graph, "einsum_1") == [("pool", "einsum_1.products")]
    (pool,) = (b for b in graph.blocks if graph.groups[b.target].name == "einsum_1")
    assert pool.shape == (5, 1, 3)
    # the neurons are those of every place, so that a weight is used once, that of each of the experts
    assert [len(ends_of(graph, name)) for name in ("first.weight", "experts", "last.weight")] == [1, 3, 1]
    graph = build_graph(*zoo()["prefixed"])
    keys = next(b for b in graph.biases if graph.parameters[b.view.parameter].name == "keys")
    assert (graph.groups[keys.group].name, keys.view.shape) == ("k", (4, 2))
    # too many products
    x = torch.randn(2, 70, 5)
    graph = build_graph(Squared(), x)
    assert unconnected(graph) == ["last.weight", "last.bias"]


class Squared(nn.Module):
    """A matrix of 4900 products of neurons."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 70), nn.Linear(70, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(x.mT @ x)


class Mixer(nn.Module):
    """Channels, then a layer and a norm over positions, then channels again."""

    def __init__(self):
        super().__init__()
        self.first, self.mix, self.norm, self.last = nn.Linear(3, 4), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(4, 2)

    def forward(self, x):
        x = self.mix(self.first(x).transpose(1, 2))
        return self.last(self.norm(x).transpose(1, 2))


def test_layers_over_positions_leave_channels_apart():
    graph = build_graph(Mixer(), torch.randn(2, 5, 3))
    assert {g.name: g.size for g in graph.groups}["first"] == 4
    assert [g.size for g in graph.groups if g.kind == "position"] == [5, 5]
    (last,) = (b for b in graph.weights if graph.groups[b.target].name == "last")
    assert last.shape == (1, 2, 4)


def test_states_of_recurrent_layers_by_hand():
    graph = build_graph(*zoo()["states"])
    assert edges_of(graph, "rnn.l1") == [
        ("recurrent", "rnn.l1"),
        ("residual", "cells"),
        ("weight", "rnn.l0"),
        ("weight", "rnn.l0_reverse"),
    ]
    given, reverse = (b for b in graph.constants if graph.groups[b.target].name == "rnn.l0_reverse")
    assert (given.shape, given.source_index) == ((4, 1, 1), (4, 5, 6, 7))
    assert (reverse.shape, graph.groups[reverse.source].kind) == ((1, 4, 1), "constant")
    learned = [
        (b.kind, graph.groups[b.group].name) for b in graph.biases if graph.parameters[b.view.parameter].name == "begin"
    ]
    assert learned == [("recurrent", f"rnn.{name}") for name in ("l0", "l0_reverse", "l1", "l1_reverse")]
    # the last hidden states and the last cells are the same neurons, seen in two ways
    assert sorted(kind for kind, _ in edges_of(graph, "head")) == ["weight"] * 4
    assert {source.split(".")[-1] for _, source in edges_of(graph, "head")} == {"copy", "l1", "l1_reverse"}


class Projected(nn.Module):
    """The state of an LSTM with a projection, which begins with constants."""

    def __init__(self, begin):
        super().__init__()
        self.rnn, self.hidden, self.cells = nn.LSTM(3, 4, proj_size=2), nn.Linear(2, 2), nn.Linear(4, 2)
        self.register_buffer("begin", begin)

    def forward(self, x):
        hidden, cells = self.rnn(x, (x.new_zeros(1, x.shape[1], 2), self.begin.expand(1, x.shape[1], 4)))[1]
        return self.hidden(hidden[-1]), self.cells(cells[-1])


def test_the_state_of_a_projection_and_constant_states():
    graph = build_graph(Projected(torch.ones(4)), torch.randn(5, 2, 3))
    assert edges_of(graph, "hidden") == [("weight", "rnn.l0.projection")]
    assert edges_of(graph, "cells") == [("weight", "rnn.l0")]
    alike = edges_of(graph, "rnn.l0")
    assert alike == [("recurrent", "rnn.l0.projection"), ("weight", "x")]
    graph = build_graph(Projected(torch.arange(4.0)), torch.randn(5, 2, 3))
    assert edges_of(graph, "rnn.l0") == sorted([*alike, ("residual", "state.constant")])
    assert {g.name: g.role for g in graph.groups}["state.constant"] == "input"


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        packed = pack_padded_sequence(x, torch.tensor([3, 5]), batch_first=True, enforce_sorted=False)
        packed, last = self.rnn(packed)
        return self.head(pad_packed_sequence(packed, batch_first=True)[0]) + self.head(last[-1])[:, None]


def test_packed_sequences():
    graph = build_graph(Packed(), torch.randn(2, 5, 3))
    assert [kind for kind, _ in edges_of(graph, "rnn.l0")] == ["recurrent", "weight"]
    assert graph.unplaced == () and unconnected(graph) == []


class Steps(nn.Module):
    """A cell in a loop, or the layer that does the same; `begins` sequences one after the other, or at once."""

    def __init__(self, recurrent, begins=1):
        super().__init__()
        self.rnn, self.head, self.begins = recurrent, nn.Linear(4, 2), begins

    def forward(self, x):
        if isinstance(self.rnn, nn.RNNBase):
            return self.head(self.rnn(x)[0][-1])
        last = []
        for part in x.chunk(self.begins):
            state = None
            for step in part:
                state = self.rnn(step, state)
            last.append(state[0] if isinstance(state, tuple) else state)
        return self.head(sum(last))


@pytest.mark.parametrize(("cell", "layer"), [(nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU), (nn.RNNCell, nn.RNN)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_in_a_loop_is_a_recurrent_layer(cell, layer, bias):
    graphs = []
    for recurrent in (cell(3, 4, bias=bias), layer(3, 4, bias=bias)):
        graph = build_graph(Steps(recurrent), torch.randn(2, 5, 3))
        groups = tuple(replace(g, name="") for g in graph.groups)
        parameters = tuple(replace(p, name="") for p in graph.parameters)
        graphs.append(replace(graph, groups=groups, parameters=parameters))
    assert graphs[0] == graphs[1]


def test_a_cell_that_begins_twice_has_two_recurrences():
    graph = build_graph(Steps(nn.GRUCell(3, 4), 2), torch.randn(2, 5, 3))
    recurrent = [b for b in graph.weights if b.kind == "recurrent"]
    assert len(recurrent) == len({b.target for b in recurrent}) == 2
    assert all(b.source == b.target for b in recurrent)
    assert edges_of(build_graph(*zoo()["cells"]), "writer") == [
        ("recurrent", "writer"),
        ("residual", "begin"),
        ("weight", "out"),
        ("weight", "out"),
        ("weight", "writer.constant"),
    ]


class Weighted(nn.Module):
    """Rows of a table, weighted by a neuron."""

    def __init__(self):
        super().__init__()
        self.score, self.table, self.out = nn.Linear(3, 1), nn.EmbeddingBag(9, 5, mode="sum"), nn.Linear(5, 2)

    def forward(self, index, x):
        return self.out(self.table(index, per_sample_weights=self.score(x)[..., 0]))


def test_bags_of_rows_with_weights():
    graph = build_graph(Weighted(), (torch.randint(9, (2, 4)), torch.randn(2, 4, 3)))
    (factor,) = (g.name for g in graph.groups if g.kind == "product")
    assert edges_of(graph, factor) == [("left", "score"), ("right", "table")]
    assert edges_of(graph, "out") == [("weight", factor)]


def test_constants_before_there_are_neurons():
    graph = build_graph(nn.Sequential(OneHot(), nn.Linear(5, 3)), torch.randint(5, (4,)))
    assert graph.unplaced == () and graph.numel == 18


class OneHot(nn.Module):
    def forward(self, index):
        return F.one_hot(index, 5).float()


def test_regions_are_followed_whether_exported_or_recorded():
    model, example = zoo()["regions"]
    expected = build_graph(model, example)
    assert edges_of(expected, "exact") == [("weight", "frozen")]
    assert unconnected(expected) == []

    class Checked(type(model)):
        def forward(self, x):
            assert x.sum() < 1e9
            return super().forward(x) if x.isfinite().all() else x

    model.__class__ = Checked
    graph = build_graph(model, example)
    assert (graph.blocks, graph.biases) == (expected.blocks, expected.biases)
    assert torch.is_grad_enabled()


class Windowed(nn.Module):
    """Uses every other row of a table, part of a matrix, and rows of another table one after the other."""

    def __init__(self):
        super().__init__()
        self.table, self.rows = nn.Parameter(torch.randn(1, 8, 4)), nn.Parameter(torch.randn(3, 4))
        self.first, self.wide, self.last = nn.Linear(3, 4), nn.Parameter(torch.randn(6, 5)), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x) + self.table[:, 1:6:2]
        for row in self.rows:
            x = torch.tanh(x + row)
        return self.last(torch.tanh(F.linear(x, self.wide[1:5, :4])))


def test_elements_that_the_network_does_not_use_have_a_place():
    model = Windowed()
    graph = build_graph(model, torch.randn(2, 3, 3))
    unused = {g.name: g.size for g in graph.groups if g.role == "isolated"}
    assert unused == {"table.unused": 5 * 4, "wide.unused": 30 - 16}
    values = [torch.randn_like(p) for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(values, graph.scatter(graph.gather(values)), strict=True))
    rows = [b for b in graph.biases if graph.parameters[b.view.parameter].name == "rows"]
    assert [(b.kind, b.slot_shape) for b in rows] == [("shift", (3,))]  # one after the other, not all alike


def test_a_buffer_that_needs_the_whole_example():
    class Edges(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
            self.register_buffer("order", torch.tensor([4, 2, 0, 1, 3]))

        def forward(self, x):
            return self.last(torch.tanh(self.first(x))[self.order])

    graph = build_graph(Edges(), torch.randn(5, 3))
    assert unconnected(graph) == []
    assert [g.role for g in graph.groups] == ["input", "hidden", "output"]


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


def test_outputs_in_a_dataclass():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return Output(self.last(torch.tanh(self.first(x))))

    graph = build_graph(Model(), torch.randn(5, 3))
    assert graph.unplaced == ()
    assert [g.role for g in graph.groups] == ["input", "hidden", "output"]
