import logging
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.graph import Neurons, join_graphs, parameter_graph, register_layer_rule
from ngopt.graph.connectivity import unconnected
from ngopt.graph.rules.registry import RULES
from ngopt.metanets import FeedForward
from tests.graph_checks import assert_inverse, edges_with, random_values
from tests.networks import FromFunction, edges_of
from tests.zoo import GPT, Attention, zoo_network
from tests.zoo.convolutional import Residual


@pytest.fixture(autouse=True)
def _rules_as_before():
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


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
    assert activation["stem"] == "relu" and activation["excite"] == "sigmoid"
    assert activation["conv1"] is None


def test_attention_by_hand():
    graph = build_graph(Attention(6, 2, fused=False), torch.randn(2, 4, 6))
    names = [group.name for group in graph.groups]
    q, k, v = map(names.index, "qkv")
    heads = [group.kind for group in graph.groups].index("head")
    assert graph.groups[heads].size == 2
    (pool,) = graph.blocks_into(heads)
    assert (pool.kind, pool.shape) == ("pool", (2, 1, 3))
    products = {(b.kind, b.source, b.shape) for b in graph.blocks_into(pool.source)}
    assert products == {("left", q, (6, 1, 1)), ("right", k, (6, 1, 1))}
    (target,) = (b.target for b in graph.blocks if b.source == heads)
    weighted = {(b.kind, b.source, b.shape) for b in graph.blocks_into(target)}
    assert weighted == {("left", heads, (2, 3, 1)), ("right", v, (6, 1, 1))}


def test_tied_parameters_have_a_place_for_each_use():
    graph = build_graph(GPT(), torch.randint(11, (2, 6)))
    assert len(graph.parameters) == len(list(GPT().parameters()))
    uses = edges_with(graph, "wte.weight")
    assert [b.shape for b in uses] == [(1, 12, 11), (1, 11, 12)]
    values = graph.gather([value.double() for value in random_values(graph)])
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

    @register_layer_rule(Swish)
    def swish(tracer, node, module, x):
        tracer.edges(
            tracer.elements(module.beta), None, tracer.nodes.new("swish", 4), "bias"
        )
        raise KeyError("odd")

    message = "the rule 'swish' failed at '.*' in Sequential: KeyError"
    with pytest.warns(UserWarning, match=message):
        graph = build_graph(model, torch.randn(5, 2))
    assert graph.unplaced == ("1.weight", "1.beta")
    assert edges_of(graph, "0") == [("weight", "input")]


def test_elements_that_do_not_fit_their_labels_are_named():
    model = nn.Sequential(nn.Linear(2, 3), Swish(), nn.Linear(4, 2))

    @register_layer_rule(Swish)
    def swish(tracer, call, module, x):
        tracer.edges(
            tracer.elements(module.weight),
            tracer.unify_places(x.labels, -1),
            tracer.nodes.new("swish", 4),
        )

    message = r"edges of '1.weight': .* of \(4, 3\); got \(3,\) and \(4,\)"
    with pytest.warns(UserWarning, match=message):
        build_graph(model, torch.randn(2, 2))


def test_frozen_parameters_stay_in_the_graph():
    model, example = zoo_network("residual")
    for p in model.stem.parameters():
        p.requires_grad_(False)
    size = sum(p.numel() for p in model.parameters())
    assert build_graph(model, example).numel == size


def test_a_parameter_without_a_rule_is_a_component_and_reported():
    """A weight under a parametrization that has no rule."""
    model = FromFunction(
        lambda m, x: m.last(F.linear(torch.relu(m.first(x)), torch.matrix_exp(m.odd))),
        first=(3, 4),
        odd=nn.Parameter(torch.randn(4, 4)),
        last=(4, 2),
    )
    graph = build_graph(model, torch.randn(2, 3))
    assert graph.unplaced == ()
    assert [group.name for group in graph.groups if group.is_pinned] == ["first", "odd"]
    assert_inverse(graph, random_values(graph))
    fft = Residual()
    fft.spectrum = nn.Parameter(torch.randn(5))
    graph = build_graph(fft, torch.randn(2, 2, 8, 8))
    assert graph.unplaced == ("spectrum",)


def test_the_summary_says_why_parameters_have_no_place():
    def forward(m, x):
        x = m.first(x)
        distances = torch.cdist(x, m.centres)
        behind = x.cumprod(1)[None] @ m.behind
        return m.last(torch.cat([x, distances, behind[0]], 1))

    shapes = {"unused": (2,), "centres": (4, 4), "behind": (1, 4, 4), "idle": (3, 3)}
    parameters = {name: nn.Parameter(torch.ones(n)) for name, n in shapes.items()}
    model = FromFunction(forward, first=(3, 4), last=(12, 2), **parameters)
    graph = build_graph(model, torch.randn(2, 3))
    expected = "unused: unused", "no rule for cdist: centres", "lost in cumprod: behind"
    for other in (graph, join_graphs(graph, graph), parameter_graph(graph)):
        lines = other.summary().splitlines()[-3:]
        assert [line.split(", ")[0] for line in lines] == list(expected)


class Swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.beta = nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = x @ self.weight.T
        return y * torch.sigmoid(torch.cumsum(y, -1) * self.beta)


def test_user_defined_rules():
    model = nn.Sequential(nn.Linear(2, 3), Swish(), nn.Linear(4, 2))
    seen = []

    @register_layer_rule(Swish)
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

    graph = build_graph(model, torch.randn(5, 2))
    assert seen == [Swish]
    assert edges_of(graph, "swish") == [("weight", "0")]
    assert edges_of(graph, "2") == [("weight", "swish")]
    assert [b.kind for b in graph.biases] == ["bias", "slope", "bias"]
    del RULES[Swish]
    assert edges_of(build_graph(model, torch.randn(5, 2)), "2") != [("weight", "swish")]


def test_the_documented_rule_works():
    text = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
    example = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    names: dict = {}
    exec(example, names)
    try:
        graph = build_graph(names["model"], torch.randn(5, 2))
    finally:
        del RULES[names["Factored"]]
    assert edges_of(graph, "1.a") == [("weight", "0")]
    assert edges_of(graph, "1.b") == [("weight", "1.a")]
    assert edges_of(graph, "2") == [("weight", "1.b")]
    assert len(graph.biases) == 3 and graph.unplaced == ()


def test_the_optimizer_logs_unconnected_parameters(caplog):
    def unconnected_of(model):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="ngopt"):
            opt = NGOptimizer(model.parameters(), rule=FeedForward())
            return unconnected(opt.graph)

    names = unconnected_of(Residual())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert names
    assert f"{len(names)} of 17 tensors are unconnected" in record.getMessage()
    assert not unconnected_of(nn.Linear(3, 2))
    assert not caplog.records
