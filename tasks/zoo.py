"""Trained networks as data:
`python -m tasks.zoo train --zoo small --folder data/zoo-small`.

Trains image classifiers on CIFAR-10, each with settings of its own, into shards of a
folder (`tasks.shards`) that hold every network at several steps with its accuracy on
the test images. Splits are of runs: all networks of a run are in one. The same command
continues where it stopped, `--processes 2` or
`torchrun --nproc-per-node 2 -m tasks.zoo train ...` divides the shards among ranks.
`python -m tasks.zoo show --folder ...` draws the accuracies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Literal

import torch

from harness import cli
from harness.distributed import run_on_ranks
from harness.image_datasets import ImageDataset, Split, load_dataset
from harness.pictures import draw_histograms
from harness.random import derive_seed, seeded
from harness.settings import check_counts, check_setting
from tasks.shards import (
    SPLITS,
    Networks,
    column_of,
    merged_by_architecture,
    read_settings,
    read_split,
)
from tasks.sources.generation import Job, folder_of, jobs, make_shards
from tasks.sources.zoo_recipes import (
    INITS,
    OPTIMIZERS,
    ZOOS,
    Checkpoint,
    TrainingRecipe,
    train,
)

PROGRAM = "tasks.zoo train"
# Of the runs; the rest is for training.
SHARES = {"validation": 0.1, "test": 0.2}
GRAY_MOMENTS = (0.4733,), (0.2394,)
"""Mean and standard deviation of CIFAR-10's gray training images in [0, 1]."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a zoo; every random number follows from `seed`."""

    folder: str
    """Where shards and manifest go."""
    zoo: Literal["small", "wild-park", "diverse"] = "small"
    """small: one architecture, on gray images; wild-park: CNNs of every shape, on gray
    images; diverse: with norms, 1-d convolutions, residual, DeepSets, ViTs, on images
    in colour."""
    runs: int = 1000
    """Training runs: 70 % for training, 10 % for validation, 20 % for test."""
    steps: int = 1200
    batch_size: int = 64
    checkpoints: int = 5
    """Networks that are kept of a run: the last after all steps, earlier ones closer
    together."""
    shard: int = 16
    """Runs of a shard."""
    processes: int = 1
    """Processes, of one thread each; their number changes no network."""
    seed: int = 0

    def __post_init__(self) -> None:
        least = len(SPLITS)
        check_setting(self.runs >= least, "runs", f"{least} or more", self.runs)
        counts = ("steps", "batch_size", "checkpoints", "shard", "processes")
        check_counts(self, *counts)


@dataclass(frozen=True)
class ShowConfig:
    folder: str
    output: str = "zoo.png"


def counts(runs: int) -> dict[str, int]:
    """Runs of every split."""
    held_out = {split: max(1, round(share * runs)) for split, share in SHARES.items()}
    return {"train": runs - sum(held_out.values()), **held_out}


def checkpoint_steps(steps: int, checkpoints: int) -> list[int]:
    """Steps after which networks are kept.

    Their square roots are evenly spaced, for accuracy grows fast at first.
    """
    shares = [(k / checkpoints) ** 2 for k in range(1, checkpoints + 1)]
    return sorted({max(1, round(steps * share)) for share in shares})


def make_shard(job: Job, config: TrainConfig, data: ImageDataset) -> list[Networks]:
    """The networks of a shard, in one group for each architecture."""
    groups = []
    for number in range(job.start, job.stop):
        run, checkpoints = trained(config, data, SPLITS.index(job.split), number)
        groups.append(networks_of(run, number, checkpoints))
    return merged_by_architecture(groups)


def trained(
    config: TrainConfig, data: ImageDataset, split: int, number: int
) -> tuple[TrainingRecipe, list[Checkpoint]]:
    """One run. After divergence, a run with another seed."""
    steps = checkpoint_steps(config.steps, config.checkpoints)
    for attempt in count():
        key = (config.seed, split, number, attempt)
        seed = derive_seed(*key)
        run = ZOOS[config.zoo].sample_recipe(Random(seed))
        with seeded(*key):
            networks = train(run, data.train, data.test, steps, config.batch_size, seed)
        if networks is not None:
            return run, networks
    raise AssertionError


def networks_of(
    run: TrainingRecipe, number: int, checkpoints: Sequence[Checkpoint]
) -> Networks:
    """The networks of a run.

    Columns: step, accuracy, and the run's number and settings; optimizer and init are
    indices of `OPTIMIZERS` and `INITS`.
    """
    of_run = {
        "run": number,
        "optimizer": list(OPTIMIZERS).index(run.optimizer),
        "init": INITS.index(run.init),
        "lr": run.lr,
        "l2": run.l2,
        "dropout": run.dropout,
        "fraction": run.fraction,
    }
    count = len(checkpoints)
    columns = {key: torch.tensor([value] * count) for key, value in of_run.items()}
    columns["step"] = torch.tensor([network.step for network in checkpoints])
    columns["accuracy"] = torch.tensor([network.accuracy for network in checkpoints])
    params = {
        name: torch.stack([network.params[name] for network in checkpoints])
        for name in checkpoints[0].params
    }
    return Networks(run.architecture, params, columns)


def train_all(config: TrainConfig) -> None:
    """Makes the shards that are missing, on one or several ranks."""
    run_on_ranks(config.processes, train_rank, config, check=load_images)


def train_rank(config: TrainConfig) -> None:
    make = partial(make_shard, config=config, data=load_images(config))
    wanted = jobs(counts(config.runs), config.shard)
    make_shards(folder_of(config, PROGRAM), wanted, make, quality=["accuracy"])


def load_images(config: TrainConfig) -> ImageDataset:
    """CIFAR-10, gray for zoos of one channel."""
    data = load_dataset("cifar10")
    if ZOOS[config.zoo].channels > 1:
        return data
    return ImageDataset(*map(gray, data))


def gray(split: Split) -> Split:
    """Images of one channel, the mean of the colours."""
    chunks = split.images.split(1000)
    means = [images.float().mean(1, keepdim=True).round() for images in chunks]
    return Split(torch.cat(means).byte(), split.labels, *GRAY_MOMENTS)


def show(config: ShowConfig) -> None:
    """Draws a histogram of accuracies for every step at which networks are kept."""
    folder = Path(config.folder)
    settings = read_settings(folder, PROGRAM)
    networks: list[Networks] = []
    for split in SPLITS:
        networks += read_split(folder, split)
    steps, accuracies = column_of(networks, "step"), column_of(networks, "accuracy")
    groups = {
        f"step {step}": accuracies[steps == step] for step in steps.unique().tolist()
    }
    draw_histograms(Path(config.output), groups, "accuracy on test images")
    low, high = accuracies.min().item(), accuracies.max().item()
    total, zoo = len(steps), settings["zoo"]
    print(f"{total} networks of zoo {zoo}, accuracies {low:.3f} to {high:.3f}")
    print(f"The histograms are in {config.output}.")


if __name__ == "__main__":
    cli.commands(
        {"train": (TrainConfig, train_all), "show": (ShowConfig, show)}, __doc__
    )
