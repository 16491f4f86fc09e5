"""Training in several gloo processes, beside the same training in one."""

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.functional import cross_entropy, mse_loss

from ngopt import NGOptimizer
from tests.divided_networks import LENGTH, divided, network, words_of

TIMEOUT = timedelta(seconds=60)
BATCH = 12


def batch(step: int) -> Tensor:
    """The inputs of all processes."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, LENGTH, dtype=torch.float64, generator=generator)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """Squared error of three outputs, or cross entropy of the next word of a GPT."""
    y = model(x)
    if y.dim() == 2:
        return mse_loss(y, x[:, :3].sin())
    return cross_entropy(y[:, :-1].flatten(0, 1), words_of(x)[:, 1:].flatten())


def train(
    model: nn.Module, opt: NGOptimizer, steps: range, part: int = 0, parts: int = 1
) -> None:
    """Trains on part `part` of `parts` of each batch."""
    dtype = next(model.parameters()).dtype
    for step in steps:
        x = batch(step).chunk(parts)[part].to(dtype)
        opt.zero_grad()
        loss_of(model, x).backward()
        opt.step()


def whole(model: nn.Module) -> list[Tensor]:
    """All parameters, gathered from all ranks."""
    params = []
    for p in model.parameters():
        full = p.full_tensor() if isinstance(p, DTensor) else p
        params.append(full.detach().clone())
    return params


def size_of(opt: NGOptimizer) -> int:
    """Elements of the state in this process."""
    return sum(x.numel() for record in opt.state.values() for x in record.values())


def run(function: Callable, size: int, *args: Any) -> None:
    """Runs function(rank, size, *args) in processes; raises their first error."""
    # processes begin as copies of one that has imported all of this
    multiprocessing.set_forkserver_preload(["tests.processes"])
    with tempfile.TemporaryDirectory() as folder:
        given = function, size, Path(folder, "start"), args
        start_processes(_work, given, nprocs=size, start_method="forkserver")


def _work(rank: int, function: Callable, size: int, start: Path, args: tuple) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{start}", TIMEOUT, world_size=size, rank=rank
    )
    function(rank, size, *args)
    distributed.barrier()
    distributed.destroy_process_group()


def alone(name: str, steps: int, folder: Path) -> None:
    """Trains a network in this process; writes its parameters and state size."""
    model = network(name)
    opt = NGOptimizer(model.parameters(), total_steps=steps)
    train(model, opt, range(steps))
    torch.save((whole(model), size_of(opt)), folder / f"{name}.pt")


def largest_difference(params: list[Tensor], others: list[Tensor]) -> float:
    return max((p - q).abs().max().item() for p, q in zip(params, others, strict=True))


def compared(
    size: int, kind: str, name: str, steps: int, folder: Path
) -> dict[str, Any]:
    """Trains a divided network and compares it with the result of `alone`.

    largest state: of a rank, in equal shares of the whole state.
    """
    model, settings, part = divided(network(name), kind, size)
    opt = NGOptimizer(model.parameters(), total_steps=steps, **settings)
    train(model, opt, range(steps), *part)
    every: list[Any] = [None] * size
    distributed.all_gather_object(every, (whole(model), size_of(opt)))
    expected, expected_size = torch.load(folder / f"{name}.pt")
    first, _ = every[0]
    are_equal = True
    largest = 0
    for params, state_size in every:
        are_equal = are_equal and all(map(torch.equal, first, params))
        largest = max(largest, state_size)
    return {
        "difference": largest_difference(first, expected),
        "ranks are equal": are_equal,
        "largest state": largest * size / expected_size,
    }
