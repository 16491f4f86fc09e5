"""States that some processes save and others load (gloo, CPU)."""

from copy import deepcopy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import distribute_tensor

from ngopt import NGOptimizer
from tests.divided_networks import divided, network
from tests.processes import run, train, whole

EXACT = {"rtol": 1e-12, "atol": 1e-10}  # sums are in another order
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
SHARED = [StateDictOptions(flatten_optimizer_state_dict=flat) for flat in (False, True)]


def made(size):
    """A network of as many processes, its optimizer, and (part, parts) of batches."""
    model, part = network("words"), (0, 1)
    if size > 1:
        model, _, part = divided(model, "fsdp", size)
    return model, NGOptimizer(model.parameters()), part


def saves(rank, size, folder):
    model, opt, part = made(size)
    train(model, opt, range(4), *part)
    weights = []
    for number, options in enumerate(SHARED):
        if number == 1:  # from here on with averages in the parameters
            opt.eval()
        weights.append(whole(model))
        state = {"opt": get_optimizer_state_dict(model, opt, options=options)}
        dcp.save(state, checkpoint_id=str(folder / str(number)))
    full = deepcopy(get_optimizer_state_dict(model, opt, options=FULL))
    opt.train()
    train(model, opt, range(4, 8), *part)
    found = whole(model)
    if rank == 0:
        torch.save((weights, found, full), folder / "all.pt")


def loads(rank, size, folder):
    before, after, full = torch.load(folder / "all.pt")
    for number in range(3):
        model, opt, part = made(size)
        if number < len(SHARED):
            options = SHARED[number]
            state = {"opt": get_optimizer_state_dict(model, opt, options=options)}
            dcp.load(state, checkpoint_id=str(folder / str(number)))
            state = state["opt"]
        else:
            options = StateDictOptions(
                full_state_dict=True, broadcast_from_rank0=size > 1
            )
            state = full if rank == 0 else {}
        set_optimizer_state_dict(model, opt, state, options=options)
        with torch.no_grad():
            for p, value in zip(model.parameters(), before[number > 0], strict=True):
                if size > 1:
                    value = distribute_tensor(value, p.device_mesh, p.placements)
                p.copy_(value)
        opt.train()
        train(model, opt, range(4, 8), *part)
        torch.testing.assert_close(whole(model), after, **EXACT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints by the number of processes that have made them."""
    found = {size: tmp_path_factory.mktemp(f"of-{size}") for size in (1, 2)}
    for size, folder in found.items():
        run(saves, size, folder)
    return found


@pytest.mark.parametrize(("size", "saved"), [(1, 2), (3, 2), (4, 2), (2, 1)])
def test_training_goes_on_in_any_number_of_processes(size, saved, folders):
    run(loads, size, folders[saved])


def test_a_full_state_is_that_of_a_single_process(folders):
    alone, gathered = (torch.load(folder / "all.pt")[2] for folder in folders.values())
    assert gathered["param_groups"] == alone["param_groups"]
    assert gathered["state"].keys() == alone["state"].keys()
    for name, record in alone["state"].items():
        other = gathered["state"][name]
        assert other.keys() == record.keys()
        for key, value in record.items():
            assert type(other[key]) is torch.Tensor
            torch.testing.assert_close(other[key], value, **EXACT)
