import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import lookup_backend

from ngopt import NGOptimizer, build_graph, metanet_rule
from ngopt.functional import Hyper, update_all
from ngopt.learned import LearnedOptimizer
from ngopt.metanet_rule import MetanetRule
from ngopt.models import FeedForward, NeuralGraphGNN
from tests.networks import CNN_INPUT, cnn, mlp
from tests.ngopt.fake_base import Momentum, MomentumConfig


@pytest.fixture
def metanet():
    torch.manual_seed(0)
    return NeuralGraphGNN()


def batch(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(6, *CNN_INPUT, generator=generator).to(dtype)
    return inputs, torch.randint(3, (6,), generator=generator)


def train(model, opt, seeds, dtype=torch.float32):
    for seed in seeds:
        inputs, labels = batch(seed, dtype)
        opt.zero_grad()
        F.cross_entropy(model(inputs).float(), labels).backward()
        opt.step()


def network(dtype=torch.float32):
    torch.manual_seed(1)
    return cnn().to(dtype)


def snapshot(model):
    return [p.detach().clone() for p in model.parameters()]


def same(model, values):
    return all(torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_step_is_the_functional_update(metanet, dtype):
    model = network(dtype)
    opt = NGOptimizer(model.parameters(), lr=0.5, weight_decay=2.0, weights=metanet)
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
            deltas, state = update_all(rule, grads, state, params, Hyper([0.5] * 9, [2.0] * 9))
            for p, d in zip(params, deltas, strict=True):
                p += d
        opt.step()
        assert same(model, params)
    assert opt.state[next(model.parameters())]["exp_avg_0"].dtype == state[0]["exp_avg_0"].dtype


def test_model_graph_and_parameters_give_the_same_training(metanet):
    results = []
    for how in ("parameters", "named", "model", "graph"):
        model = network()
        source = model.named_parameters() if how == "named" else model.parameters()
        extra = {"model": {"model": model}, "graph": {"graph": build_graph(model)}}.get(how, {})
        train(model, NGOptimizer(source, weights=metanet, **extra), range(3))
        results.append(snapshot(model))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_named_parameters_are_found_in_a_graph_by_name(metanet):
    expected, model = network(), network()
    train(expected, NGOptimizer(expected.parameters(), weights=metanet), range(2))
    backwards = list(model.named_parameters())[::-1]
    train(model, NGOptimizer(backwards, graph=build_graph(model), weights=metanet), range(2))
    assert same(model, snapshot(expected))


@pytest.mark.parametrize("weights", ["default", "ff", "ng-gnn"])
def test_a_compiled_step_is_the_same_and_is_not_compiled_again(weights):
    compiled, graphs = nn.Linear(4, 3), []
    eager = copy.deepcopy(compiled)

    def backend(module, inputs):
        graphs.append(module)
        return lookup_backend("aot_eager")(module, inputs)

    torch.compiler.reset()
    ours = NGOptimizer(compiled.parameters(), weights=weights, total_steps=40)
    theirs = NGOptimizer(eager.parameters(), weights=weights, total_steps=40)
    step, counts = torch.compile(ours.step, backend=backend), []
    for seed in range(26):
        for model in (compiled, eager):
            model.zero_grad()
            inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
            F.cross_entropy(model(inputs), torch.arange(6) % 3).backward()
        # the first step makes the graph and the state
        step() if seed else ours.step()
        theirs.step()
        counts.append(len(graphs))
    # at step 8 ng-gnn looks at the graph again; the default may recall its first three gradients
    assert counts[-1] == counts[8] > 0
    for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("few", [0, 1 << 15], ids=["in pieces", "at once"])
@pytest.mark.parametrize("weights", ["ff", "ng-gnn"])
def test_a_metanet_may_compute_in_bfloat16(weights, few, monkeypatch):
    monkeypatch.setattr(metanet_rule, "FEW", few)
    models = [network(), network()]
    start = snapshot(models[0])
    exact, rounded = (
        NGOptimizer(model.parameters(), weights=weights, compute_dtype=dtype)
        for model, dtype in zip(models, (None, torch.bfloat16), strict=True)
    )
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    exact.step()
    rounded.step()
    for p, q, before in zip(*(model.parameters() for model in models), start, strict=True):
        assert 0 < (p - q).norm() < 0.05 * (p - before).norm()
        for key in ("exp_avg_0", "exp_avg_4"):
            assert torch.equal(exact.state[p][key], rounded.state[q][key])
    assert pickle.loads(pickle.dumps(rounded)).compute_dtype == torch.bfloat16


def test_closure_is_evaluated_with_gradients_and_its_loss_returned(metanet):
    model = network()
    opt = NGOptimizer(model.parameters(), weights=metanet)
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


def test_groups_have_their_own_lr(metanet):
    steps = {}
    for lr in (1.0, 0.25):
        model = network()
        params = list(model.parameters())
        opt = NGOptimizer([{"params": params[:2]}, {"params": params[2:], "lr": lr}], weights=metanet)
        before = snapshot(model)
        train(model, opt, range(1))
        steps[lr] = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    for i, (a, b) in enumerate(zip(steps[1.0], steps[0.25], strict=True)):
        torch.testing.assert_close(b, a if i < 2 else 0.25 * a, rtol=1e-3, atol=1e-6)


def test_schedulers_scale_the_update(metanet):
    model = network()
    opt = NGOptimizer(model.parameters(), weights=metanet)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.0 if step else 1.0)
    train(model, opt, range(1))
    scheduler.step()
    before = snapshot(model)
    train(model, opt, range(1))
    assert same(model, before)


def test_add_param_group_extends_the_graph_and_keeps_state(metanet):
    body, head = mlp(4, 5, 3), nn.Linear(3, 2)
    opt = NGOptimizer(body.parameters(), weights=metanet)
    body(torch.randn(2, 4)).sum().backward()
    opt.step()
    kept = {p: {k: v.clone() for k, v in opt.state[p].items()} for p in body.parameters()}
    opt.add_param_group({"params": head.parameters(), "lr": 0.5})
    whole = build_graph([*body.parameters(), *head.parameters()])
    assert opt.graph.blocks == whole.blocks
    assert all(torch.equal(opt.state[p][k], v) for p, s in kept.items() for k, v in s.items())
    before = snapshot(head)
    head(body(torch.randn(2, 4))).sum().backward()
    opt.step()
    assert not same(head, before)
    assert opt.state[body[0].weight]["step"] == 2
    assert opt.state[head.weight]["step"] == 1


def test_add_param_group_to_a_traced_model(metanet):
    model, extra = network(), nn.Linear(4, 2)
    opt = NGOptimizer(list(model.parameters())[:4], model=model, weights=metanet)
    assert len(opt.graph.parameters) == 9
    opt.add_param_group({"params": list(model.parameters())[4:]})
    assert len(opt.graph.parameters) == 9
    opt = copy.deepcopy(opt)
    opt.add_param_group({"params": extra.parameters()})
    assert len(opt.graph.parameters) == 11
    assert opt._connected().positions == list(range(11))


def test_frozen_parameters_and_missing_gradients(metanet):
    model = network()
    frozen = model[0].weight.requires_grad_(False)
    opt = NGOptimizer(model.parameters(), weights=metanet)
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
    opt = NGOptimizer(list(model.parameters())[2:], model=model, weights=metanet)
    assert opt.graph == build_graph(model)
    before = snapshot(model)
    train(model, opt, range(1))
    assert same(model[0], before[:2])
    assert not torch.equal(model[2].weight, before[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_resume_is_bit_identical(metanet, dtype, tmp_path):
    model = network(dtype)
    opt = NGOptimizer(model.parameters(), weight_decay=1.0, weights=metanet)
    train(model, opt, range(3), dtype)
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "checkpoint.pt")
    train(model, opt, range(3, 6), dtype)

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed = network(dtype)
    resumed.load_state_dict(saved["model"])
    other = NGOptimizer(resumed.parameters(), lr=0.1, weights=metanet)
    untouched = copy.deepcopy(saved["opt"])
    other.load_state_dict(saved["opt"])
    train(resumed, other, range(3, 6), dtype)
    assert same(resumed, snapshot(model))
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert all(torch.equal(v, other.state[q][k]) for k, v in opt.state[p].items())
        assert all(v.dtype == other.state[q][k].dtype for k, v in opt.state[p].items())
    for number, state in untouched["state"].items():  # the caller's dict is its own
        assert all(torch.equal(v, saved["opt"]["state"][number][k]) for k, v in state.items())


def test_a_base_rule_by_hand_and_resumed():
    """Keys, dtypes and shapes of the state are the rule's own affair."""
    weights = LearnedOptimizer(Momentum(MomentumConfig(size=0.5, decays=(0.75,))))
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    idle = nn.Parameter(torch.ones(3))
    opt = NGOptimizer([p, idle], lr=2.0, weights=weights, total_steps=4)
    p.grad = torch.tensor([4.0, 0.0], dtype=torch.bfloat16)
    opt.step()
    assert p.tolist() == [0.0, -2.0]  # m = 1, 2 * .5 * 1 * m
    assert opt.state[p]["average"].dtype == torch.float32
    p.grad.zero_()
    copied = copy.deepcopy(opt)
    copied.param_groups[0]["params"][0].grad = p.grad.clone()
    resumed_p = nn.Parameter(p.detach().clone())
    resumed = NGOptimizer([resumed_p, nn.Parameter(torch.ones(3))], weights=weights)
    resumed.load_state_dict(opt.state_dict())
    resumed_p.grad = p.grad.clone()
    opt.step()
    resumed.step()
    copied.step()
    assert p.tolist() == [-0.5625, -2.0]  # m = 3/4, three quarters of the horizon are left
    for other in (resumed, copied):
        q = other.param_groups[0]["params"][0]
        assert torch.equal(q, p)
        assert {k: v.dtype for k, v in other.state[q].items()} == {
            "count": torch.int64, "average": torch.float32, "size": torch.float32,
        }  # fmt: skip
        assert all(torch.equal(other.state[q][k], v) for k, v in opt.state[p].items())
    assert idle not in opt.state


def test_a_step_stores_each_parameter_before_the_next_is_computed():
    seen = []

    class Watching(Momentum):
        def bind(self, graph, modulation, total_steps):
            rule = super().bind(graph, modulation, total_steps)
            update = rule.update

            def watched(grads, state, params, hyper, in_place):
                for item in update(grads, state, params, hyper, in_place):
                    seen.append([int(opt.state[p]["count"]) for p in model.parameters()])
                    yield item

            rule.update = watched
            return rule

    model = mlp(2, 3, 1)
    opt = NGOptimizer(model.parameters(), weights=LearnedOptimizer(Watching()))
    model(torch.ones(1, 2)).sum().backward()
    opt.step()
    assert seen == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]


def test_hooks_of_load_state_dict_are_heard(metanet):
    model = network()
    opt = NGOptimizer(model.parameters(), weights=metanet)
    train(model, opt, range(1))
    other = NGOptimizer(network().parameters(), weights=metanet)
    seen = []

    def double(_, state_dict):
        state = {n: {k: 2 * v for k, v in r.items()} for n, r in state_dict["state"].items()}
        return {**state_dict, "state": state}

    def halve(optimizer):
        for record in optimizer.state.values():
            seen.append(record["exp_avg_0"].clone())
            record["step"].zero_()

    other.register_load_state_dict_pre_hook(double)
    other.register_load_state_dict_post_hook(halve)
    other.load_state_dict(opt.state_dict())
    for given, found, at_hook in zip(opt.state.values(), other.state.values(), seen, strict=True):
        assert torch.equal(found["exp_avg_0"], 2 * given["exp_avg_0"])
        assert torch.equal(at_hook, found["exp_avg_0"])
        assert found["step"] == 0
    assert len(other._optimizer_load_state_dict_pre_hooks) == 1
    assert len(other._optimizer_load_state_dict_post_hooks) == 1


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_alike(metanet, duplicate):
    model = network()
    opt = NGOptimizer(model.parameters(), weights=metanet)
    train(model, opt, range(2))
    twin, other = duplicate((model, opt))
    train(model, opt, range(2, 4))
    train(twin, other, range(2, 4))
    assert same(twin, snapshot(model))


def test_bfloat16_parameters_move_by_less_than_they_resolve_through_float32_state(metanet):
    model = network(torch.bfloat16)
    opt = NGOptimizer(model.parameters(), weights=metanet)
    train(model, opt, range(1), torch.bfloat16)
    state = opt.state[model[0].weight]
    expected = model[0].weight.grad.float() * (1 - 0.9999)
    torch.testing.assert_close(state["exp_avg_4"], expected)


def test_one_nan_gradient_element_spoils_one_parameter_element(metanet):
    model = network()
    opt = NGOptimizer(model.parameters(), weights=metanet)
    inputs, labels = batch(0)
    F.cross_entropy(model(inputs), labels).backward()
    model[2].weight.grad.view(-1)[3] = float("nan")
    opt.step()
    assert sum(int(p.isnan().sum()) for p in model.parameters()) == 1


def test_scalar_and_odd_parameters_train(metanet):
    params = [nn.Parameter(torch.randn(s)) for s in [(), (3,), (2, 3, 4), (2, 1, 2, 2, 2), (5, 4), (1,)]]
    before = [p.detach().clone() for p in params]
    opt = NGOptimizer(params, weights=metanet)
    sum((p**2).sum() for p in params).backward()
    opt.step()
    assert not any(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_pairs_of_real_ones(metanet, dtype):
    torch.manual_seed(2)
    complex_params = [nn.Parameter(torch.randn(s, dtype=dtype)) for s in [(3, 2), (3,), (1, 3)]]
    real_params = [nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in complex_params]
    graph = build_graph(complex_params)
    assert [s.shape for s in graph.parameters] == [(3, 2, 2), (3, 2), (1, 3, 2)]
    assert [b.slot_shape for b in graph.blocks] == [(2,), (2,)]
    back = graph.scatter(graph.gather([p.detach() for p in complex_params]))
    assert all(torch.equal(a, b) for a, b in zip(complex_params, back, strict=True))
    opts = NGOptimizer(complex_params, weights=metanet), NGOptimizer(real_params, graph=graph, weights=metanet)
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
    other = NGOptimizer([nn.Parameter(p.detach().clone()) for p in complex_params], weights=metanet)
    other.load_state_dict(opts[0].state_dict())
    first = next(iter(other.state.values()))
    assert torch.equal(first["exp_avg_4"], opts[0].state[complex_params[0]]["exp_avg_4"])


def test_summary_of_what_it_sees(metanet):
    text = NGOptimizer(network().parameters(), weights=metanet).graph.summary()
    assert "1 component, 0 elements unconnected" in text


class TestErrors:
    def test_arguments(self, metanet):
        model = network()
        with pytest.raises(ValueError, match="empty parameter list"):
            NGOptimizer([], weights=metanet)
        with pytest.raises(ValueError, match=r"lr: expected a number >= 0; got -1"):
            NGOptimizer(model.parameters(), lr=-1.0, weights=metanet)
        with pytest.raises(ValueError, match="weight_decay.*got nan"):
            NGOptimizer(model.parameters(), weight_decay=float("nan"), weights=metanet)
        with pytest.raises(ValueError, match="total_steps.*got 0"):
            NGOptimizer(model.parameters(), total_steps=0, weights=metanet)
        with pytest.raises(ValueError, match="got both"):
            NGOptimizer(model.parameters(), model=model, graph=build_graph(model), weights=metanet)
        with pytest.raises(ValueError, match="compute_dtype: expected a floating point dtype.*int8"):
            NGOptimizer(model.parameters(), weights=metanet, compute_dtype=torch.int8)

    def test_graph_of_another_network(self, metanet):
        model = network()
        with pytest.raises(ValueError, match="graph has 4 parameters; got 9"):
            NGOptimizer(model.parameters(), graph=build_graph(mlp(2, 3, 1)), weights=metanet)
        with pytest.raises(ValueError, match=r"graph expects shape \(4, 2\); got \(3, 2\)"):
            NGOptimizer(mlp(2, 3, 1).parameters(), graph=build_graph(mlp(2, 4, 1)), weights=metanet)

    def test_bad_group_changes_nothing(self, metanet):
        model = network()
        opt = NGOptimizer(model.parameters(), weights=metanet)
        graph = opt.graph
        with pytest.raises(ValueError, match="lr: expected"):
            opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": -1})
        assert len(opt.param_groups) == 1
        assert opt.graph is graph
        train(model, opt, range(1))

    def test_state_of_other_shapes_or_weights_changes_nothing(self, metanet):
        model = network()
        opt = NGOptimizer(model.parameters(), weights=metanet)
        train(model, opt, range(1))
        before, weights = copy.deepcopy(opt.state_dict()), snapshot(model)
        wrong = copy.deepcopy(before)
        wrong["state"][2]["exp_avg_1"] = torch.zeros(3, 3)
        other = copy.deepcopy(before)
        other["param_groups"][0]["weights"] = "0" * 64
        lacking = copy.deepcopy(before)
        del lacking["state"][1]["step"]
        empty = copy.deepcopy(before)
        empty["state"][3]["exp_avg_4"] = None
        short = copy.deepcopy(before)
        short["param_groups"][0]["params"].pop()
        for bad, message in (
            (wrong, r"'exp_avg_1' of 'parameter 2': expected shape \(5, 4, 2, 1\); got \(3, 3\)"),
            (other, "made with weights 000000000000"),
            (lacking, "'step' of 'parameter 1': expected a tensor; got nothing"),
            (empty, "'exp_avg_4' of 'parameter 3': expected a tensor; got nothing"),
            ({**before, "state": {0: None}}, "state of 0: expected a dict; got NoneType"),
            ({}, "expected 'state' and 'param_groups'"),
            (None, "state_dict: all of it: expected a dict; got NoneType"),
            (short, "doesn't match the size"),
        ):
            with pytest.raises(ValueError, match=message):
                opt.load_state_dict(bad)
            after = opt.state_dict()
            assert after["param_groups"] == before["param_groups"]
            for number, state in before["state"].items():
                assert all(torch.equal(v, after["state"][number][k]) for k, v in state.items())
            assert same(model, weights)

    def test_sparse_gradients(self):
        embedding = nn.Embedding(5, 2, sparse=True)
        opt = NGOptimizer(embedding.parameters(), weights=FeedForward())
        embedding(torch.tensor([1])).sum().backward()
        before = snapshot(embedding)
        with pytest.raises(ValueError, match="'parameter 0': expected a dense gradient.*SparseAdam"):
            opt.step()
        assert same(embedding, before)
        assert not opt.state


class TestHardUse:
    """What is done to optimizers in practice: it works, or an error says what to do."""

    def test_maximize_is_the_negated_loss(self, metanet):
        up, down = network(), network()
        inputs, labels = batch(0)
        opt = NGOptimizer(up.parameters(), weights=metanet, maximize=True)
        groups = [{"params": down.parameters(), "maximize": False}]
        other = NGOptimizer(groups, weights=metanet, maximize=True)
        for model, sign in ((up, -1), (down, 1)):
            (sign * F.cross_entropy(model(inputs), labels)).backward()
        opt.step()
        other.step()
        assert same(up, snapshot(down))

    @pytest.mark.parametrize("name", ["betas", "momentum", "eps"])
    def test_settings_of_other_optimizers_are_refused(self, metanet, name):
        model = network()
        groups = [{"params": model.parameters(), name: 0.9}]
        with pytest.raises(ValueError, match=f"expected lr, weight_decay, maximize; got '{name}'"):
            NGOptimizer(groups, weights=metanet)

    def test_what_is_one_for_all_groups(self, metanet):
        params = list(network().parameters())
        for key, value in (("weights", "ff"), ("total_steps", 10)):
            groups = [{"params": params[:2]}, {"params": params[2:], key: value}]
            with pytest.raises(ValueError, match=f"'{key}' is one for all groups.*got {value}"):
                NGOptimizer(groups, weights=metanet)
        opt = NGOptimizer(params[:2], weights=metanet, total_steps=5)
        again = {**opt.param_groups[0], "params": params[2:], "initial_lr": 1.0}
        opt.add_param_group(again)  # groups of our own are taken
        assert len(opt.param_groups) == 2

    @pytest.mark.parametrize("lr", [float("inf"), float("nan"), -1.0, "1", None, torch.tensor(-1.0), torch.ones(2)])
    def test_learning_rates_out_of_range(self, metanet, lr):
        model = network()
        with pytest.raises(ValueError, match="NGOptimizer: lr: expected"):
            NGOptimizer(model.parameters(), lr=lr, weights=metanet)
        opt = NGOptimizer(model.parameters(), weights=metanet)
        before = snapshot(model)
        opt.param_groups[0]["lr"] = lr
        with pytest.raises(ValueError, match="NGOptimizer: lr: expected"):
            train(model, opt, range(1))
        assert same(model, before)
        assert not opt.state

    def test_learning_rates_as_tensors(self, metanet):
        results = []
        for lr in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
            model = nn.Sequential(network(), nn.PReLU())
            model.scalar = nn.Parameter(torch.ones(()))
            opt = NGOptimizer(model.parameters(), lr=lr, weights=metanet)
            (model(batch(0)[0]) * model.scalar).square().sum().backward()
            opt.step()
            results.append(snapshot(model))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_betas_by_position(self, metanet):
        with pytest.raises(ValueError, match=r"weight_decay: expected a number >= 0; got \(0.9"):
            NGOptimizer(network().parameters(), 1.0, (0.9, 0.999), weights=metanet)

    def test_a_small_lr_out_of_habit(self, metanet):
        with pytest.warns(UserWarning, match="lr = 0.001 multiplies .* 1000 times slower"):
            opt = NGOptimizer(network().parameters(), lr=1e-3, weights=metanet)
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1e-4})

    def test_parameters_replaced_in_a_group(self, metanet):
        model = mlp(4, 5, 3)
        opt = NGOptimizer(model.parameters(), weights=metanet)
        inputs = torch.randn(2, 4)
        model(inputs).sum().backward()
        opt.step()
        wider = mlp(4, 7, 3)
        kept = opt.state[model[-1].bias]["step"]
        for i, p in enumerate(list(wider.parameters())[:3]):
            opt.param_groups[0]["params"][i] = p
        wider[-1].bias = model[-1].bias
        opt.zero_grad()
        wider(inputs).sum().backward()
        before = snapshot(wider)
        opt.step()
        assert opt.graph == build_graph(list(wider.parameters()))
        changed = zip(wider.parameters(), before, strict=True)
        assert not any(torch.equal(p, b) for p, b in changed)
        assert opt.state[wider[0].weight]["step"] == 1
        assert opt.state[model[-1].bias]["step"] == kept + 1

    def test_parameters_appended_and_removed_in_a_group(self, metanet):
        model = network()
        opt = NGOptimizer(model.parameters(), weights=metanet)
        train(model, opt, range(1))
        extra = nn.Parameter(torch.ones(3, 2))
        group = opt.param_groups[0]["params"]
        removed = group.pop(0)
        group.append(extra)
        before = removed.detach().clone()
        extra.grad = torch.ones_like(extra)
        F.cross_entropy(model(batch(1)[0]), batch(1)[1]).backward()
        opt.step()
        assert torch.equal(removed, before)
        assert not torch.equal(extra, torch.ones_like(extra))
        assert len(opt.graph.parameters) == 9
        named = NGOptimizer(model.named_parameters(), weights=metanet)
        named.param_groups[0]["params"].append(extra)
        with pytest.raises(ValueError, match=r"param_groups\[0\]: expected a name.* 10 .*got 9"):
            named.step()

    def test_a_parameter_that_grows_in_place(self, metanet):
        p = nn.Parameter(torch.ones(3, 2))
        opt = NGOptimizer([p], weights=metanet)
        p.sum().backward()
        opt.step()
        p.data = torch.ones(5, 2)
        p.grad = torch.ones(5, 2)
        with pytest.raises(ValueError, match=r"'exp_avg_0' of .*expected shape \(5, 2\); got \(3"):
            opt.step()
        del opt.state[p]
        opt.step()
        assert opt.state[p]["exp_avg_0"].shape == (5, 2)

    def test_a_step_under_autocast_is_one_without(self, metanet):
        models = network(), network()
        for model, enabled in zip(models, (False, True), strict=True):
            opt = NGOptimizer(model.parameters(), weights=metanet)
            for seed in range(2):
                opt.zero_grad()
                F.cross_entropy(model(batch(seed)[0]), batch(seed)[1]).backward()
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    opt.step()
                    assert torch.is_autocast_enabled("cpu") == enabled
        assert same(models[0], snapshot(models[1]))

    def test_a_parameter_twice_in_a_group(self, metanet):
        model = network()
        tied = [*model.named_parameters(), ("again", model[0].weight)]
        with pytest.raises(ValueError, match="'again': expected once in its group"):
            NGOptimizer(tied, weights=metanet)

    def test_names_in_another_order_are_matched(self, metanet):
        model = network()
        opt = NGOptimizer(model.named_parameters(), weights=metanet)
        train(model, opt, range(1))
        backwards = list(model.named_parameters())[::-1]
        other = NGOptimizer(backwards, weights=metanet)
        other.load_state_dict(opt.state_dict())
        assert other.param_groups[0]["param_names"] == [name for name, _ in backwards]
        for p, record in opt.state.items():
            assert all(torch.equal(other.state[p][key], v) for key, v in record.items())
