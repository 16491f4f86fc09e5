"""Trains a small residual MLP with Accelerate, which divides it by FSDP2.

    torchrun --nproc-per-node 2 examples/accelerate_fsdp2.py --folder runs/accelerate
    torchrun --nproc-per-node 2 examples/accelerate_fsdp2.py \\
        --folder runs/accelerate --resume runs/accelerate/epoch-2

Accelerate uses FSDP2 on GPUs; on CPUs it ignores the plugin and replicates the model.
`on_cpu` enables FSDP2 on CPUs, so that this example can be tried with gloo.
"""

# pyright: reportMissingImports=false
import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from ngopt import NGOptimizer

INPUTS, WIDTH, CLASSES = 16, 64, 4
EXAMPLES, HELD_OUT, BATCH = 2560, 512, 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(INPUTS, WIDTH),
        Block(),
        Block(),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, CLASSES),
    )


def make_examples() -> list[Dataset]:
    """Gaussian inputs, labelled by a random quadratic function."""
    inputs = torch.randn(EXAMPLES + HELD_OUT, INPUTS)
    labels = (inputs @ torch.randn(INPUTS, CLASSES)).square().argmax(1)
    return list(random_split(TensorDataset(inputs, labels), [EXAMPLES, HELD_OUT]))


def make_accelerator() -> Accelerator:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Block"],
    )
    has_gpu = torch.cuda.is_available()
    accelerator = Accelerator(cpu=not has_gpu, fsdp_plugin=plugin)
    if not has_gpu:
        on_cpu(accelerator, plugin)
    return accelerator


def on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Enables FSDP2 on CPUs, which Accelerate does not offer."""
    for state in (PartialState(), accelerator.state):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


@torch.no_grad()
def evaluate(model: nn.Module, batches: DataLoader, accelerator: Accelerator) -> float:
    losses = [cross_entropy(model(inputs), labels) for inputs, labels in batches]
    mean = accelerator.reduce(torch.stack(losses).mean(), "mean")
    assert isinstance(mean, Tensor)
    return mean.item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    folder = Path("runs/accelerate")
    parser.add_argument("--folder", type=Path, default=folder, help="of checkpoints")
    parser.add_argument("--resume", help="a checkpoint")
    args = parser.parse_args()
    accelerator = make_accelerator()
    set_seed(0)
    model = make_model()
    training, held_out = make_examples()
    size = BATCH // accelerator.num_processes  # examples per process
    batches = DataLoader(training, size)
    others = DataLoader(held_out, size)
    total_steps = args.epochs * EXAMPLES // BATCH
    opt = NGOptimizer(model.named_parameters(), total_steps=total_steps)
    model, opt, batches, others = accelerator.prepare(model, opt, batches, others)
    done = 0
    if args.resume:
        accelerator.load_state(args.resume)
        done = int(Path(args.resume).name.removeprefix("epoch-"))
    for epoch in range(done + 1, args.epochs + 1):
        for inputs, labels in batches:
            opt.zero_grad()
            accelerator.backward(cross_entropy(model(inputs), labels))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
        loss = evaluate(model, others, accelerator)
        accelerator.print(f"epoch {epoch}  validation {loss:.4f}", flush=True)
        accelerator.save_state(str(args.folder / f"epoch-{epoch}"))
    accelerator.end_training()


if __name__ == "__main__":
    main()
