"""A small CNN on FashionMNIST: `ngopt race examples.races.fashion_mnist`."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from harness.image_datasets import load_dataset

BATCH = 128
Batch = tuple[Tensor, Tensor]
DATA = load_dataset("fashion-mnist")


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def batches() -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(DATA.train), generator=generator)
    for chosen in order.split(BATCH):
        yield DATA.train.batch(chosen)


def validation_batches() -> Iterator[Batch]:
    for chosen in torch.arange(len(DATA.validation)).split(1000):
        yield DATA.validation.batch(chosen)


def loss(network: nn.Module, batch: Batch) -> Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(network(images), labels)
