"""Training in several processes, against the same training in one (gloo, CPU)."""

from __future__ import annotations

import os
from copy import deepcopy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from ngopt import NGOptimizer
from tests.processes import run

STEPS = 12
ROWS = 151
EXACT = {"rtol": 0, "atol": 1e-10}


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(7, 10), nn.Linear(10, 3)
        self.blocks = nn.ModuleList(Block(10) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Words(nn.Module):
    """A tied table, so that the graph has an embedding, too large for one owner."""

    def __init__(self):
        super().__init__()
        self.table, self.block = nn.Embedding(ROWS, 8), Block(8)
        self.head = nn.Linear(8, ROWS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        codes = (x.abs() * 50).long().clamp(max=ROWS - 1)
        return self.head(self.block(self.table(codes).mean(1)))[:, :3]


class Conv(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (1, 7)),
            nn.Conv1d(1, 6, 3, padding=1),
            nn.GroupNorm(2, 6),
            nn.ReLU(),
            nn.Conv1d(6, 5, 3),
            nn.Flatten(),
            nn.Linear(25, 3),
        )


NETWORKS = {"mlp": Mlp, "words": Words, "conv": Conv}


def network(name):
    torch.manual_seed(0)
    return NETWORKS[name]().double()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(12, 7, dtype=torch.float64, generator=generator)


def train(model, opt, steps, part=0, parts=1):
    for step in steps:
        x = batch(step).chunk(parts)[part]
        opt.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        opt.step()


def whole(model):
    found = [
        p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()
    ]
    return [p.detach().clone() for p in found]


def expected(name, steps=range(STEPS), **settings):
    model = network(name)
    train(model, NGOptimizer(model.parameters(), total_steps=STEPS, **settings), steps)
    return whole(model)


def divided(name, kind, size):
    """The network as `kind` divides it, settings, and (part, parts) of the batch."""
    model, rank = network(name), distributed.get_rank()
    if kind == "ddp":
        group = {"process_group": distributed.group.WORLD}
        return DistributedDataParallel(model), group, (rank, size)
    shape = (2, size // 2) if kind in ("hsdp", "fsdp+tp") else (size,)
    names = {"hsdp": ("copy", "shard"), "fsdp+tp": ("shard", "tensor")}
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names.get(kind, ("all",)))
    if kind in ("tp", "fsdp+tp"):
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        for block in model.blocks:
            parallelize_module(block, mesh["tensor"] if "+" in kind else mesh, plan)
        if kind == "tp":
            return model, {}, (0, 1)
    of_shards = mesh["shard"] if "+" in kind else mesh
    for child in model.modules():
        if isinstance(child, Block | nn.Conv1d):
            fully_shard(child, mesh=of_shards)
    fully_shard(model, mesh=of_shards)
    parts = (mesh["shard"].get_local_rank(), 2) if "+" in kind else (rank, size)
    return model, {}, parts


def equal_one_process(rank, size, cases):
    for kind, name in cases:
        model, settings, part = divided(name, kind, size)
        opt = NGOptimizer(model.parameters(), total_steps=STEPS, **settings)
        train(model, opt, range(STEPS), *part)
        if name == "words":
            assert opt._shards[1].owned[0].is_divided
        found = whole(model)
        for p, q in zip(found, expected(name), strict=True):
            torch.testing.assert_close(p, q, **EXACT)
        every = [None] * size
        distributed.all_gather_object(every, found)
        for other in every:
            assert all(map(torch.equal, found, other))


CASES = {
    2: [("ddp", "mlp"), ("fsdp", "mlp"), ("fsdp", "words"), ("tp", "mlp")],
    3: [("ddp", "words"), ("fsdp", "conv")],  # pieces differ, and some are empty
    4: [("hsdp", "words"), ("fsdp+tp", "mlp")],
}


@pytest.mark.parametrize("size", CASES)
def test_several_processes_give_the_numbers_of_one(size):
    run(equal_one_process, size, CASES[size])


def state_is_divided(rank, size):
    for name in ("mlp", "words"):
        model, _, part = divided(name, "fsdp", size)
        opt = NGOptimizer(model.parameters(), total_steps=STEPS)
        train(model, opt, range(2), *part)
        own = sum(x.numel() for record in opt.state.values() for x in record.values())
        every = [None] * size
        distributed.all_gather_object(every, own)
        single = network(name)
        other = NGOptimizer(single.parameters(), total_steps=STEPS)
        train(single, other, range(2))
        state = [x.numel() for record in other.state.values() for x in record.values()]
        assert max(every) < 1.15 * sum(state) / size


def saves(rank, size, folder):
    model, _, part = divided("words", "fsdp", size)
    opt = NGOptimizer(model.parameters())
    train(model, opt, range(4), *part)
    weights = whole(model)
    for flat in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        state = {"opt": get_optimizer_state_dict(model, opt, options=options)}
        dcp.save(state, checkpoint_id=str(folder / str(flat)))
    train(model, opt, range(4, 8), *part)
    found = whole(model)
    if rank == 0:
        torch.save((weights, found), folder / "weights.pt")


def loads(rank, size, folder):
    before, after = torch.load(folder / "weights.pt")
    for flat in (False, True):
        is_whole = size == 1
        model, _, part = divided("words", "fsdp", size)
        if is_whole:
            model, part = network("words"), (0, 1)
        opt = NGOptimizer(model.parameters())
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        state = {"opt": get_optimizer_state_dict(model, opt, options=options)}
        dcp.load(state, checkpoint_id=str(folder / str(flat)))
        set_optimizer_state_dict(model, opt, state["opt"], options=options)
        with torch.no_grad():
            for p, value in zip(model.parameters(), before, strict=True):
                like = p if is_whole else (p.device_mesh, p.placements)
                p.copy_(value if is_whole else distribute_tensor(value, *like))
        train(model, opt, range(4, 8), *part)
        for p, q in zip(whole(model), after, strict=True):
            torch.testing.assert_close(p, q, **EXACT)


def test_a_checkpoint_goes_on_in_any_number_of_processes(tmp_path):
    run(saves, 2, tmp_path)
    for size in (1, 3):
        run(loads, size, tmp_path)


def bytes_are_few(rank, size):
    """What ranks send and receive, in gradients and changes of their parts."""
    model, _, part = divided("mlp", "fsdp", size)
    opt = NGOptimizer(model.parameters(), total_steps=STEPS)
    train(model, opt, range(1), *part)
    (group,) = opt._rule[1]._groups[1]
    routes = [route for x in group.exchanges for route in (x._up, x._down)]
    parts = [some for route in routes for some in (*route.sent, *route.received)]
    moved = sum(part.piece.numel for some in parts for part in some)
    held = 2 * sum(p.to_local().numel() for p in model.parameters())
    every = [None] * size
    distributed.all_gather_object(every, (moved, held))
    moved, held = map(sum, zip(*every, strict=True))
    assert 0.9 * held < moved < 1.1 * held  # two ranks: half of all stays


def different_gradients(rank, size):
    model, _, part = divided("mlp", "fsdp", size)
    opt = NGOptimizer(model.parameters())
    train(model, opt, range(2), *part)
    before = [p.to_local().clone() for p in model.parameters()]
    if rank == 1:
        next(model.parameters()).grad = None
    with pytest.raises(ValueError, match="the same parameters with gradients in all"):
        opt.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.to_local(), old)


def other_parameters(rank, size):
    model = nn.Linear(3, 4 + rank)
    group = distributed.group.WORLD
    opt = NGOptimizer(model.parameters(), process_group=group)
    model(torch.ones(2, 3)).sum().backward()
    with pytest.raises(ValueError, match="the same parameters in the same order"):
        opt.step()


def nan_in_one(rank, size):
    model, _, part = divided("mlp", "fsdp", size)
    opt = NGOptimizer(model.parameters())
    train(model, opt, range(2), *part)
    before = whole(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        if rank == 1:
            p.grad.to_local().fill_(torch.nan)
    opt.step()
    held = [p.to_local().numel() for p in model.parameters()]
    every = [None] * size
    distributed.all_gather_object(every, held)
    for p, old, count in zip(whole(model), before, every[1], strict=True):
        assert torch.equal(p, old) == (count > 0)


def owners_stay(rank, size):
    """For another horizon, for loaded state and in a copy.

    Costs of these shapes give other owners when the renewal interval is known.
    """

    def made():
        shapes = [(8, 8), (24, 8), (8, 24)]
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in shapes))
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
        return model, NGOptimizer(model.parameters(), total_steps=STEPS)

    def step(opt):
        for p in opt.param_groups[0]["params"]:
            p.grad = p.detach() + 1
        opt.step()

    model, opt = made()
    step(opt)
    owners = opt._shards[1].owned
    state = get_optimizer_state_dict(model, opt)
    copied = deepcopy(opt)
    opt.param_groups[0]["total_steps"] = 2 * STEPS
    model, loaded = made()
    set_optimizer_state_dict(model, loaded, state)
    for each in (opt, loaded, copied):
        step(each)
        assert each._shards[1].owned == owners


def products_are_rounded(rank, size):
    """In bfloat16, as on GPUs; all ranks have one batch, so equal gradients to round."""
    settings = {"compute_dtype": torch.bfloat16}
    model, _, _ = divided("mlp", "fsdp", size)
    opt = NGOptimizer(model.parameters(), total_steps=STEPS, **settings)
    train(model, opt, range(4))
    for p, q in zip(whole(model), expected("mlp", range(4), **settings), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-4)


def metanets_refuse(rank, size):
    model, _, _ = divided("mlp", "fsdp", size)
    with pytest.raises(ValueError, match="weights='default'"):
        NGOptimizer(model.parameters(), weights="ff")


def every_check(rank, size):
    state_is_divided(rank, size)
    bytes_are_few(rank, size)
    different_gradients(rank, size)
    other_parameters(rank, size)
    nan_in_one(rank, size)
    owners_stay(rank, size)
    products_are_rounded(rank, size)
    metanets_refuse(rank, size)


def test_two_processes_share_states_steps_and_errors():
    run(every_check, 2)


def one_ends(rank, size):
    model, settings, part = divided("mlp", "ddp", size)
    opt = NGOptimizer(model.parameters(), **settings)
    train(model, opt, range(2), *part)
    if rank == 0:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match=r"collective of ranks \[0, 1\] failed"):
            opt.step()
    # without the barrier at the end, for which one rank would wait
    os._exit(0)


def test_a_process_that_ends_leaves_no_other_waiting():
    run(one_ends, 2)
