"""Small networks of gray images."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from meta_train.step_size.networks import (
    PLACES,
    Layer,
    NetworkSettings,
    transformer_blocks,
)

GROUPS = 4  # of a group norm at most
PATCH = 4  # side of a patch in pixels
PATCHES = 9  # of an image of 14x14 pixels


CHANNEL_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "batch": partial(nn.BatchNorm2d, track_running_stats=False),
    "group": lambda width: nn.GroupNorm(math.gcd(GROUPS, width), width),
}
"""Norms of images (b, width, rows, columns)."""


def _convolution(channels: int, s: NetworkSettings) -> Layer:
    linear = nn.Conv2d(channels, s.width, 3, padding=1)
    norm = CHANNEL_NORMS[s.norm](s.width)
    skip = s.skip and channels == s.width
    return Layer(linear, norm, s.act(), skip)


def cnn(s: NetworkSettings) -> nn.Sequential:
    """3x3 convolutions of gray images, pooled by two after the first and the second."""
    layers = nn.Sequential()
    channels = 1
    for i in range(s.depth):
        layers.append(_convolution(channels, s))
        if i < 2:
            layers.append(nn.MaxPool2d(2))
        channels = s.width
    linear = nn.Linear(s.width, s.task.outputs)
    return layers.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear])


def strided_cnn(s: NetworkSettings) -> nn.Sequential:
    """Strided convolutions whose channels double, then a dense layer of all pixels."""
    layers = nn.Sequential()
    channels, side = 1, 14
    for i in range(s.depth):
        width = s.width << i
        layers.append(nn.Conv2d(channels, width, 3, 2, padding=1))
        layers.append(CHANNEL_NORMS[s.norm](width))
        layers.append(s.act())
        channels, side = width, (side + 1) // 2
    layers.append(nn.Flatten())
    layers.append(nn.Linear(channels * side**2, 2 * s.width))
    layers.append(s.act())
    return layers.append(nn.Linear(2 * s.width, s.task.outputs))


class Patches(nn.Module):
    """Embeddings of square patches of gray images and their positions."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        self.project = nn.Conv2d(1, s.width, PATCH, PATCH)
        self.positions = nn.Parameter(PLACES * torch.randn(PATCHES, s.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).mT + self.positions


class MeanHead(nn.Module):
    """Predicts from the mean of all positions."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        self.norm = nn.LayerNorm(s.width)
        self.linear = nn.Linear(s.width, s.task.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).mean(1))


def vit(s: NetworkSettings) -> nn.Sequential:
    return nn.Sequential(Patches(s), transformer_blocks(s, causal=False), MeanHead(s))
