from __future__ import annotations

import os

import pytest
import torch
from torch import distributed

from benchmarks.processes import (
    run,
    train,
)
from ngopt import NGOptimizer
from tests.ngopt.distributed.test_processes import network_divided


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
