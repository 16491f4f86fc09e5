"""Compares training in several processes with training in one.

`python -m benchmarks.processes` trains five networks in float64 for 60 steps, alone and
on several gloo processes: with DistributedDataParallel (`replicated`), the same with
`process_group=` (`ddp`), `fully_shard` on one mesh dimension (`fsdp`) and two (`hsdp`),
tensor parallelism (`tp`), and both (`fsdp+tp`). It prints the largest difference of a
parameter, and the largest state of a rank in equal shares of the whole state. With
`--dtype float32` the first rows compare training alone in float32 and in float64.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.multiprocessing.spawn import start_processes
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

from benchmarks import records
from harness import cli
from ngopt import NGOptimizer

TIMEOUT = timedelta(seconds=60)
BATCH, LENGTH, WORDS = 12, 8, 64
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


class Block(nn.Module):
    """A residual MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Attention(nn.Module):
    """Residual causal attention with heads of 32 on each rank's part of the queries."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q = self._by_head(self.q(y))
        k = self._by_head(self.k(y))
        v = self._by_head(self.v(y))
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.o(y.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, 32)).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(LENGTH, 10)
        self.last = nn.Linear(10, 3)
        self.blocks = nn.ModuleList(Block(10) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Conv(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (1, LENGTH)),
            nn.Conv1d(1, 6, 3, padding=1),
            nn.GroupNorm(2, 6),
            nn.ReLU(),
            nn.Conv1d(6, 5, 3),
            nn.Flatten(),
            nn.Linear(5 * (LENGTH - 2), 3),
        )


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(1, 12, 2, batch_first=True)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.recurrent(x.unsqueeze(2))
        return self.last(outputs[:, -1])


class Words(nn.Module):
    """Tied embeddings that are too large for one owner."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(151, 8)
        self.block = Block(8)
        self.head = nn.Linear(8, 151, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        codes = (x.abs() * 50).long().clamp(max=150)
        hidden = self.block(self.table(codes).mean(1))
        return self.head(hidden)[:, :3]


class Gpt(nn.Module):
    """A GPT with tied embeddings of 64 words."""

    def __init__(self, width: int = 128, count: int = 4):
        super().__init__()
        self.table = nn.Embedding(WORDS, width)
        self.blocks = nn.ModuleList()
        for _ in range(count):
            self.blocks.append(Attention(width))
            self.blocks.append(Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(words_of(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Mlp,
    "conv": Conv,
    "lstm": Lstm,
    "words": Words,
    "gpt": Gpt,
    "gpt small": lambda: Gpt(64, 1),
}
TENSORS = "mlp", "gpt"  # networks for tensor parallelism
UNITS = Block, Attention, nn.Conv1d  # modules for `fully_shard`
# layers of blocks and attentions that tensor parallelism divides by columns and by rows
COLUMNS, ROWS = ("up", "q", "k", "v"), ("down", "o")
MESHES = {"hsdp": ("copy", "shard"), "fsdp+tp": ("shard", "tensor")}


def network(name: str, dtype: str = "float64") -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().to(getattr(torch, dtype))


def batch(step: int) -> Tensor:
    """The inputs of all processes."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, LENGTH, dtype=torch.float64, generator=generator)


def words_of(x: Tensor) -> Tensor:
    """Maps real numbers to words."""
    return (x.sigmoid() * WORDS).long()


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
    size = 0
    for record in opt.state.values():
        for x in record.values():
            size += x.numel()
    return size


class Divided(NamedTuple):
    """A divided network.

    settings: arguments of the optimizer. part: (part, parts) of the batch.
    """

    model: nn.Module
    settings: dict[str, Any]
    part: tuple[int, int]


def divided(model: nn.Module, kind: str, size: int) -> Divided:
    """Divides a network by a kind of `CASES`."""
    rank = distributed.get_rank()
    if kind == "replicated":
        return Divided(DistributedDataParallel(model), {}, (rank, size))
    if kind == "ddp":
        settings = {"process_group": distributed.group.WORLD}
        return Divided(DistributedDataParallel(model), settings, (rank, size))
    names = MESHES.get(kind, ("all",))
    shape = (2, size // 2) if kind in MESHES else (size,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    if kind == "tp":
        _divide_tensors(model, mesh)
        return Divided(model, {}, (0, 1))
    if kind == "fsdp+tp":
        _divide_tensors(model, mesh["tensor"])
        _shard(model, mesh["shard"])
        return Divided(model, {}, (mesh["shard"].get_local_rank(), 2))
    _shard(model, mesh)
    return Divided(model, {}, (rank, size))


def _divide_tensors(model: nn.Module, mesh: DeviceMesh) -> None:
    for block in list(model.modules()):
        if isinstance(block, Block | Attention):
            plan: dict[str, ParallelStyle] = {}
            for name, _ in block.named_children():
                if name in COLUMNS:
                    plan[name] = ColwiseParallel()
                elif name in ROWS:
                    plan[name] = RowwiseParallel()
            parallelize_module(block, mesh, plan)


def _shard(model: nn.Module, mesh: DeviceMesh) -> None:
    for child in list(model.modules()):
        if isinstance(child, UNITS):
            fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)


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
        "gloo",
        init_method=f"file://{start}",
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
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
    pairs = zip(params, others, strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


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
    found = []
    for name in names:
        record = compared(size, kind, name, config.steps, folder, config.dtype)
        found.append(record)
    if rank == 0:
        torch.save(found, folder / "found.pt")


def main(config: Config) -> None:
    found: list[records.Record] = []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        for name in config.networks:
            if config.dtype == "float32":
                found.append(rounded(name, config.steps, folder))
            else:
                alone(name, config.steps, folder)
        for kind, size in CASES:
            names = list(config.networks)
            if "tp" in kind:
                names = [name for name in names if name in TENSORS]
            run(_write_compared, size, kind, names, folder, config)
            found += torch.load(folder / "found.pt")
            print(f"{kind} on {size} ranks: done", flush=True)
    records.write(Path(config.output), processes=found)
    for record in found:
        record["difference"] = f"{record['difference']:.0e}"
    print(records.table(found))


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
