from itertools import pairwise
from math import cos, pi

import pytest
import torch
from torch import nn

from meta_train.comparison.optimizers import OPTIMIZERS, RIVALS, WIDE, load_optimizer
from ngopt import NGOptimizer, load_pretrained
from ngopt.graph.connectivity import unconnected
from ngopt.pretrained import weights_hash
from ngopt.race.muon import MuonWithAdam
from ngopt.schedule import cosine_schedule
from tests.meta_train.small import available


def small_cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))


def train(model, optimizer, scheduler=None, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 2, 3, 3)).square().sum().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def test_adam_updates_embeddings_of_muon():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    table = nn.Parameter(model[0].weight.detach().clone())
    ours, _ = load_optimizer("muon-default").build(model, None, 1)
    theirs = torch.optim.Adam([table], lr=0.02)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    table.grad = model[0].weight.grad.clone()
    ours.step()
    theirs.step()
    assert torch.equal(model[0].weight, table)


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_cosine_schedule_by_hand(warmup):
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = cosine_schedule(optimizer, 10, warmup)
    lrs = []
    for _ in range(10):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rest = 8 if warmup else 10
    expected = ([0.25, 0.5] if warmup else []) + [
        0.25 * (1 + cos(pi * i / rest)) for i in range(rest)
    ]
    assert lrs == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("name", [*OPTIMIZERS, *WIDE, "learned"])
def test_every_optimizer_updates_every_parameter(name, ff_weights):
    spec = load_optimizer(ff_weights if name == "learned" else name)
    model = small_cnn()
    optimizer, scheduler = spec.build(model, spec.lrs[0] if spec.lrs else None, 10)
    before = [p.detach().clone() for p in model.parameters()]
    # SOAP's first step computes a basis and changes no weight
    train(model, optimizer, scheduler, steps=2)
    assert all((p != b).any() for p, b in zip(model.parameters(), before, strict=True))


def test_open_has_no_total_steps(ff_weights):
    for name, expected in ((ff_weights, 10), (f"{ff_weights}:open", None)):
        optimizer, _ = load_optimizer(name).build(small_cnn(), None, 10)
        assert optimizer.param_groups[0]["total_steps"] == expected
    spec = load_optimizer(f"{ff_weights}:bfloat16:open")
    optimizer, _ = spec.build(small_cnn(), None, 10)
    assert optimizer.compute_dtype == torch.bfloat16
    assert optimizer.param_groups[0]["total_steps"] is None


def test_eval_of_an_open_default_sets_averaged_weights():
    model = small_cnn()
    optimizer, scheduler = load_optimizer("default:open").build(model, None, 10)
    assert scheduler is None
    train(model, optimizer, steps=3)
    first = next(model.parameters())
    trained = first.detach().clone()
    average = optimizer.state[first]["average"].clone()
    optimizer.eval()
    assert torch.equal(first, average)
    assert not torch.equal(first, trained)
    optimizer.train()
    assert torch.equal(first, trained)


def test_scheduled_has_a_linear_scheduler_and_no_total_steps():
    model = small_cnn()
    optimizer, scheduler = load_optimizer("default:scheduled").build(model, None, 2)
    assert optimizer.param_groups[0]["total_steps"] is None
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [1, 0.5, 0]


def test_arguments_follow_the_name():
    spec = load_optimizer("default:scale=0.5:weight_decay=1.45")
    optimizer, _ = spec.build(small_cnn(), None, 2)
    assert optimizer.defaults["scale"] == 0.5
    assert optimizer.defaults["weight_decay"] == 1.45


@pytest.mark.parametrize("name", [*OPTIMIZERS, *WIDE, *RIVALS])
def test_every_baseline_learns(name):
    needed = {**OPTIMIZERS, **WIDE, **RIVALS}[name].needs
    if needed is not None:
        pytest.importorskip(needed)
    spec = load_optimizer(name)
    torch.manual_seed(1)
    model = small_cnn()
    inputs = torch.randn(32, 2, 3, 3)
    labels = inputs.sum((1, 2, 3)).gt(0).long()
    lr = spec.lrs[2] if spec.lrs else None
    if name in WIDE:
        lr = 0.01
        assert lr in spec.lrs
    optimizer, scheduler = spec.build(model, lr, 60)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    share = 0.97 if name in RIVALS else 0.9  # some have low rates of their authors
    assert losses[-1] < share * losses[0]


def test_grids_have_at_least_five_rates_in_order():
    for spec in OPTIMIZERS.values():
        if spec.lrs:
            assert len(spec.lrs) >= 5
            assert list(spec.lrs) == sorted(spec.lrs)
    assert [name for name, spec in OPTIMIZERS.items() if not spec.lrs] == [
        "adam-default",
        "muon-default",
    ]


def test_wide_grids_span_four_decades_in_half_decades():
    for spec in WIDE.values():
        ratios = [b / a for a, b in pairwise(spec.lrs)]
        assert all(2.9 < ratio < 3.5 for ratio in ratios), spec.name
        assert spec.lrs[-1] / spec.lrs[0] > 1e4


def test_weight_decay_and_schedule_of_wide_baselines():
    decay_and_last_lr = {}
    for name, spec in WIDE.items():
        optimizer, scheduler = spec.build(small_cnn(), 0.1, 100)
        optimizer.step()
        if scheduler is not None:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 5)
            for _ in range(100):
                scheduler.step()
        group = optimizer.param_groups[0]
        decay = group.get("weight_decay", 0)
        decay_and_last_lr[name] = (decay, pytest.approx(group["lr"], abs=1e-9))
    assert decay_and_last_lr == {
        "adam-wide": (0, 0.1),
        "adam-games": (0, 0),
        "adam-cosine-wide": (0, 0),
        "adamw-wide": (0.01, 0),
        "muon-wide": (0, 0),
    }


def test_schedule_free_is_the_only_baseline_with_averaged_weights():
    for name, spec in OPTIMIZERS.items():
        optimizer, _ = spec.build(small_cnn(), 0.01, 10)
        assert hasattr(optimizer, "eval") == (name == "schedule-free"), name


def test_soap_with_a_schedule_uses_the_rate_of_each_step():
    moved = []
    for factor in (1.0, 0.0):
        model = small_cnn()
        optimizer, _ = load_optimizer("soap-cosine").build(model, 0.01, 100)
        inputs = torch.ones(2, 2, 3, 3)
        for step in range(3):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            if step == 2:
                before = [p.detach().clone() for p in model.parameters()]
                optimizer.param_groups[0]["lr"] *= factor
            optimizer.step()
        pairs = zip(model.parameters(), before, strict=True)
        moved.append(any(not torch.equal(p, b) for p, b in pairs))
    assert moved == [True, False]


@pytest.mark.parametrize("name, given", [("muon-cosine", 0.02), ("muon-default", None)])
def test_muon_has_five_steps_of_warm_up(name, given):
    optimizer, scheduler = load_optimizer(name).build(small_cnn(), given, 100)
    assert isinstance(optimizer, MuonWithAdam)
    for step in range(5):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * (step + 1) / 5)
        optimizer.step()
        scheduler.step()


def test_default_rate_of_adam():
    optimizer, _ = load_optimizer("adam-default").build(small_cnn(), None, 100)
    assert optimizer.param_groups[0]["lr"] == 0.001


def test_learned_optimizers_are_loaded_by_path(ff_weights):
    spec = load_optimizer(ff_weights)
    optimizer, scheduler = spec.build(small_cnn(), None, 10)
    assert isinstance(optimizer, NGOptimizer)
    assert scheduler is None
    assert spec.lrs == ()
    expected = weights_hash(load_pretrained(ff_weights))
    assert spec.weights == weights_hash(optimizer.rule) == expected
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert optimizer.param_groups[0]["total_steps"] == 10


def test_error_for_an_unknown_name_lists_known_ones():
    message = "optimizer 'adm': expected one of adam, adam-cosine, .*, default, ff"
    with pytest.raises(ValueError, match=message):
        load_optimizer("adm")


def test_a_baseline_needs_a_learning_rate():
    message = r"optimizer 'adam': expected a learning rate, such as 0\.001, 0\.003"
    with pytest.raises(ValueError, match=message):
        load_optimizer("adam").build(small_cnn(), None, 10)


def test_graph_is_traced_or_inferred(ff_weights):
    inferred = load_optimizer(ff_weights)
    traced = load_optimizer(f"{ff_weights}:traced")
    assert traced.weights == inferred.weights
    assert traced.name == f"{ff_weights}:traced"
    model = small_cnn()
    optimizer, _ = traced.build(model, None, 10)
    train(model, optimizer)
    assert not optimizer.graph.inferred
    optimizer, _ = inferred.build(model, None, 10)
    assert optimizer.graph.inferred


@pytest.mark.parametrize("name", ["experts-c16", "linear-attention-m28"])
def test_metanets_that_read_connections_have_the_traced_graph(name):
    problem = available(name)
    model, batch = problem.init(0), problem.batch(0, 0)
    spec = load_optimizer("ng-gnn")
    assert spec.traced
    optimizer, _ = spec.build(model, None, 10)
    assert unconnected(NGOptimizer(model.parameters()).graph)
    problem.loss(model, batch).backward()
    optimizer.step()
    assert not optimizer.graph.inferred
    assert unconnected(optimizer.graph) == []


@pytest.mark.parametrize(
    "name, traced",
    [("ff", False), ("default", False), ("lstm", True), ("ng-t:open", True)],
)
def test_metanets_that_read_connections_alone_are_traced(name, traced):
    spec = load_optimizer(name)
    assert spec.traced == traced
    model = small_cnn()
    optimizer, _ = spec.build(model, None, 10)
    train(model, optimizer)
    assert optimizer.graph.inferred != traced
    assert not load_optimizer(f"{name}:traced").traced  # its name contains it


def test_metanets_in_bfloat16():
    spec = load_optimizer("ff:bfloat16")
    assert spec.weights == load_optimizer("ff").weights
    optimizer, _ = spec.build(nn.Linear(2, 2), None, 10)
    assert optimizer.compute_dtype == torch.bfloat16
