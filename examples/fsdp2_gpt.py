"""Trains a small GPT on the source files of Python's standard library, with FSDP2.

    torchrun --nproc-per-node 2 examples/fsdp2_gpt.py
    torchrun --nproc-per-node 4 examples/fsdp2_gpt.py --tensor-parallel 2
    torchrun --nproc-per-node 2 examples/fsdp2_gpt.py --folder runs/gpt  # resumes

NCCL and bfloat16 on GPUs, gloo and float32 on CPUs. The model is created on the meta
device and initialized tensor by tensor, so that no process stores all of it. Any number
of processes trains on the same batches from the same weights.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor, parallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint

from ngopt import NGOptimizer

MAX_NORM = 1.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16, help="sequences a step")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch")
    parser.add_argument("--context", type=int, default=128, help="bytes a sequence")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--tensor-parallel", type=int, default=1, help="processes")
    parser.add_argument("--recompute", action="store_true", help="activations")
    parser.add_argument("--report-every", type=int, default=20, help="steps")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--folder", type=Path, help="of checkpoints")
    return parser.parse_args()


class Block(nn.Module):
    """A residual branch of attention and one of an MLP, each with a norm first."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        width = args.width
        self.recompute = args.recompute
        self.head_size = width // args.heads
        self.attention_norm = nn.RMSNorm(width)
        self.mlp_norm = nn.RMSNorm(width)
        linear = partial(nn.Linear, bias=False)
        self.query = linear(width, width)
        self.key = linear(width, width)
        self.value = linear(width, width)
        self.out = linear(width, width)
        self.up = linear(width, 4 * width)
        self.down = linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute:
            return checkpoint(self.compute, x, use_reentrant=False)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))

    def attention(self, x: Tensor) -> Tensor:
        query = self.by_head(self.query(x))
        key = self.by_head(self.key(x))
        value = self.by_head(self.value(x))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def by_head(self, x: Tensor) -> Tensor:
        """(batch, heads of this process, context, head size)"""
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class GPT(nn.Module):
    """The output layer shares the weights of the embedding."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        self.embedding = nn.Embedding(256, args.width)  # of bytes
        self.positions = nn.Embedding(args.context, args.width)
        self.blocks = nn.ModuleList(Block(args) for _ in range(args.blocks))
        self.norm = nn.RMSNorm(args.width)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(positions)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


def make_model(args: argparse.Namespace, mesh: DeviceMesh) -> GPT:
    """A model whose parameters are divided among the processes of a mesh."""
    with torch.device("meta"):
        model = GPT(args)
    columns = parallel.ColwiseParallel()
    rows = parallel.RowwiseParallel()
    plan: dict[str, Any] = dict.fromkeys(("query", "key", "value", "up"), columns)
    plan |= {"out": rows, "down": rows}
    dtype = torch.bfloat16 if mesh.device_type == "cuda" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.blocks:
        if args.tensor_parallel > 1:
            parallel.parallelize_module(block, mesh["tensor"], plan)
        fully_shard(block, mesh=mesh["data"], mp_policy=policy)
    fully_shard(model, mesh=mesh["data"], mp_policy=policy)
    model.to_empty(device=mesh.device_type)
    initialize(model.parameters())
    return model


@torch.no_grad()
def initialize(params: Iterable[Any]) -> None:
    """Draws whole tensors, equal in all processes; each process stores its part."""
    generator = torch.Generator().manual_seed(0)
    for p in params:
        if p.dim() > 1:
            whole = torch.randn(p.shape, generator=generator) * 0.02
        else:
            whole = torch.ones(p.shape)  # weights of norms
        whole = whole.to(p.device)
        p.copy_(distribute_tensor(whole, p.device_mesh, p.placements))


def load_text() -> tuple[Tensor, Tensor]:
    """Bytes for training and for evaluation."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    text = b"".join(file.read_bytes() for file in files)
    values = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    end = -len(values) // 20
    return values[:end], values[end:]


def draw(text: Tensor, count: int, seed: int, args: argparse.Namespace) -> Tensor:
    """Sequences of a batch and the byte after each, (count, context + 1)."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - args.context, (count,), generator=generator)
    return torch.stack([text[i : i + args.context + 1] for i in starts]).long()


def local_rows(rows: Tensor, mesh: DeviceMesh) -> Tensor:
    """The part of a batch that this process computes."""
    parts = rows.chunk(mesh["data"].size())
    return parts[mesh["data"].get_local_rank()].to(mesh.device_type)


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    logits = model(rows[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def mean_losses(losses: Sequence[Tensor], mesh: DeviceMesh) -> list[float]:
    """Means over the parts of all processes."""
    means = torch.stack(list(losses)) / mesh["data"].size()
    dist.all_reduce(means, group=mesh["data"].get_group())
    return means.tolist()


def clip_gradients(params: Iterable[Any]) -> None:
    """As `clip_grad_norm_`, which expects all parameters on the same mesh."""
    by_mesh: dict[DeviceMesh, list[Any]] = {}
    for p in params:
        by_mesh.setdefault(p.device_mesh, []).append(p)
    norms = []
    for group in by_mesh.values():
        norm: Any = get_total_norm([p.grad for p in group])
        norms.append(norm.full_tensor())
    total_norm = get_total_norm(norms)
    for group in by_mesh.values():
        clip_grads_with_norm_(group, MAX_NORM, total_norm)


def train_step(model: nn.Module, opt: NGOptimizer, parts: Sequence[Tensor]) -> Tensor:
    """Makes a step on the parts of a batch; returns their mean loss."""
    assert isinstance(model, FSDPModule)
    opt.zero_grad()
    losses = []
    for i, rows in enumerate(parts):
        model.set_requires_gradient_sync(i == len(parts) - 1)
        loss = loss_of(model, rows) / len(parts)
        loss.backward()
        losses.append(loss.detach())
    clip_gradients(model.parameters())
    opt.step()
    return torch.stack(losses).sum()


def save_checkpoint(folder: Path, step: int, model: GPT, opt: NGOptimizer) -> None:
    weights, state = get_state_dict(model, opt)
    saved = {"model": weights, "optimizer": state, "step": step}
    save(saved, checkpoint_id=folder / f"step-{step:06}")


def load_checkpoint(folder: Path, model: GPT, opt: NGOptimizer) -> int:
    """Loads the latest checkpoint; returns its step, 0 without a checkpoint."""
    metadata = sorted(folder.glob("step-*/.metadata"))  # written last
    if not metadata:
        return 0
    weights, state = get_state_dict(model, opt)
    saved = {"model": weights, "optimizer": state, "step": 0}
    load(saved, checkpoint_id=metadata[-1].parent)
    set_state_dict(
        model, opt, model_state_dict=weights, optim_state_dict=saved["optimizer"]
    )
    return saved["step"]


def train(args: argparse.Namespace, mesh: DeviceMesh) -> None:
    model = make_model(args, mesh)
    opt = NGOptimizer(model.named_parameters(), total_steps=args.steps)
    done = load_checkpoint(args.folder, model, opt) if args.folder else 0
    text, held_out = load_text()
    validation = local_rows(draw(held_out, 2 * args.batch, 0, args), mesh)
    start = perf_counter()
    for step in range(done + 1, args.steps + 1):
        rows = local_rows(draw(text, args.batch, step, args), mesh)
        loss = train_step(model, opt, rows.chunk(args.accumulate))
        if step % args.report_every == 0 or step == args.steps:
            with torch.no_grad():
                losses = mean_losses([loss, loss_of(model, validation)], mesh)
            if dist.get_rank() == 0:
                line = "step {:5}  loss {:.4f}  validation {:.4f}  {:.1f} s"
                print(line.format(step, *losses, perf_counter() - start), flush=True)
        if args.folder and (step % args.save_every == 0 or step == args.steps):
            save_checkpoint(args.folder, step, model, opt)


def main() -> None:
    args = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    copies = dist.get_world_size() // args.tensor_parallel
    if args.batch % (copies * args.accumulate):
        raise SystemExit("--batch: expected a multiple of processes and --accumulate")
    shape, names = (copies, args.tensor_parallel), ("data", "tensor")
    train(args, init_device_mesh(device, shape, mesh_dim_names=names))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
