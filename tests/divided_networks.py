"""Networks for `tests.processes`, and their division among processes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

LENGTH, WORDS = 8, 64


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


def conv() -> nn.Module:
    return nn.Sequential(
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

    def __init__(self, width: int = 64):
        super().__init__()
        self.table = nn.Embedding(WORDS, width)
        self.blocks = nn.ModuleList([Attention(width), Block(width)])
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
    "conv": conv,
    "lstm": Lstm,
    "words": Words,
    "gpt small": Gpt,
}
UNITS = Block, Attention, nn.Conv1d  # modules for `fully_shard`
# layers of blocks and attentions that tensor parallelism divides by columns and by rows
COLUMNS, ROWS = ("up", "q", "k", "v"), ("down", "o")
MESHES = {"hsdp": ("copy", "shard"), "fsdp+tp": ("shard", "tensor")}


def network(name: str, dtype: str = "float64") -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().to(getattr(torch, dtype))


def words_of(x: Tensor) -> Tensor:
    """Maps real numbers to words."""
    return (x.sigmoid() * WORDS).long()


class Divided(NamedTuple):
    """A divided network.

    settings: arguments of the optimizer. part: (part, parts) of the batch.
    """

    model: nn.Module
    settings: dict[str, Any]
    part: tuple[int, int]


def divided(model: nn.Module, kind: str, size: int) -> Divided:
    """Divides a network. kind: ddp, fsdp, hsdp, tp or fsdp+tp."""
    rank = distributed.get_rank()
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
