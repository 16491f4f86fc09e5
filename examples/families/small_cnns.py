"""Small CNNs that learn FashionMNIST from 2,000 of its images each.

ngopt specialize examples.families.small_cnns --horizons 50:150
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.image_datasets import batch_indices, load_dataset

DATA = load_dataset("fashion-mnist").train
BATCH, IMAGES = 64, 2_000


class Batches:
    """Batches of a member's images, in the same order in every run."""

    def __init__(self, seed: int):
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randperm(len(DATA), generator=generator)[:IMAGES]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(10_000):
            chosen = batch_indices(IMAGES, BATCH, seed=self.seed, step=step)
            yield DATA.batch(self.images[chosen])


def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(network(images), labels)


def member(seed: int) -> tuple:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(784, 10),
    )
    return network, Batches(seed), loss
