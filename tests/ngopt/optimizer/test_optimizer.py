import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.functional import Hyper, update_all
from ngopt.metanets.stepping import rule as metanet_rule
from ngopt.metanets.stepping.rule import MetanetRule
from tests.networks import mlp
from tests.ngopt.fake_base import Momentum
from tests.ngopt.training import (
    WEIGHTS,
    batch,
    both_copies,
    network,
    same,
    snapshot,
    train,
)


@pytest.fixture(params=[0, 1 << 15], ids=["in pieces", "at once"])
def few(request, monkeypatch):
    monkeypatch.setattr(metanet_rule, "SMALL_NETWORK", request.param)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_step_is_the_functional_update(metanet, dtype):
    model = network(dtype)
    opt = NGOptimizer(model.parameters(), scale=0.5, weight_decay=2.0, rule=metanet)
    graph = build_graph(model)
    exact = copy.deepcopy(metanet).double() if dtype == torch.float64 else metanet
    params = snapshot(model)
    rule = MetanetRule(exact, graph)
    state = rule.init(params)
    for seed in range(3):
        inputs, labels = batch(seed, dtype)
        opt.zero_grad()
        F.cross_entropy(model(inputs).float(), labels).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        with torch.no_grad():
            deltas, state = update_all(
                rule, grads, state, params, Hyper([0.5] * 9, [2.0] * 9)
            )
            for p, d in zip(params, deltas, strict=True):
                p += d
        opt.step()
        # what is written in place is computed in other products
        eps = 100 * torch.finfo(dtype).eps
        for p, expected in zip(model.parameters(), params, strict=True):
            torch.testing.assert_close(p, expected, rtol=eps, atol=eps)
    assert opt.state[model[0].weight]["exp_avg_0"].dtype == state[0]["exp_avg_0"].dtype


def test_model_graph_and_parameters_give_the_same_training(metanet):
    sources = (
        lambda model: {"params": model.parameters()},
        lambda model: {"params": model.named_parameters()},
        lambda model: {"params": model.parameters(), "model": model},
        lambda model: {"params": model.parameters(), "graph": build_graph(model)},
        lambda model: {  # which names are found in
            "params": list(model.named_parameters())[::-1],
            "graph": build_graph(model),
        },
    )
    models = []
    for source in sources:
        models.append(network())
        train(models[-1], NGOptimizer(**source(models[-1]), rule=metanet), range(3))
    assert all(same(model, snapshot(models[0])) for model in models)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("weights", ["ff", "ng-gnn"])
def test_a_metanet_may_compute_in_bfloat16(weights):
    model, other = network(), network()
    exact = NGOptimizer(model.parameters(), rule=weights)
    rounded = NGOptimizer(
        other.parameters(), rule=weights, compute_dtype=torch.bfloat16
    )
    triples = [
        *zip(model.parameters(), other.parameters(), snapshot(model), strict=True)
    ]
    for p, q, _ in triples:
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    exact.step()
    rounded.step()
    for p, q, before in triples:
        assert 0 < (p - q).norm() < 0.05 * (p - before).norm()
        for key in ("exp_avg_0", "exp_avg_4"):
            assert torch.equal(exact.state[p][key], rounded.state[q][key])
    assert pickle.loads(pickle.dumps(rounded)).compute_dtype == torch.bfloat16


def test_closure_is_evaluated_with_gradients_and_its_loss_returned(metanet):
    model = network()
    opt = NGOptimizer(model.parameters(), rule=metanet)
    inputs, labels = batch(0)

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    before = snapshot(model)
    expected = F.cross_entropy(model(inputs), labels).item()
    assert opt.step(closure).item() == expected
    assert not same(model, before)
    assert opt.step() is None


@pytest.mark.parametrize("weights", WEIGHTS)
def test_frozen_parameters_and_missing_gradients(weights):
    model = network()
    frozen = model[0].weight.requires_grad_(False)
    opt = NGOptimizer(model.parameters(), rule=weights)
    before = snapshot(model)
    train(model, opt, range(2))
    assert torch.equal(frozen, before[0])
    assert frozen not in opt.state
    assert not torch.equal(model[0].bias, before[1])
    opt.zero_grad()
    now = snapshot(model)
    opt.step()
    assert same(model, now)


def test_parameters_not_given_stay_in_the_graph_without_update(metanet):
    model = network()
    opt = NGOptimizer(list(model.parameters())[2:], model=model, rule=metanet)
    assert opt.graph == build_graph(model)
    before = snapshot(model)
    train(model, opt, range(1))
    assert same(model[0], before[:2])
    assert not torch.equal(model[2].weight, before[2])


def test_a_rule_of_the_user_by_hand_and_resumed():
    """The rule chooses keys, dtypes and shapes of the state."""
    rule = Momentum(size=0.5, decay=0.75)
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    idle = nn.Parameter(torch.ones(3))
    opt = NGOptimizer([p, idle], scale=2.0, rule=rule, total_steps=4)
    p.grad = torch.tensor([4.0, 0.0], dtype=torch.bfloat16)
    opt.step()
    assert p.tolist() == [0.0, -2.0]  # m = 1, 2 * .5 * 1 * m
    assert opt.state[p]["average"].dtype == torch.float32
    p.grad.zero_()
    copied = copy.deepcopy(opt)
    copied.param_groups[0]["params"][0].grad = p.grad.clone()
    resumed_p = nn.Parameter(p.detach().clone())
    resumed = NGOptimizer([resumed_p, nn.Parameter(torch.ones(3))], rule=rule)
    resumed.load_state_dict(opt.state_dict())
    resumed_p.grad = p.grad.clone()
    opt.step()
    resumed.step()
    copied.step()
    # m = 3/4, three quarters of the horizon are left
    assert p.tolist() == [-0.5625, -2.0]
    for other in (resumed, copied):
        q = other.param_groups[0]["params"][0]
        assert torch.equal(q, p)
        assert {k: v.dtype for k, v in other.state[q].items()} == {
            "count": torch.int64, "average": torch.float32, "size": torch.float32,
        }  # fmt: skip
        assert all(torch.equal(other.state[q][k], v) for k, v in opt.state[p].items())
    assert idle not in opt.state


def test_a_step_stores_each_parameter_before_the_next_is_computed():
    counts = []

    class Watching(Momentum):
        def bind(self, graph, *settings, **options):
            rule = super().bind(graph, *settings)
            update = rule.update

            def watched(grads, state, params, hyper, in_place):
                for item in update(grads, state, params, hyper, in_place):
                    counts.append([int(x["count"]) for x in opt.state.values()])
                    yield item

            rule.update = watched
            return rule

    model = mlp(2, 3, 1)
    opt = NGOptimizer(model.parameters(), rule=Watching())
    model(torch.ones(1, 2)).sum().backward()
    opt.step()
    assert counts == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]


@both_copies
@pytest.mark.parametrize("weights", WEIGHTS)
def test_copies_make_the_same_steps(weights, duplicate):
    model = network()
    opt = NGOptimizer(model.parameters(), rule=weights)
    train(model, opt, range(2))
    twin, other = duplicate((model, opt))
    train(model, opt, range(2, 4))
    train(twin, other, range(2, 4))
    assert same(twin, snapshot(model))


def test_momenta_of_bfloat16_parameters_are_float32(metanet):
    model = network(torch.bfloat16)
    opt = NGOptimizer(model.parameters(), rule=metanet)
    train(model, opt, range(1), torch.bfloat16)
    state = opt.state[model[0].weight]
    expected = model[0].weight.grad.float() * (1 - 0.9999)
    torch.testing.assert_close(state["exp_avg_4"], expected)


def test_one_nan_gradient_element_spoils_one_parameter_element(metanet):
    model = network()
    opt = NGOptimizer(model.parameters(), rule=metanet)
    inputs, labels = batch(0)
    F.cross_entropy(model(inputs), labels).backward()
    model[2].weight.grad.view(-1)[3] = float("nan")
    opt.step()
    assert sum(int(p.isnan().sum()) for p in model.parameters()) == 1


def test_scalar_and_odd_parameters_train(metanet):
    shapes = [(), (3,), (2, 3, 4), (2, 1, 2, 2, 2), (5, 4), (1,)]
    params = [nn.Parameter(torch.randn(s)) for s in shapes]
    before = copy.deepcopy(params)
    opt = NGOptimizer(params, rule=metanet)
    sum((p**2).sum() for p in params).backward()
    opt.step()
    assert not any(map(torch.equal, params, before))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_pairs_of_real_ones(metanet, dtype):
    torch.manual_seed(2)
    start = [torch.randn(s, dtype=dtype) for s in [(3, 2), (3,), (1, 3)]]
    complex_params = [nn.Parameter(p) for p in start]
    real_params = [nn.Parameter(torch.view_as_real(p).clone()) for p in start]
    graph = build_graph(complex_params)
    assert [s.shape for s in graph.parameters] == [(3, 2, 2), (3, 2), (1, 3, 2)]
    assert [b.slot_shape for b in graph.blocks] == [(2,), (2,)]
    back = graph.scatter(graph.gather([p.detach() for p in complex_params]))
    assert all(torch.equal(a, b) for a, b in zip(complex_params, back, strict=True))
    opts = [NGOptimizer(complex_params, rule=metanet)]
    opts.append(NGOptimizer(real_params, graph=graph, rule=metanet))
    for _ in range(3):
        for params in (complex_params, [torch.view_as_complex(p) for p in real_params]):
            (params[2] @ (params[0].sum(1) * params[1])).abs().square().sum().backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
    for p, q in zip(complex_params, real_params, strict=True):
        assert torch.equal(torch.view_as_real(p.detach()), q)
        assert opts[0].state[p]["exp_avg_0"].dtype == dtype.to_real()
        assert opts[0].state[p]["exp_avg_0"].shape == (*p.shape, 2)
    other = NGOptimizer([nn.Parameter(torch.ones_like(p)) for p in start], rule=metanet)
    other.load_state_dict(opts[0].state_dict())
    pairs = zip(other.state.values(), opts[0].state.values(), strict=True)
    assert all(torch.equal(x["exp_avg_4"], y["exp_avg_4"]) for x, y in pairs)


def test_graph_of_another_network(metanet):
    settings = {"graph": build_graph(mlp(2, 4, 1)), "rule": metanet}
    with pytest.raises(ValueError, match="graph: expected 4 parameters.*got 9"):
        NGOptimizer(network().parameters(), **settings)
    with pytest.raises(ValueError, match=r"graph expects shape \(4, 2\); got \(3, 2\)"):
        NGOptimizer(mlp(2, 3, 1).parameters(), **settings)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sparse_gradients(weights):
    embedding = nn.Embedding(5, 2, sparse=True)
    opt = NGOptimizer(embedding.parameters(), rule=weights)
    embedding(torch.tensor([1])).sum().backward()
    before = snapshot(embedding)
    message = "'parameter 0': expected a dense gradient.*SparseAdam"
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert same(embedding, before)
    assert not opt.state


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_step_under_autocast_is_one_without(weights):
    models = network(), network()
    for model, enabled in zip(models, (False, True), strict=True):
        opt = NGOptimizer(model.parameters(), rule=weights)
        for seed in range(2):
            inputs, labels = batch(seed)
            opt.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                opt.step()
                assert torch.is_autocast_enabled("cpu") == enabled
    assert same(models[0], snapshot(models[1]))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("weights", ["ff", "ng-gnn"])
def test_the_largest_gradients_with_alternating_signs_leave_momenta_finite(weights):
    """The default: test_unusual_use.py."""
    model = network()
    opt = NGOptimizer(model.parameters(), rule=weights)
    for step in range(12):
        for p in model.parameters():
            p.grad = torch.full_like(p, 3e38 if step % 2 else -3e38)
        opt.step()
    for p in model.parameters():
        assert p.isfinite().all()
        assert all(v.isfinite().all() for v in opt.state[p].values())


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
@pytest.mark.parametrize("weights", [*WEIGHTS, "lstm", "ng-t"])
def test_parameters_without_elements_are_left_out(weights, shape):
    """Some processes have them where others have the whole tensor."""
    params = [nn.Parameter(torch.ones(size)) for size in (shape, (3, 2), (3,))]
    opt = NGOptimizer(params, rule=weights)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    assert not torch.equal(params[1], torch.ones(3, 2))
    assert params[0] not in opt.state
