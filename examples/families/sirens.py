"""SIRENs (Sitzmann et al. 2020) that are fitted to images of FashionMNIST.

ngopt specialize examples.families.sirens --horizons 25:100
"""

import torch
from torch import Tensor, nn

from harness.image_datasets import load_dataset

WIDTH, SIZE = 32, 28
IMAGES = load_dataset("fashion-mnist").train.images
GRID = torch.linspace(-1, 1, SIZE)
PLACES = torch.cartesian_prod(GRID, GRID)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


def siren(width: int = WIDTH) -> nn.Module:
    """From a place to a gray value, with the initial weights of the paper."""
    first, second, last = (
        nn.Linear(2, width),
        nn.Linear(width, width),
        nn.Linear(width, 1),
    )
    nn.init.uniform_(first.weight, -0.5, 0.5)
    for layer in (second, last):
        bound = (6 / width) ** 0.5 / 30
        nn.init.uniform_(layer.weight, -bound, bound)
    return nn.Sequential(first, Sine(), second, Sine(), last)


def loss(network: nn.Module, image: Tensor) -> Tensor:
    """Mean squared error; image: (784, 1)."""
    return (network(PLACES) - image).square().mean()


def member(seed: int) -> tuple:
    image = IMAGES[seed % len(IMAGES)].float().reshape(-1, 1) / 255
    return siren(), [image], loss
