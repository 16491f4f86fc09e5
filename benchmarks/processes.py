"""Compares training in several processes with training in one.

`python -m benchmarks.processes` trains five networks in float64 for 60 steps, alone and
on several gloo processes: with DistributedDataParallel (`replicated`), the same with
`process_group=` (`ddp`), `fully_shard` on one mesh dimension (`fsdp`) and two (`hsdp`),
tensor parallelism (`tp`), and the two together (`fsdp+tp`). It prints the largest
difference of a parameter, and the largest state of a rank in equal shares of the whole
state. With `--dtype float32` the first rows compare training alone in float32 and in
float64.
"""

import multiprocessing
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks import records
from benchmarks.divided_networks import LENGTH, TENSORS, divided, network, words_of
from harness import cli
from ngopt import NGOptimizer

TIMEOUT = timedelta(seconds=60)
BATCH = 12
CASES = (
    ("replicated", 2),
    ("ddp", 2),
    ("fsdp", 2),
    ("fsdp", 3),
    ("hsdp", 4),
    ("tp", 2),
    ("fsdp+tp", 4),
)


@dataclass(frozen=True)
class Config:
    """Options of the command line."""

    networks: tuple[str, ...] = ("mlp", "conv", "lstm", "words", "gpt")
    steps: int = 60
    dtype: Literal["float64", "float32"] = "float64"
    output: str = "results/processes.json"


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
    multiprocessing.set_forkserver_preload(["benchmarks.processes"])
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


def alone(name: str, steps: int, folder: Path, dtype: str = "float64") -> list[Tensor]:
    """Trains a network in this process; writes its parameters and state size."""
    model = network(name, dtype)
    opt = NGOptimizer(model.parameters(), total_steps=steps)
    train(model, opt, range(steps))
    params = whole(model)
    torch.save((params, size_of(opt)), folder / f"{name}.pt")
    return params


def rounded(name: str, steps: int, folder: Path) -> records.Record:
    """Trains alone in float64 and in float32, which `alone` writes."""
    start = perf_counter()
    exact = alone(name, steps, folder)
    params = alone(name, steps, folder, "float32")
    return {
        "divided by": "alone",
        "ranks": 1,
        "network": name,
        "difference": largest_difference(params, exact),
        "ranks are equal": True,
        "largest state": 1.0,
        "seconds": perf_counter() - start,
    }


def largest_difference(params: list[Tensor], others: list[Tensor]) -> float:
    return max((p - q).abs().max().item() for p, q in zip(params, others, strict=True))


def compared(
    size: int, kind: str, name: str, steps: int, folder: Path, dtype: str = "float64"
) -> records.Record:
    """Trains a divided network and compares it with the result of `alone`."""
    model, settings, part = divided(network(name, dtype), kind, size)
    opt = NGOptimizer(model.parameters(), total_steps=steps, **settings)
    start = perf_counter()
    train(model, opt, range(steps), *part)
    seconds = perf_counter() - start
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
        "divided by": kind,
        "ranks": size,
        "network": name,
        "difference": largest_difference(first, expected),
        "ranks are equal": are_equal,
        "largest state": largest * size / expected_size,
        "seconds": seconds,
    }


def _write_compared(
    rank: int, size: int, kind: str, names: list[str], folder: Path, config: Config
) -> None:
    rows = []
    for name in names:
        rows.append(compared(size, kind, name, config.steps, folder, config.dtype))
    if rank == 0:
        torch.save(rows, folder / "rows.pt")


def main(config: Config) -> None:
    rows: list[records.Record] = []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        for name in config.networks:
            if config.dtype == "float32":
                rows.append(rounded(name, config.steps, folder))
            else:
                alone(name, config.steps, folder)
        for kind, size in CASES:
            names = list(config.networks)
            if "tp" in kind:
                names = [name for name in names if name in TENSORS]
            run(_write_compared, size, kind, names, folder, config)
            rows += torch.load(folder / "rows.pt")
            print(f"{kind} on {size} ranks: done", flush=True)
    records.write(Path(config.output), processes=rows)
    for record in rows:
        record["difference"] = f"{record['difference']:.0e}"
    print(records.table(rows))


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
