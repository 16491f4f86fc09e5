"""Runs in several processes, against the same runs in one (gloo, CPU)."""

from copy import deepcopy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ngopt import NGOptimizer, UpdateRule
from tests.divided_networks import Attention, divided, network
from tests.processes import alone, batch, compared, loss_of, run, train, whole

STEPS = 30
EXACT = 1e-10


def network_divided(name, kind, size):
    return divided(network(name), kind, size)


def equal_one_process(rank, size, cases, folder):
    for kind, name in cases:
        found = compared(size, kind, name, STEPS, folder)
        assert found["difference"] < EXACT, found
        assert found["ranks are equal"], found
        # of two LSTMs and a small matrix, no two ranks have equal shares
        if size == 2 and name != "lstm":
            assert found["largest state"] < 1.15, found


CASES = {
    2: [
        ("ddp", "mlp"),
        *(("fsdp", x) for x in ("mlp", "lstm", "words", "gpt small")),
        ("tp", "mlp"),
        ("tp", "gpt small"),
    ],
    3: [("ddp", "words"), ("fsdp", "conv")],  # pieces differ, and some are empty
    4: [("hsdp", "words"), ("fsdp+tp", "mlp")],
}


@pytest.mark.parametrize("size", CASES)
def test_several_processes_give_the_numbers_of_one(size, tmp_path):
    for name in {name for _, name in CASES[size]}:
        alone(name, STEPS, tmp_path)
    run(equal_one_process, size, CASES[size], tmp_path)


def bytes_are_few(rank, size):
    """What ranks send and receive, in gradients and changes of their parts."""
    model, _, part = network_divided("mlp", "fsdp", size)
    opt = NGOptimizer(model.parameters(), total_steps=STEPS)
    train(model, opt, range(1), *part)
    (update,) = opt._binding._bound.rule._updates
    routes = [route for x in update.exchanges for route in (x._up, x._down)]
    parts = [some for route in routes for some in (*route.sent, *route.received)]
    moved = sum(part.piece.numel for some in parts for part in some)
    held = 2 * sum(p.to_local().numel() for p in model.parameters())
    every = [None] * size
    distributed.all_gather_object(every, (moved, held))
    moved, held = map(sum, zip(*every, strict=True))
    assert 0.9 * held < moved < 1.1 * held  # two ranks: half of all stays


def different_gradients(rank, size):
    model, _, part = network_divided("mlp", "fsdp", size)
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
    opt = NGOptimizer(model.parameters(), process_group=distributed.group.WORLD)
    model(torch.ones(2, 3)).sum().backward()
    with pytest.raises(ValueError, match="the same parameters in the same order"):
        opt.step()


def nan_in_one(rank, size):
    model, _, part = network_divided("mlp", "fsdp", size)
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
    owners = opt._binding._bound.shards.ownerships
    state = get_optimizer_state_dict(model, opt)
    copied = deepcopy(opt)
    opt.param_groups[0]["total_steps"] = 2 * STEPS
    model, loaded = made()
    set_optimizer_state_dict(model, loaded, state)
    for each in (opt, loaded, copied):
        step(each)
        assert each._binding._bound.shards.ownerships == owners


def products_are_rounded(rank, size):
    """In bfloat16, as on GPUs; all ranks have one batch, so equal gradients."""
    settings = {"compute_dtype": torch.bfloat16}
    weights = []
    for model in (network("mlp"), network_divided("mlp", "fsdp", size)[0]):
        opt = NGOptimizer(model.parameters(), total_steps=STEPS, **settings)
        train(model, opt, range(4))
        weights.append(whole(model))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-4)


def different_settings(rank, size):
    """Of the same groups, and of the optimizer."""
    group = distributed.group.WORLD
    for key, values in (("lr", (1.0, 0.5)), ("weight_decay", (0.0, 1.0))):
        model = nn.Linear(3, 4)
        given = zip(model.parameters(), values[::-1] if rank else values, strict=True)
        groups = [{"params": [p], key: x} for p, x in given]
        refuses(model, NGOptimizer(groups, process_group=group), key)
    each_its_own = (
        ("precondition_frequency", (2, 3)),
        ("compute_dtype", (None, torch.bfloat16)),
    )
    for key, values in each_its_own:
        model = nn.Linear(3, 4)
        settings = {key: values[rank], "process_group": group}
        refuses(model, NGOptimizer(model.parameters(), **settings), key)


class Divided(UpdateRule):
    shards = True


def rules_other_than_soap(rank, size):
    model = nn.Linear(3, 4)
    group = distributed.group.WORLD
    opt = NGOptimizer(model.parameters(), rule=Divided(), process_group=group)
    model(torch.ones(2, 3)).sum().backward()
    with pytest.raises(ValueError, match="expected SOAP.*Set shards to False"):
        opt.step()


def refuses(model, opt, key):
    model(torch.ones(2, 3)).sum().backward()
    with pytest.raises(ValueError, match=f"the same {key} in all processes"):
        opt.step()


class Mixed(nn.Module):
    """Of several dtypes, which share a state of float32."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 10).bfloat16(), nn.LayerNorm(10)
        self.second, self.last = nn.Linear(10, 10), nn.Linear(10, 3).half()

    def forward(self, x):
        x = self.norm(self.first(x.bfloat16()).float())
        return self.last(self.second(x).tanh().half()).float()


def dtypes_are_mixed(rank, size):
    found = []
    for is_divided in (False, True):
        torch.manual_seed(0)
        model = Mixed()
        if is_divided:
            for child in model.children():
                fully_shard(child)
            fully_shard(model)
        opt = NGOptimizer(model.parameters(), total_steps=STEPS)
        train_on_the_same(model, opt, range(6))
        found.append(whole(model))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def train_on_the_same(model, opt, steps):
    """All ranks have the whole batch."""
    for step in steps:
        opt.zero_grad()
        loss_of(model, batch(step).float()).backward()
        opt.step()


class Scalars(nn.Module):
    """A number without dimensions and a complex vector."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.turn = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, x):
        return (x[:, :3] * self.turn).abs() * self.scale


def scalars(rank, size):
    found = []
    for settings in ({}, {"process_group": distributed.group.WORLD}):
        model = Scalars()
        opt = NGOptimizer(model.parameters(), total_steps=STEPS, **settings)
        train_on_the_same(model, opt, range(6))
        found.append(whole(model))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def copies_keep_their_group(rank, size):
    model, settings, part = network_divided("mlp", "ddp", size)
    opt = NGOptimizer(model.parameters(), **settings)
    train(model, opt, range(2), *part)
    copied = deepcopy(opt)
    params, others = (each.param_groups[0]["params"] for each in (opt, copied))
    before = whole(model)
    for each in (opt, copied):
        for p, start in zip(each.param_groups[0]["params"], before, strict=True):
            p.grad = start + 1
        each.step()
    assert not torch.equal(params[0], before[0])
    assert all(map(torch.equal, params, others))


def forward_passes_read_averages(rank, size):
    """Though `fully_shard` keeps what it gathered in a pass before."""
    model, _, part = network_divided("mlp", "fsdp", size)
    opt = NGOptimizer(model.parameters())
    train(model, opt, range(4), *part)
    losses = []
    with torch.no_grad():
        for _ in range(2):
            losses.append(loss_of(model, batch(0)).item())
            with opt.averaged():
                losses.append(loss_of(model, batch(0)).item())
        for mode in (opt.eval, opt.train):
            mode()
            losses.insert(4, loss_of(model, batch(0)).item())
    assert losses[:2] == losses[2:4] == losses[4:]
    alone = network("mlp")
    with torch.no_grad(), opt.averaged():
        for p, q in zip(alone.parameters(), whole(model), strict=True):
            p.copy_(q)
    assert loss_of(alone, batch(0)).item() == pytest.approx(losses[1], rel=1e-12)
    opt.load_average()
    with torch.no_grad():
        assert loss_of(model, batch(0)).item() == losses[1]


def metanets_refuse(rank, size):
    model, _, _ = network_divided("mlp", "fsdp", size)
    with pytest.raises(ValueError, match="rule='default'"):
        NGOptimizer(model.parameters(), rule="ff")


class Step:
    """What users do beside `step`, with the parameters of one process or of several."""

    def __init__(self, model):
        self.model = model
        self.frozen = model.block.norm.bias
        self.frozen.requires_grad_(False)

    def __call__(self, opt, step, part, parts):
        """Two batches, clipped; at some steps the table has no gradient."""
        opt.zero_grad()
        for x in batch(step).chunk(2):
            x = x.chunk(parts)[part]
            (loss_of(self.model, x) / 2).backward()
        if step % 3 == 1:
            self.model.table.weight.grad = None
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        opt.step()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def used_as_users_do(rank, size):
    found = []
    for is_divided in (False, True):
        model, part = network("words"), (0, 1)
        step = Step(model)
        if is_divided:
            model, _, part = divided(model, "fsdp", size)
        params = [p for p in model.parameters() if p.requires_grad]
        opt = NGOptimizer(params, total_steps=STEPS, weight_decay=0.1)
        found.append([step(opt, t, *part) for t in range(6)] + whole(model))
    torch.testing.assert_close(*found, rtol=0, atol=EXACT)


def begins_on_meta(rank, size):
    """As large models do; and its blocks are computed twice, in bfloat16."""
    with torch.device("meta"):
        model = network("gpt small")
    apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, Attention))
    mesh = init_device_mesh("cpu", (size,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    opt = NGOptimizer(model.parameters(), model=model, total_steps=STEPS)
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.normal_(p, std=0.02 if p.dim() > 1 else 1.0)
    losses = []
    for _ in range(20):
        x = batch(0).chunk(size)[rank].float()
        opt.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert "all connected" in repr(opt)


def every_check(rank, size):
    bytes_are_few(rank, size)
    different_gradients(rank, size)
    other_parameters(rank, size)
    different_settings(rank, size)
    rules_other_than_soap(rank, size)
    nan_in_one(rank, size)
    dtypes_are_mixed(rank, size)
    scalars(rank, size)
    copies_keep_their_group(rank, size)
    forward_passes_read_averages(rank, size)
    owners_stay(rank, size)
    products_are_rounded(rank, size)
    used_as_users_do(rank, size)
    begins_on_meta(rank, size)
    metanets_refuse(rank, size)


def test_two_processes_share_states_steps_and_errors():
    run(every_check, 2)
