import logging
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.graph import Neurons, register_rule
from ngopt.graph.connectivity import unconnected
from ngopt.graph.rules import RULES
from ngopt.metanets import FeedForward
from tests.networks import edges_of
from tests.zoo import GPT, Attention, Residual, zoo_graph, zoo_network


def test_residual_network_by_hand():
    model, example = zoo_network("residual")
    graph = build_graph(model, example)
    assert edges_of(graph, "conv1") == [("weight", "stem")]
    assert edges_of(graph, "bn1") == [("gamma", "conv1"), ("residual", "stem")]
    # the projected skip and the block are only summed: one group,
    # reached by the scales of both norms
    assert edges_of(graph, "bn2") == [("gamma", "conv2"), ("gamma", "down")]
    assert edges_of(graph, "squeeze") == [("weight", "bn2")]
    assert edges_of(graph, "fc") == [("weight", "mul")]
    assert edges_of(graph, "mul") == [("left", "bn2"), ("right", "excite")]
    activation = {g.name: g.activation for g in graph.groups}
    assert (activation["stem"], activation["excite"], activation["conv1"]) == (
        "relu",
        "sigmoid",
        None,
    )


def test_attention_by_hand():
    graph = build_graph(Attention(6, 2, fused=False), torch.randn(2, 4, 6))
    q, k, v = (
        next(i for i, g in enumerate(graph.groups) if g.name == n) for n in "qkv"
    )
    heads = next(i for i, g in enumerate(graph.groups) if g.kind == "head")
    assert graph.groups[heads].size == 2
    (pool,) = (b for b in graph.blocks if b.target == heads)
    assert (pool.kind, pool.shape) == ("pool", (2, 1, 3))
    products = pool.source
    assert {
        (b.kind, b.source, b.shape) for b in graph.blocks if b.target == products
    } == {
        ("left", q, (6, 1, 1)),
        ("right", k, (6, 1, 1)),
    }
    (weighted,) = (b.target for b in graph.blocks if b.source == heads)
    assert {
        (b.kind, b.source, b.shape) for b in graph.blocks if b.target == weighted
    } == {
        ("left", heads, (2, 3, 1)),
        ("right", v, (6, 1, 1)),
    }


def test_tied_parameters_have_a_place_for_each_use():
    graph = build_graph(GPT(), torch.randint(11, (2, 6)))
    assert len(graph.parameters) == len(list(GPT().parameters()))
    uses = [
        b
        for b in graph.weights
        if graph.parameters[b.view.parameter].name == "wte.weight"
    ]
    assert [b.shape for b in uses] == [(1, 12, 11), (1, 11, 12)]
    values = graph.gather(
        [torch.randn(s.shape, dtype=torch.float64) for s in graph.parameters]
    )
    edges = [
        e + (1 if b is uses[1] else 0)
        for b, e in zip(graph.weights, values.edges, strict=True)
    ]
    moved = graph.scatter(values._replace(edges=tuple(edges)))
    whole = graph.scatter(values)
    number = uses[0].view.parameter
    # the mean of both uses
    torch.testing.assert_close(moved[number], whole[number] + 0.5)
    gradient_path = [v.clone().requires_grad_() for v in whole]
    sum(v.sum() for v in graph.scatter(graph.gather(gradient_path))).backward()
    torch.testing.assert_close(
        gradient_path[number].grad, torch.ones_like(whole[number])
    )


def test_a_failing_rule_leaves_the_rest():
    model = nn.Sequential(nn.Linear(2, 3), Swish(), nn.Linear(4, 2))

    @register_rule(Swish)
    def swish(tracer, node, module, x):
        tracer.edges(
            tracer.elements(module.beta),
            None,
            tracer.nodes.new("swish", 4),
            "bias",
        )
        raise KeyError("odd")

    try:
        with pytest.warns(
            UserWarning,
            match="the rule 'swish' failed at '.*' in Sequential: KeyError",
        ):
            graph = build_graph(model, torch.randn(5, 2))
    finally:
        del RULES[Swish]
    assert graph.unplaced == ("1.weight", "1.beta")
    assert edges_of(graph, "0") == [("weight", "input")]


def test_elements_that_do_not_fit_their_labels_are_named():
    model = nn.Sequential(nn.Linear(2, 3), Swish(), nn.Linear(4, 2))

    @register_rule(Swish)
    def swish(tracer, call, module, x):
        tracer.edges(
            tracer.elements(module.weight),
            tracer.unify_places(x.labels, -1),
            tracer.nodes.new("swish", 4),
        )

    try:
        with pytest.warns(
            UserWarning,
            match=r"edges of '1.weight': .* of \(4, 3\); got \(3,\) and \(4,\)",
        ):
            build_graph(model, torch.randn(2, 2))
    finally:
        del RULES[Swish]


def test_frozen_parameters_stay_in_the_graph():
    model, example = zoo_network("residual")
    for p in model.stem.parameters():
        p.requires_grad_(False)
    assert build_graph(model, example).numel == sum(
        p.numel() for p in model.parameters()
    )


class Normalised(nn.Module):
    """A weight under a parametrization that no rule knows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.odd = nn.Parameter(torch.randn(4, 4))
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(
            F.linear(torch.relu(self.first(x)), torch.matrix_exp(self.odd))
        )


def test_a_parameter_without_a_rule_is_a_component_and_reported():
    graph = build_graph(Normalised(), torch.randn(2, 3))
    assert graph.unplaced == ()
    assert [group.name for group in graph.groups if group.is_pinned] == [
        "first",
        "odd",
    ]
    values = [torch.randn(s.shape) for s in graph.parameters]
    assert all(
        torch.equal(a, b)
        for a, b in zip(values, graph.scatter(graph.gather(values)), strict=True)
    )
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
        seen.append(type(module))
        targets = tracer.nodes.new("swish", 4)
        tracer.edges(
            tracer.elements(module.weight),
            tracer.unify_places(x.labels, -1),
            targets[:, None],
        )
        tracer.edges(tracer.elements(module.beta), None, targets, "slope")
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


def test_the_rule_that_is_shown_to_contributors():
    text = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
    example = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    names: dict = {}
    exec(example, names)
    try:
        graph = build_graph(names["model"], torch.randn(5, 2))
    finally:
        del RULES[names["Factored"]]
    assert edges_of(graph, "middle") == [("weight", "0")]
    assert edges_of(graph, "factored") == [("weight", "middle")]
    assert edges_of(graph, "2") == [("weight", "factored")]
    assert graph.unplaced == ()


def test_the_optimizer_says_what_it_could_not_connect(caplog):
    model = Residual()
    with caplog.at_level(logging.INFO, logger="ngopt"):
        apart = unconnected(
            NGOptimizer(model.parameters(), weights=FeedForward()).graph
        )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert apart
    assert f"{len(apart)} of 17 tensors are unconnected" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="ngopt"):
        assert not unconnected(
            NGOptimizer(nn.Linear(3, 2).parameters(), weights=FeedForward()).graph
        )
    assert not caplog.records


def ends_of(graph, parameter):
    """Source group, source neurons and target group of all uses of a weight."""
    uses = [
        b for b in graph.weights if graph.parameters[b.view.parameter].name == parameter
    ]
    return [(graph.groups[b.source].name, b.source_index, b.target) for b in uses]


def test_a_scale_shared_by_heads_is_a_node_with_an_edge_to_each():
    graph = zoo_graph("head norms")
    size = {g.name: g.size for g in graph.groups}
    assert [
        size[f"1.{name}"] for name in ("q", "q_norm", "q_norm.weight", "q_norm.groups")
    ] == [
        6,
        6,
        3,
        2,
    ]
    spread = next(
        b for b in graph.blocks if graph.groups[b.source].name == "1.q_norm.weight"
    )
    assert (spread.kind, spread.shape, spread.target_index) == (
        "spread",
        (3, 2, 1),
        (0, 3, 1, 4, 2, 5),
    )
    assert edges_of(graph, "1.q_norm") == [
        ("residual", "1.q"),
        ("spread", "1.q_norm.groups"),
        ("spread", "1.q_norm.weight"),
    ]
    kinds = {graph.groups[b.group].name: b.kind for b in graph.biases}
    assert (kinds["1.k_norm.weight"], kinds["1.k_norm.bias"]) == (
        "gamma",
        "beta",
    )


def test_a_weight_has_a_use_for_every_row_of_neurons():
    graph = zoo_graph("shared")
    linear = ends_of(graph, "linear.weight")
    conv = ends_of(graph, "conv.weight")
    assert [use[:2] for use in linear] == [
        ("stem", (0, 1, 2)),
        ("stem", (3, 4, 5)),
    ]
    assert [use[:2] for use in conv] == [("linear", None)] * 2
    assert (
        len({target for *_, target in linear})
        == len({target for *_, target in conv})
        == 2
    )


def test_places_that_a_norm_shares_are_slots():
    graph = zoo_graph("shuffled")
    assert {g.name: g.size for g in graph.groups if g.kind == "neuron"} == {
        "x": 1, "stem": 3, "up": 4, "batch": 4, "group": 4, "out": 2,
    }  # fmt: skip
    up = next(
        b
        for b in graph.weights
        if graph.parameters[b.view.parameter].name == "up.weight"
    )
    assert (up.shape, up.slot_shape) == ((1, 4, 3), (4, 3, 3)), (
        "a kernel for each of the four places of a channel"
    )
    assert [
        b.slot_shape for b in graph.biases if graph.groups[b.group].name == "up"
    ] == [(4,)]
    assert ends_of(graph, "out.weight")[0][:2] == ("group", None)


def test_sums_and_differences_by_hand():
    graph = zoo_graph("dueling")
    assert edges_of(graph, "depthwise") == [("weight", "sub")]
    assert edges_of(graph, "sub") == [("left", "stem"), ("right", "mean")]
    assert edges_of(graph, "sub_1") == [("left", "up"), ("right", "down")]
    assert edges_of(graph, "add") == [("left", "sub_1"), ("right", "sub_1")]
    left, right = (b for b in graph.blocks if graph.groups[b.target].name == "add")
    assert (left.source_index, left.target_index) == (None, None)
    assert (right.source_index, right.target_index) == (
        None,
        (5, 4, 3, 2, 1, 0),
    )
    # the value is newer than the advantages, of which it meets three
    assert edges_of(graph, "add_1") == [
        ("left", "value"),
        ("right", "advantage"),
    ]
    outputs = [(g.name, g.size) for g in graph.groups if g.role == "output"]
    assert outputs == [("sub_2", 3)]


def test_matrix_products_by_hand():
    graph = zoo_graph("mixture")
    assert edges_of(graph, "einsum_1.products") == [
        ("left", "gate"),
        ("right", "experts"),
    ]
    assert edges_of(graph, "einsum_1") == [("pool", "einsum_1.products")]
    (pool,) = (b for b in graph.blocks if graph.groups[b.target].name == "einsum_1")
    assert pool.shape == (5, 1, 3)
    # the neurons are those of every place, so that a weight is used once,
    # that of each of the experts
    assert [
        len(ends_of(graph, name)) for name in ("first.weight", "experts", "last.weight")
    ] == [
        1,
        3,
        1,
    ]
    graph = zoo_graph("prefixed")
    keys = next(
        b for b in graph.biases if graph.parameters[b.view.parameter].name == "keys"
    )
    assert (graph.groups[keys.group].name, keys.view.shape) == ("k", (4, 2))
    # too many products
    x = torch.randn(2, 70, 5)
    graph = build_graph(Squared(), x)
    assert unconnected(graph) == ["last.weight", "last.bias"]


class Squared(nn.Module):
    """A matrix of 4900 products of neurons."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 70)
        self.last = nn.Linear(70, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(x.mT @ x)


class Mixer(nn.Module):
    """Channels, then a layer and a norm over positions, then channels again."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.mix = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = self.mix(self.first(x).transpose(1, 2))
        return self.last(self.norm(x).transpose(1, 2))


def test_layers_over_positions_leave_channels_apart():
    graph = build_graph(Mixer(), torch.randn(2, 5, 3))
    assert {g.name: g.size for g in graph.groups}["first"] == 4
    assert [g.size for g in graph.groups if g.kind == "position"] == [5, 5]
    (last,) = (b for b in graph.weights if graph.groups[b.target].name == "last")
    assert last.shape == (1, 2, 4)


class Weighted(nn.Module):
    """Rows of a table, weighted by a neuron."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(3, 1)
        self.table = nn.EmbeddingBag(9, 5, mode="sum")
        self.out = nn.Linear(5, 2)

    def forward(self, index, x):
        return self.out(self.table(index, per_sample_weights=self.score(x)[..., 0]))


def test_bags_of_rows_with_weights():
    graph = build_graph(Weighted(), (torch.randint(9, (2, 4)), torch.randn(2, 4, 3)))
    (factor,) = (g.name for g in graph.groups if g.kind == "product")
    assert edges_of(graph, factor) == [("left", "score"), ("right", "table")]
    assert edges_of(graph, "out") == [("weight", factor)]


def test_constants_before_there_are_neurons():
    graph = build_graph(
        nn.Sequential(OneHot(), nn.Linear(5, 3)), torch.randint(5, (4,))
    )
    assert graph.unplaced == () and graph.numel == 18


class OneHot(nn.Module):
    def forward(self, index):
        return F.one_hot(index, 5).float()


class Windowed(nn.Module):
    """Uses every other row of a table, part of a matrix,
    and rows of another table one after the other."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 8, 4))
        self.rows = nn.Parameter(torch.randn(3, 4))
        self.first = nn.Linear(3, 4)
        self.wide = nn.Parameter(torch.randn(6, 5))
        self.last = nn.Linear(4, 2)

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
    assert all(
        torch.equal(a, b)
        for a, b in zip(values, graph.scatter(graph.gather(values)), strict=True)
    )
    rows = [
        b for b in graph.biases if graph.parameters[b.view.parameter].name == "rows"
    ]
    # one after the other, not all alike
    assert [(b.kind, b.slot_shape) for b in rows] == [("shift", (3,))]
