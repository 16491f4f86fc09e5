"""Runs a function in several processes that form a group."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def run(function: Callable, size: int, *args: Any) -> None:
    """function(rank, size, *args) in `size` processes; raises what one of them raises."""
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "start")
        multiprocessing.spawn(_work, (function, size, start, args), nprocs=size)


def _work(rank: int, function: Callable, size: int, start: Path, args: tuple) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{start}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    function(rank, size, *args)
    distributed.barrier()
    distributed.destroy_process_group()
