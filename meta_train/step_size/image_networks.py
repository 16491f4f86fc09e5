"""Small networks of gray images."""

import math

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


def channel_norm(name: str, width: int) -> nn.Module:
    """A norm of images (b, width, rows, columns)."""
    if name == "batch":
        return nn.BatchNorm2d(width, track_running_stats=False)
    if name == "group":
        return nn.GroupNorm(math.gcd(GROUPS, width), width)
    return nn.Identity()


def _convolution(channels: int, s: NetworkSettings) -> Layer:
    linear = nn.Conv2d(channels, s.width, 3, padding=1)
    norm = channel_norm(s.norm, s.width)
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
    return layers.extend(pooled_head(s))


def pooled_head(s: NetworkSettings) -> list[nn.Module]:
    """Predicts from the mean of all pixels."""
    linear = nn.Linear(s.width, s.task.outputs)
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear]


class Separable(nn.Module):
    """A depthwise and a pointwise convolution (Howard et al. 2017)."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        self.depthwise = nn.Conv2d(s.width, s.width, 3, padding=1, groups=s.width)
        self.pointwise = nn.Conv2d(s.width, s.width, 1)
        self.norm = channel_norm(s.norm, s.width)
        self.act = s.act()
        self.skip = s.skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.depthwise(x))
        y = self.act(self.norm(y))
        return x + y if self.skip else y


def separable_cnn(s: NetworkSettings) -> nn.Sequential:
    """A strided convolution and `depth` separable ones."""
    layers = nn.Sequential(nn.Conv2d(1, s.width, 3, 2, padding=1))
    for _ in range(s.depth):
        layers.append(Separable(s))
    return layers.extend(pooled_head(s))


def strided_cnn(s: NetworkSettings) -> nn.Sequential:
    """Strided convolutions whose channels double, then a dense layer of all pixels."""
    layers = nn.Sequential()
    channels, side = 1, 14
    for i in range(s.depth):
        width = s.width << i
        layers.append(nn.Conv2d(channels, width, 3, 2, padding=1))
        layers.append(channel_norm(s.norm, width))
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
        patches = self.project(x).flatten(2)
        return patches.mT + self.positions


class MeanHead(nn.Module):
    """Predicts from the mean of all positions."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        self.norm = nn.LayerNorm(s.width)
        self.linear = nn.Linear(s.width, s.task.outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).mean(1)
        return self.linear(x)


def vit(s: NetworkSettings) -> nn.Sequential:
    embed, head = Patches(s), MeanHead(s)
    return nn.Sequential(embed, transformer_blocks(s, causal=False), head)
