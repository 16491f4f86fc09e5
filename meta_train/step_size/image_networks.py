"""Small networks of gray images besides plain CNNs and transformers."""

from __future__ import annotations

from torch import Tensor, nn

from meta_train.step_size.networks import (
    LayerSettings,
    MeanHead,
    Patches,
    channel_norm,
    feature_norm,
)


class Separable(nn.Module):
    """A depthwise and a pointwise convolution (Howard et al. 2017)."""

    def __init__(self, channels: int, s: LayerSettings):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, s.width, 1)
        self.norm = channel_norm(s.norm, s.width)
        self.act = s.act()
        self.skip = s.skip and channels == s.width

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.depthwise(x))
        y = self.act(self.norm(y))
        return x + y if self.skip else y


def separable_cnn(outputs: int, depth: int, s: LayerSettings) -> nn.Sequential:
    """A strided convolution and `depth` separable ones."""
    layers = nn.Sequential(nn.Conv2d(1, s.width, 3, 2, padding=1))
    for _ in range(depth):
        layers.append(Separable(s.width, s))
    layers.append(nn.AdaptiveAvgPool2d(1))
    layers.append(nn.Flatten())
    return layers.append(nn.Linear(s.width, outputs))


def strided_cnn(outputs: int, depth: int, s: LayerSettings) -> nn.Sequential:
    """Strided convolutions whose channels double, then a dense layer of all pixels."""
    layers = nn.Sequential()
    channels, side = 1, 14
    for i in range(depth):
        width = s.width << i
        layers.append(nn.Conv2d(channels, width, 3, 2, padding=1))
        layers.append(channel_norm(s.norm, width))
        layers.append(s.act())
        channels, side = width, (side + 1) // 2
    layers.append(nn.Flatten())
    layers.append(nn.Linear(channels * side**2, 2 * s.width))
    layers.append(s.act())
    return layers.append(nn.Linear(2 * s.width, outputs))


class MixerBlock(nn.Module):
    """Mixes positions, then features (Tolstikhin et al. 2021)."""

    def __init__(self, positions: int, s: LayerSettings):
        super().__init__()
        self.first_norm = feature_norm(s.norm, s.width)
        self.across = _mlp(positions, 2 * positions, s)
        self.second_norm = feature_norm(s.norm, s.width)
        self.within = _mlp(s.width, 2 * s.width, s)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first_norm(x).mT
        x = x + self.across(y).mT
        return x + self.within(self.second_norm(x))


def _mlp(width: int, hidden: int, s: LayerSettings) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), s.act(), nn.Linear(hidden, width))


def mixer(
    side: int, patch: int, outputs: int, depth: int, s: LayerSettings
) -> nn.Sequential:
    layers = nn.Sequential(Patches(side, patch, s.width))
    for _ in range(depth):
        layers.append(MixerBlock((side // patch) ** 2, s))
    return layers.append(MeanHead(s.width, outputs))
