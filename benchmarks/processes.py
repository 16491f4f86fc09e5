"""How far training in several processes is from training in one.

`python -m benchmarks.processes` trains five networks in float64 for 60 steps, alone and
on several gloo processes: with DistributedDataParallel (`replicated`), the same with
`process_group=` (`ddp`), `fully_shard` on one mesh dimension (`fsdp`) and two (`hsdp`),
tensor parallelism (`tp`), and both (`fsdp+tp`). It prints the largest difference of a
parameter, and the largest state of a rank in equal shares of the whole state.
"""

from __future__ import annotations

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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
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
    """What is trained, and for how long."""

    networks: tuple[str, ...] = ("mlp", "conv", "lstm", "words", "gpt")
    steps: int = 60
    dtype: Literal["float64", "float32"] = "float64"
    output: str = "results/processes.json"


class Block(nn.Module):
    """An MLP beside a skip connection."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Attention(nn.Module):
    """With heads of 32; their number follows from what a rank has of the queries."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        heads = (
            f(y).unflatten(-1, (-1, 32)).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        y = scaled_dot_product_attention(*heads, is_causal=True)
        return x + self.o(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(LENGTH, 10), nn.Linear(10, 3)
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
        return self.last(self.recurrent(x.unsqueeze(2))[0][:, -1])


class Words(nn.Module):
    """A tied table that is too large for one owner."""

    def __init__(self):
        super().__init__()
        self.table, self.block = nn.Embedding(151, 8), Block(8)
        self.head = nn.Linear(8, 151, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        codes = (x.abs() * 50).long().clamp(max=150)
        return self.head(self.block(self.table(codes).mean(1)))[:, :3]


class Gpt(nn.Module):
    """Of 64 words, with a tied table."""

    def __init__(self, width: int = 128, count: int = 4):
        super().__init__()
        self.table = nn.Embedding(WORDS, width)
        pairs = (m for _ in range(count) for m in (Attention(width), Block(width)))
        self.blocks = nn.ModuleList(pairs)
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
TENSORS = "mlp", "gpt"  # which tensor parallelism divides
UNITS = Block, Attention, nn.Conv1d  # which `fully_shard` divides


def network(name: str, dtype: str = "float64") -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().to(getattr(torch, dtype))


def batch(step: int) -> Tensor:
    """Inputs of all processes."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, LENGTH, dtype=torch.float64, generator=generator)


def words_of(x: Tensor) -> Tensor:
    """Numbers of words, of real numbers."""
    return (x.sigmoid() * WORDS).long()


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """Of three numbers for each example, or of the next word of a GPT."""
    y = model(x)
    if y.dim() == 2:
        return mse_loss(y, x[:, :3].sin())
    return cross_entropy(y[:, :-1].flatten(0, 1), words_of(x)[:, 1:].flatten())


def train(
    model: nn.Module, opt: NGOptimizer, steps: range, part: int = 0, parts: int = 1
) -> None:
    """part: that this process has of every batch, of so many."""
    dtype = next(model.parameters()).dtype
    for step in steps:
        x = batch(step).chunk(parts)[part].to(dtype)
        opt.zero_grad()
        loss_of(model, x).backward()
        opt.step()


def whole(model: nn.Module) -> list[Tensor]:
    """All parameters."""
    params: list[Any] = list(model.parameters())
    found = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in params]
    return [p.detach().clone() for p in found]


def size_of(opt: NGOptimizer) -> int:
    """Elements of the state in this process."""
    return sum(x.numel() for record in opt.state.values() for x in record.values())


def divided(
    model: nn.Module, kind: str, size: int
) -> tuple[nn.Module, dict[str, Any], tuple[int, int]]:
    """The network as `kind` divides it, settings, and (part, parts) of the batch."""
    rank = distributed.get_rank()
    if kind == "replicated":
        return DistributedDataParallel(model), {}, (rank, size)
    if kind == "ddp":
        group = {"process_group": distributed.group.WORLD}
        return DistributedDataParallel(model), group, (rank, size)
    shape = (2, size // 2) if kind in ("hsdp", "fsdp+tp") else (size,)
    names = {"hsdp": ("copy", "shard"), "fsdp+tp": ("shard", "tensor")}
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names.get(kind, ("all",)))
    if kind in ("tp", "fsdp+tp"):
        columns, rows = ("up", "q", "k", "v"), ("down", "o")
        plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in columns}
        plan |= {name: RowwiseParallel() for name in rows}
        for block in (m for m in model.modules() if isinstance(m, Block | Attention)):
            own = {
                name: plan[name] for name, _ in block.named_children() if name in plan
            }
            parallelize_module(block, mesh["tensor"] if "+" in kind else mesh, own)
        if kind == "tp":
            return model, {}, (0, 1)
    of_shards = mesh["shard"] if "+" in kind else mesh
    for child in [m for m in model.modules() if isinstance(m, UNITS)]:
        fully_shard(child, mesh=of_shards)
    fully_shard(model, mesh=of_shards)
    parts = (mesh["shard"].get_local_rank(), 2) if "+" in kind else (rank, size)
    return model, {}, parts


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


def alone(name: str, steps: int, folder: Path, dtype: str = "float64") -> None:
    """Trains a network in this process and writes what becomes of it."""
    model = network(name, dtype)
    opt = NGOptimizer(model.parameters(), total_steps=steps)
    train(model, opt, range(steps))
    torch.save((whole(model), size_of(opt)), folder / f"{name}.pt")


def compared(
    size: int, kind: str, name: str, steps: int, folder: Path, dtype: str = "float64"
) -> records.Record:
    """Trains a network divided; how far it is from what `alone` has written."""
    model, settings, part = divided(network(name, dtype), kind, size)
    opt = NGOptimizer(model.parameters(), total_steps=steps, **settings)
    start = perf_counter()
    train(model, opt, range(steps), *part)
    seconds = perf_counter() - start
    every: list[Any] = [None] * size
    distributed.all_gather_object(every, (whole(model), size_of(opt)))
    expected, state = torch.load(folder / f"{name}.pt")
    ranks, states = zip(*every, strict=True)
    pairs = zip(ranks[0], expected, strict=True)
    return {
        "divided by": kind,
        "ranks": size,
        "network": name,
        "difference": max((p - q).abs().max().item() for p, q in pairs),
        "ranks are equal": all(
            torch.equal(p, q)
            for other in ranks
            for p, q in zip(ranks[0], other, strict=True)
        ),
        "largest state": max(states) * size / state,
        "seconds": seconds,
    }


def _write_compared(
    rank: int, size: int, kind: str, names: list[str], folder: Path, config: Config
) -> None:
    given = config.steps, folder, config.dtype
    found = [compared(size, kind, name, *given) for name in names]
    if rank == 0:
        torch.save(found, folder / "found.pt")


def main(config: Config) -> None:
    found: list[records.Record] = []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        for name in config.networks:
            alone(name, config.steps, folder, config.dtype)
        for kind, size in CASES:
            names = [n for n in config.networks if "tp" not in kind or n in TENSORS]
            run(_write_compared, size, kind, names, folder, config)
            found += torch.load(folder / "found.pt")
            print(f"{kind} on {size} ranks: done", flush=True)
    shown = [{**x, "difference": f"{x['difference']:.0e}"} for x in found]
    print(records.table(shown))
    records.write(Path(config.output), processes=found)


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
