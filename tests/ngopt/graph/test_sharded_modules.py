"""Networks that are divided among processes: as one of two processes."""

import functools
import logging
import operator

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.functional import scaled_dot_product_attention
from torch.testing._internal.distributed.fake_pg import FakeStore

from ngopt import NGOptimizer, build_graph
from tests.networks import FromFunction, mlp

WEIGHTS = ["default", "ff", "ng-gnn"]


@pytest.fixture(autouse=True)
def two_processes():
    """Of two processes this is the first; what the other would send is left as it is
    here."""
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
            model.parameters(), NGOptimizer, rule=weights, lr=0.5
        )
    assert len(caught) == 1
    before = [p.detach().clone() for p in model.parameters()]
    with caplog.at_level(logging.WARNING, logger="ngopt"):
        train(model, opt)
    assert not caplog.records
    optimized = opt.optim.param_groups[0]["params"]
    assert 0 < len(optimized) < 4
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old) != any(p is q for q in optimized)


def test_zero_with_a_model_shows_the_whole_network():
    model = network()
    with_model = functools.partial(NGOptimizer, model=model)
    opt = ZeroRedundancyOptimizer(model.parameters(), with_model)
    train(model, opt)
    assert opt.optim.graph.blocks == build_graph(network()).blocks


@pytest.mark.parametrize("use_orig_params", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_flat_pieces_are_refused(use_orig_params, weights):
    cpu = torch.device("cpu")
    model = FullyShardedDataParallel(
        network(), device_id=cpu, use_orig_params=use_orig_params
    )
    message = r"flat parameters.*Use .*fully_shard\(model"
    for extra in ({}, {"model": model}):
        with pytest.raises(ValueError, match=message):
            NGOptimizer(model.parameters(), rule=weights, **extra)
    with pytest.raises(ValueError, match=message):
        build_graph(model, torch.randn(3, 6))


def attention():
    """With a table that is the head, too, and heads whose number no shape shows."""

    def forward(m, x):
        x = m.table(x[:, m.order])
        y = m.norm(x)
        q, k, v = (f(y).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (m.q, m.k, m.v))
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return m.head(m.recurrent(x + m.o(y))[0])

    parts = {name: nn.Linear(8, 8, bias=False) for name in "qkvo"}
    parts["recurrent"] = nn.LSTM(8, 8, batch_first=True)
    parts |= {"head": nn.Linear(8, 9, bias=False), "order": torch.arange(4).flip(0)}
    model = FromFunction(
        forward, table=nn.Embedding(9, 8), norm=nn.LayerNorm(8), **parts
    )
    model.head.weight = model.table.weight
    return model


def sharded(model, divide):
    """Of parameters that the first of two processes has parts of."""
    mesh = init_device_mesh("cpu", (2,))
    if divide == "tensor":
        names = dict.fromkeys(["q", "k", "v"], ColwiseParallel())
        return parallelize_module(model, mesh, {**names, "o": RowwiseParallel()})
    bfloat16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    policy = bfloat16 if divide == "fully, bfloat16" else MixedPrecisionPolicy()
    for child in (model.norm, model.q):
        fully_shard(child, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


@pytest.mark.parametrize("divide", ["fully", "fully, bfloat16", "tensor"])
def test_the_graph_of_a_divided_network_is_that_of_the_whole(divide):
    x = torch.randint(9, (3, 4))
    expected = build_graph(attention(), x)
    model = sharded(attention(), divide)
    kinds, parameters = [*map(type, model.modules())], [*model.parameters()]
    assert build_graph(model, x).blocks == expected.blocks
    assert [*map(type, model.modules())] == kinds
    assert all(map(operator.is_, model.parameters(), parameters))
    opt = NGOptimizer(model.parameters(), model=model)
    model(x).float().square().sum().backward()
    assert opt.graph.blocks == expected.blocks
    assert opt.graph.parameters == expected.parameters
    assert all(p.grad is not None for p in model.parameters())


def test_a_divided_network_may_be_read_without_an_example():
    expected, mesh = build_graph(network()), init_device_mesh("cpu", (2,))
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    assert build_graph(fully_shard(model, mesh=mesh)).blocks == expected.blocks


def test_a_group_of_processes_is_for_the_default():
    params = list(network().parameters())
    world = distributed.group.WORLD
    with pytest.raises(ValueError, match="process_group: expected rule='default'"):
        NGOptimizer(params, rule="ff", process_group=world)
    mesh = init_device_mesh("cpu", (2,))
    message = r"process_group: expected .*mesh.get_group\(\)"
    with pytest.raises(ValueError, match=message):
        NGOptimizer(params, process_group=mesh)
