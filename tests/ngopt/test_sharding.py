"""Networks that are divided among processes: what one of two processes sees."""

import functools
import logging

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.testing._internal.distributed.fake_pg import FakeStore

from ngopt import NGOptimizer, build_graph
from tests.networks import mlp

WEIGHTS = ["default", "ff", "ng-gnn"]


@pytest.fixture(autouse=True)
def two_processes():
    """Of two processes this is the first; what the other would send is left as it is here."""
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    distributed.destroy_process_group()


def network():
    torch.manual_seed(0)
    return mlp(6, 8, 4)


def train(model, opt, steps=2):
    for _ in range(steps):
        opt.zero_grad()
        model(torch.randn(3, 6)).square().sum().backward()
        opt.step()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_zero_warns_that_the_graph_shows_some_parameters(weights, caplog):
    model = network()
    with pytest.warns(UserWarning, match="some of the parameters.*partial") as caught:
        opt = ZeroRedundancyOptimizer(
            model.parameters(), NGOptimizer, weights=weights, lr=0.5
        )
    assert len(caught) == 1
    before = [p.detach().clone() for p in model.parameters()]
    with caplog.at_level(logging.WARNING, logger="ngopt"):
        train(model, opt)
    assert not caplog.records
    own = opt.optim.param_groups[0]["params"]
    assert 0 < len(own) < 4
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old) != any(p is q for q in own)


def test_zero_with_a_model_shows_the_whole_network():
    model = network()
    with_model = functools.partial(NGOptimizer, model=model)
    opt = ZeroRedundancyOptimizer(model.parameters(), with_model)
    train(model, opt)
    assert opt.optim.graph.blocks == build_graph(network()).blocks


@pytest.mark.parametrize("use_orig_params", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("with_model", [False, True])
def test_flat_pieces_warn_once_and_are_optimized(
    use_orig_params, weights, with_model, caplog
):
    cpu = torch.device("cpu")
    model = FullyShardedDataParallel(
        network(), device_id=cpu, use_orig_params=use_orig_params
    )
    extra = {"model": model} if with_model else {}
    with pytest.warns(UserWarning, match="flat pieces of the parameters") as caught:
        opt = NGOptimizer(model.parameters(), weights=weights, **extra)
    assert len(caught) == 1
    before = [p.detach().clone() for p in model.parameters()]
    with caplog.at_level(logging.WARNING, logger="ngopt"):
        train(model, opt)
    assert not caplog.records
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old) == (p.grad is None)
    assert opt.graph.numel == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "example", [None, torch.randn(3, 6)], ids=["no example", "example"]
)
def test_building_a_graph_does_not_break_a_sharded_module(example):
    model = network()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with pytest.warns(UserWarning, match="FSDPSequential is sharded"):
        graph = build_graph(model, example)
    assert graph.blocks == build_graph(list(network().named_parameters())).blocks
    model(torch.randn(3, 6)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_whole_network_gives_no_warning():
    model = network()
    train(model, NGOptimizer(model.parameters()))
