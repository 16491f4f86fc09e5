"""Networks on several meshes or parts of one, and groups of some processes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from ngopt import NGOptimizer
from tests.divided_networks import Block, network
from tests.processes import alone, batch, run, train, whole

STEPS = 10
EXACT = 1e-10


def of_a_flattened_mesh(model):
    """Whose name is none of the dimensions of its root."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("context", "data"))
    mesh._flatten("all")
    fully_shard(model.blocks[0], mesh=mesh["all"])
    fully_shard(model, mesh=mesh["all"])
    return distributed.get_rank(), 4


def of_a_flattened_mesh_beside_tensors(model):
    names = "copy", "context", "tensor"
    mesh = init_device_mesh("cpu", (1, 2, 2), mesh_dim_names=names)
    mesh["copy", "context"]._flatten("data")
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    for block in (m for m in model.modules() if isinstance(m, Block)):
        parallelize_module(block, mesh["tensor"], plan)
        fully_shard(block, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    return mesh["data"].get_local_rank(), 2


def of_two_meshes(model):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))
    fully_shard(model.blocks[0], mesh=mesh)
    fully_shard(model, mesh=init_device_mesh("cpu", (4,)))
    return distributed.get_rank(), 4


def of_parts_that_train_alone(model):
    """As stages of a pipeline do; both have the same here."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "data"))
    fully_shard(model, mesh=mesh["data"])
    return mesh["data"].get_local_rank(), 2


MESHES = (
    of_a_flattened_mesh,
    of_a_flattened_mesh_beside_tensors,
    of_two_meshes,
    of_parts_that_train_alone,
)


def equal_one_process(rank, size, folder):
    expected, _ = torch.load(folder / "mlp.pt")
    for divide in MESHES:
        model = network("mlp")
        part = divide(model)
        opt = NGOptimizer(model.parameters(), total_steps=STEPS)
        train(model, opt, range(STEPS), *part)
        close = {"rtol": 0, "atol": EXACT, "msg": divide.__name__}
        torch.testing.assert_close(whole(model), expected, **close)


def test_all_who_share_parameters_are_found_whatever_the_meshes(tmp_path):
    alone("mlp", STEPS, tmp_path)
    run(equal_one_process, 4, tmp_path)


def state_of_other_axes(rank, size):
    """As of another device, where axes are not divided, or elsewhere."""
    models = [nn.Linear(100, 60).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"process_group": distributed.group.WORLD}
    group = {"params": models[0].parameters(), "factor_rows": 64}
    opts = [
        NGOptimizer([group], **options),
        NGOptimizer(models[1].parameters(), **options),
    ]
    for step in range(4):
        if step == 2:
            models[1].load_state_dict(models[0].state_dict())
            opts[1].load_state_dict(opts[0].state_dict())
        for model, opt in zip(models, opts, strict=True):
            opt.zero_grad()
            generator = torch.Generator().manual_seed(step)
            model(
                torch.randn(9, 100, generator=generator).double()
            ).exp().sum().backward()
            opt.step()
    assert opts[1].state[models[1].weight]["rows_0"].shape[-1] in (0, 30)
    assert torch.equal(models[0].weight, models[1].weight)


def test_a_loaded_state_keeps_its_axes():
    run(state_of_other_axes, 2)


def one_is_late(rank, size):
    """Longer than the timeout of the group, not than that of all processes."""
    group = distributed.new_group([0, 1], timeout=timedelta(seconds=3))
    if rank < 2:
        model = nn.Linear(8, 3).double()
        opt = NGOptimizer(model.parameters(), process_group=group)
        model(batch(0)).sum().backward()
        opt.step()
        if rank == 0:
            with pytest.raises(RuntimeError, match=r"of ranks \[0, 1\] failed"):
                opt.step()
    distributed.barrier()


def test_collectives_have_the_timeout_of_the_group_that_was_given():
    """Of all processes, and of two of three. Both wait at the same time."""
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run, one_is_late, size) for size in (2, 3)]
    for each in runs:
        each.result()
