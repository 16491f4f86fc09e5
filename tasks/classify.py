"""What an image network shows: `python -m tasks.classify --data data/inr-mnist --model ng-gnn --probes 16`.

Trains a model to tell the class of the image that a network stands for, from the network alone
(Kofinas et al. 2024, section 4.1), on a folder of `tasks.inr fit`. Writes into its folder a
checkpoint, from which the same command resumes, TensorBoard events and `result.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks import cli
from tasks.architectures import Stack
from tasks.augment import moved
from tasks.canonical import in_canonical_form
from tasks.datasets import batch_indices
from tasks.distributed import Ranks, joined
from tasks.files import write_json
from tasks.models.catalogue import make_model
from tasks.random import seeded
from tasks.shards import SPLITS, merged, read_split
from tasks.training import Lesson, Progress, Trainer, TrainingConfig

CLASSES = 10
# Networks that are judged in one call.
AT_ONCE = 256


@dataclass(frozen=True)
class Config:
    """Settings of a training and of what is trained."""

    data: str
    """Folder of networks."""
    folder: str
    """Where checkpoint, logs and result go."""
    model: str = "ng-gnn"
    """Name of a model."""
    probes: int = 0
    """Learned inputs of a graph network."""
    symmetry: bool = True
    """Put networks into canonical form, so that signs and phases of their neurons say nothing."""
    augment: bool = True
    """Turn, scale and shift the images of training networks."""
    limit: int | None = None
    """Networks to train with, from the first; None for all."""
    sizes: dict[str, float] = field(default_factory=dict)
    """Numbers of the model's config, such as width 64 layers 4."""
    compiled: bool = False
    """Compile the training step: some minutes at first, then nearly twice as fast."""
    training: Annotated[TrainingConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingConfig)


class Labelled(NamedTuple):
    """Networks and the classes of their images, (n,)."""

    stack: Stack
    labels: Tensor


def read_labelled(folder: str, split: str, limit: int | None = None) -> Labelled:
    networks = merged(list(read_split(Path(folder), split)))
    found = Labelled(Stack.of(networks), networks.columns["label"])
    return found if limit is None else Labelled(found.stack[:limit], found.labels[:limit])


class Classification:
    """The lesson: data, how a batch is made, what a model's loss and score are."""

    def __init__(self, config: Config, ranks: Ranks = Ranks()):  # noqa: B008
        self.config, self.ranks = config, ranks
        limits = {"train": config.limit}
        self.data = {split: read_labelled(config.data, split, limits.get(split)) for split in SPLITS}
        train = self.data["train"].stack
        sizes = {**config.sizes, **({"probes": config.probes} if config.probes else {})}
        with seeded(config.training.seed, 0):
            self.model = make_model(config.model, [train.architecture], CLASSES, sizes)
        self.model.fit([self.prepared(train)])
        self.read: Callable[[list[Tensor]], Tensor] = self._read
        if config.compiled:
            self.read = torch.compile(self._read, dynamic=False)

    def prepared(self, stack: Stack) -> Stack:
        """As the model gets them."""
        return in_canonical_form(stack) if self.config.symmetry else stack

    def loss(self, step: int) -> Tensor:
        """Mean cross-entropy of this rank's share of a step's batch."""
        config, train = self.config, self.data["train"]
        training = config.training
        index = batch_indices(len(train.labels), training.batch, seed=training.seed, step=step)
        own = index[self.ranks.number :: self.ranks.count]
        stack = train.stack[own]
        if config.augment:
            stack = moved(stack, degrees=15, scale=0.1, shift=0.1)
        return cross_entropy(self.read(self.prepared(stack).params), train.labels[own])

    def accuracy(self, split: str) -> float:
        """Share of a split's networks whose class the model says."""
        stack, labels = self.data[split]
        pieces = torch.arange(len(labels)).split(AT_ONCE)
        said = [self.model(self.prepared(stack[piece])).argmax(-1) for piece in pieces]
        return (torch.cat(said) == labels).double().mean().item()

    def _read(self, params: list[Tensor]) -> Tensor:
        return self.model(Stack(self.data["train"].stack.architecture, params))


def run(config: Config) -> None:
    with joined() as ranks:
        task = Classification(config, ranks)
        lesson = Lesson(task.loss, lambda: task.accuracy("validation"))
        settings = {key: value for key, value in asdict(config).items() if key not in ("folder", "training")}
        trainer = Trainer(task.model, lesson, config.training, Path(config.folder), settings, ranks)
        progress = trainer.run()
        task.model.eval()
        with torch.no_grad():
            accuracy = task.accuracy("test")
        if ranks.is_first:
            report(config, task.model, progress, accuracy)


def report(config: Config, model: nn.Module, progress: Progress, accuracy: float) -> None:
    """Writes `result.json` and says what was found."""
    speed = progress.counted * config.training.batch / progress.seconds
    found: dict[str, Any] = {
        "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": progress.steps,
        "networks_per_second": speed,
        "validation": progress.top,
        "test": accuracy,
    }
    write_json(Path(config.folder, "result.json"), found)
    print(f"test accuracy {100 * accuracy:.2f} %, validation {100 * progress.top:.2f} %")
    print(f"{progress.steps} steps, {speed:.0f} networks a second; more in {config.folder}")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
