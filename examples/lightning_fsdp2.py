"""Trains a small MLP with Lightning's `ModelParallelStrategy`, which is FSDP2.

    torchrun --nproc-per-node 2 examples/lightning_fsdp2.py --folder runs/lightning
    torchrun --nproc-per-node 2 examples/lightning_fsdp2.py \\
        --folder runs/lightning --resume runs/lightning/epoch=1.ckpt

The strategy, with its checkpoints, runs on GPUs with NCCL and on CPUs with gloo.
Lightning's `FSDPStrategy` is the first version of FSDP, and runs on GPUs only.
"""

# pyright: reportMissingImports=false
import argparse
import os

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from ngopt import NGOptimizer

INPUTS, WIDTH, CLASSES = 16, 64, 4
EXAMPLES, HELD_OUT, BATCH = 2560, 512, 64


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(INPUTS, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, CLASSES),
        )

    def configure_model(self) -> None:
        """Divides the model; called when the processes have started."""
        assert self.device_mesh is not None
        fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> NGOptimizer:
        """Called after `configure_model`, so that parameters are DTensors."""
        total_steps = int(self.trainer.estimated_stepping_batches)
        return NGOptimizer(self.parameters(), total_steps=total_steps)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        inputs, labels = batch
        return cross_entropy(self.layers(inputs), labels)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        inputs, labels = batch
        loss = cross_entropy(self.layers(inputs), labels)
        self.log("validation", loss, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics["validation"]
        self.print(f"epoch {self.current_epoch}  validation {loss:.4f}")


def make_examples() -> list[Dataset]:
    """Gaussian inputs, labelled by a random quadratic function."""
    inputs = torch.randn(EXAMPLES + HELD_OUT, INPUTS)
    labels = (inputs @ torch.randn(INPUTS, CLASSES)).square().argmax(1)
    return list(random_split(TensorDataset(inputs, labels), [EXAMPLES, HELD_OUT]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--folder", default="runs/lightning", help="of checkpoints")
    parser.add_argument("--resume", help="a checkpoint")
    args = parser.parse_args()
    processes = int(os.environ.get("WORLD_SIZE", 1))
    seed_everything(0, verbose=False)
    training, held_out = make_examples()
    size = BATCH // processes  # examples per process
    batches = DataLoader(training, size)
    others = DataLoader(held_out, size)
    trainer = Trainer(
        strategy=ModelParallelStrategy(processes, tensor_parallel_size=1),
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(args.folder, "{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Classifier(), batches, others, ckpt_path=args.resume)


if __name__ == "__main__":
    main()
