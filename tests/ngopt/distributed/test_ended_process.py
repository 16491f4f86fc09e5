import os
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn

from ngopt import NGOptimizer
from tests.ngopt.distributed.test_processes import network_divided
from tests.processes import run, train


def one_ends(rank, size):
    model, settings, part = network_divided("mlp", "ddp", size)
    opt = NGOptimizer(model.parameters(), **settings)
    train(model, opt, range(2), *part)
    if rank == 0:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match=r"collective of ranks \[0, 1\] failed"):
            opt.step()
        distributed.destroy_process_group()
        with pytest.raises(RuntimeError, match="was destroyed"):
            opt.step()
    # without the barrier at the end, for which one rank would wait
    os._exit(0)


def test_a_process_that_ends_leaves_no_other_waiting():
    run(one_ends, 2)


def one_skips_a_step(rank, size):
    """And goes on with the collectives of its next forward pass."""
    group = distributed.new_group(list(range(size)), timeout=timedelta(seconds=3))
    model = nn.Linear(8, 4)
    opt = NGOptimizer(model.parameters(), process_group=group)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    before = [p.detach().clone() for p in model.parameters()]
    if rank == 0:
        with pytest.raises(RuntimeError, match="ended or skipped a step"):
            opt.step()
        assert all(map(torch.equal, before, model.parameters()))
    else:
        with pytest.raises(RuntimeError):
            distributed.all_reduce(torch.ones(1000), group=group)
    os._exit(0)


def test_a_skipped_step_is_not_taken_for_the_next_forward_pass():
    run(one_skips_a_step, 2)
