import pytest
import torch

from ngopt import build_graph
from ngopt.functional import Hyper, update_all
from ngopt.metanets import METANETS, FeedForward, NeuralGraphGNN
from ngopt.metanets.features import MOMENTA
from ngopt.metanets.stepping.rule import MetanetRule
from tests.equivariance import random_values
from tests.graph_checks import assert_equal
from tests.metanets import metanet_for
from tests.networks import cnn, mlp


@pytest.fixture
def case():
    torch.manual_seed(0)
    graph = build_graph(cnn())
    generator = torch.Generator().manual_seed(0)
    return (graph, random_values(graph, generator), random_values(graph, generator))


def constant(graph, lr=1.0, weight_decay=0.0):
    n = len(graph.parameters)
    return Hyper([lr] * n, [weight_decay] * n)


@torch.no_grad()
def test_lr_and_weight_decay_by_hand(case):
    graph, params, grads = case
    rule = MetanetRule(NeuralGraphGNN().double(), graph)
    state = rule.init(params)
    plain, _ = update_all(rule, grads, state, params, constant(graph))
    found, _ = update_all(
        rule, grads, state, params, constant(graph, lr=0.3, weight_decay=5.0)
    )
    for p, u, d in zip(params, plain, found, strict=True):
        torch.testing.assert_close(p + d, p * (1 - 0.3 * 1e-3 * 5.0) + 0.3 * u)


@torch.no_grad()
def test_absent_parameters_stand_still_and_change_no_other(case):
    graph, params, grads = case
    rule = MetanetRule(NeuralGraphGNN().double(), graph)
    state = rule.init(params)
    _, state = update_all(rule, grads, state, params, constant(graph))
    partial = [None if i == 2 else g for i, g in enumerate(grads)]
    deltas, after = update_all(rule, partial, state, params, constant(graph))
    assert deltas[2] is None
    assert after[2]["step"] == 1
    assert after[0]["step"] == 2
    assert all(torch.equal(after[2][key], value) for key, value in state[2].items())
    other = [p + 1 if i == 2 else p for i, p in enumerate(params)]
    unread, _ = update_all(rule, partial, state, other, constant(graph))
    assert unread.pop(2) is deltas.pop(2) is None
    assert_equal(unread, deltas)


@torch.no_grad()
def test_nothing_changes_in_place(case):
    graph, params, grads = case
    rule = MetanetRule(FeedForward().double(), graph)
    state = rule.init(params)
    tensors = [*params, *grads, *(t for record in state for t in record.values())]
    before = [t.clone() for t in tensors]
    update_all(rule, grads, state, params, constant(graph, weight_decay=1.0))
    assert_equal(tensors, before)


@torch.no_grad()
def test_keys_and_shapes_are_known_without_memory(case):
    graph, params, _ = case
    rule = MetanetRule(FeedForward(), graph)
    found = rule.init([torch.empty(p.shape, device="meta") for p in params])
    for record, like in zip(found, rule.init(params), strict=True):
        shapes = {key: x.shape for key, x in record.items()}
        assert shapes == {key: x.shape for key, x in like.items()}
        assert all(record[key].is_meta for key in MOMENTA)


@torch.no_grad()
def test_state_is_at_least_float32():
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64,) * 2,
    ):
        params = [p.detach().to(dtype) for p in mlp(2, 3, 1).parameters()]
        graph = build_graph(params)
        rule = MetanetRule(FeedForward().to(expected), graph)
        state = rule.init(params)
        deltas, state = update_all(rule, params, state, params, constant(graph))
        assert all(record.keys() == {"step", *MOMENTA} for record in state)
        assert all(record[key].dtype == expected for record in state for key in MOMENTA)
        assert all(d.dtype == expected for d in deltas)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(METANETS))
def test_stacked_optimizees_under_vmap(name, case):
    graph, params, grads = case
    rule = MetanetRule(metanet_for(name, graph), graph)
    stack = (
        [torch.stack([p, 2 * p]) for p in params],
        [torch.stack([g, -g]) for g in grads],
    )

    def first_step(params, grads):
        return update_all(rule, grads, rule.init(params), params, constant(graph))[0]

    mapped = torch.vmap(first_step)(*stack)
    for k in range(2):
        single = first_step([p[k] for p in stack[0]], [g[k] for g in stack[1]])
        for m, s in zip(mapped, single, strict=True):
            torch.testing.assert_close(m[k], s, rtol=1e-12, atol=1e-14)
