"""Convolutional networks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]


def paper_cnn(in_channels: int, channels: tuple[int, int, int]) -> nn.Module:
    """The CNN of Kofinas et al. 2024, section 4.3: three convolutions, a linear layer.

    The paper does not specify stride, padding and initialisation. Here the first
    convolution has stride 2 and no padding, and the initialisation is PyTorch's.
    """
    return plain_cnn((in_channels, *channels), (3, 3, 3))


def plain_cnn(channels: Sequence[int], kernels: Sequence[int]) -> nn.Module:
    """The paper's CNN with other widths, depths and kernels."""
    layers = nn.Sequential()
    stride, padding = 2, 0
    widths = pairwise(channels)
    for (fan_in, fan_out), kernel in zip(widths, kernels, strict=True):
        if layers:
            stride, padding = 1, kernel // 2
        layers.append(nn.Conv2d(fan_in, fan_out, kernel, stride, padding))
        layers.append(nn.ReLU())
    return layers.extend(_classifier(channels[-1]))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def strided_cnn(channels: Sequence[int], norm: Norm, activation: Layer) -> nn.Module:
    """3x3 convolutions of stride 2 with norms, mean pooling, a linear layer."""
    layers = nn.Sequential()
    for fan_in, fan_out in pairwise(channels):
        layers.append(_conv3x3(fan_in, fan_out, stride=2))
        layers.append(norm(fan_out))
        layers.append(activation())
    return layers.extend(_classifier(channels[-1]))


def pooled_cnn(channels: Sequence[int], side: int) -> nn.Module:
    """5x5 convolutions with max-pooling, then a linear layer, similar to LeNet.

    side: of the feature map after the last pooling.
    """
    layers = nn.Sequential()
    for fan_in, fan_out in pairwise(channels):
        layers.append(nn.Conv2d(fan_in, fan_out, 5, padding=2))
        layers.append(nn.ReLU())
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    features = channels[-1] * side**2
    return layers.append(nn.Linear(features, 10))


def depthwise_cnn(channels: Sequence[int]) -> nn.Module:
    """Depthwise, then pointwise convolutions with BatchNorm, similar to MobileNet."""
    layers = nn.Sequential()
    for fan_in, fan_out in pairwise(channels):
        layers.append(_conv3x3(fan_in, fan_in, 2, groups=fan_in))
        layers.append(nn.BatchNorm2d(fan_in))
        layers.append(_conv1x1(fan_in, fan_out))
        layers.append(nn.BatchNorm2d(fan_out))
        layers.append(nn.ReLU())
    return layers.extend(_classifier(channels[-1]))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: a 1x1 convolution where shapes change."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: Norm):
        super().__init__()
        self.first = _conv3x3(fan_in, fan_out, stride)
        self.first_norm = norm(fan_out)
        self.second = _conv3x3(fan_out, fan_out)
        self.second_norm = norm(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = _conv1x1(fan_in, fan_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(x)
        inner = self.first_norm(inner).relu()
        inner = self.second(inner)
        inner = self.second_norm(inner)
        y = inner + self.shortcut(x)
        return y.relu()


def residual_cnn(
    in_channels: int, channels: Sequence[int], norm: Norm = nn.BatchNorm2d
) -> nn.Module:
    """A convolution, then residual blocks, all but the first of stride 2."""
    first = channels[0]
    layers = nn.Sequential()
    layers.append(_conv3x3(in_channels, first))
    layers.append(norm(first))
    layers.append(nn.ReLU())
    layers.append(ResidualBlock(first, first, 1, norm))
    for fan_in, fan_out in pairwise(channels):
        layers.append(ResidualBlock(fan_in, fan_out, 2, norm))
    return layers.extend(_classifier(channels[-1]))


def convolutional_autoencoder(channels: tuple[int, int], code: int) -> nn.Module:
    """Convolutions of stride 2 from 28x28 to 7x7, a code, transposed convolutions."""
    a, b = channels
    layers = nn.Sequential()
    for fan_in, fan_out in ((1, a), (a, b)):
        layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1))
        layers.append(nn.ReLU())
    features = 49 * b
    layers.append(nn.Flatten())
    layers.append(nn.Linear(features, code))
    layers.append(nn.Linear(code, features))
    layers.append(nn.ReLU())
    layers.append(nn.Unflatten(1, (b, 7, 7)))
    layers.append(nn.ConvTranspose2d(b, a, 4, stride=2, padding=1))
    layers.append(nn.ReLU())
    return layers.append(nn.ConvTranspose2d(a, 1, 4, stride=2, padding=1))


def wave_cnn(channels: Sequence[int], classes: int = 10) -> nn.Module:
    """1-D convolutions with kernel 9, stride 2 and BatchNorm on the flattened image."""
    layers = nn.Sequential()
    layers.append(nn.Flatten())
    layers.append(nn.Unflatten(1, (1, -1)))
    for fan_in, fan_out in pairwise(channels):
        layers.append(nn.Conv1d(fan_in, fan_out, 9, stride=2, padding=4))
        layers.append(nn.BatchNorm1d(fan_out))
        layers.append(nn.ReLU())
    layers.append(nn.AdaptiveAvgPool1d(1))
    layers.append(nn.Flatten())
    return layers.append(nn.Linear(channels[-1], classes))


class UNet(nn.Module):
    """A U-Net of three scales (Ronneberger et al. 2015)."""

    def __init__(self, width: int):
        super().__init__()
        wide = 2 * width
        self.first = _two_convolutions(1, width)
        self.second = _two_convolutions(width, wide)
        self.bottom = _two_convolutions(wide, wide)
        self.up_second = nn.ConvTranspose2d(wide, wide, 2, stride=2)
        self.down_second = _two_convolutions(2 * wide, width)
        self.up_first = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.down_first = _two_convolutions(wide, width)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, 1, side, side), side a multiple of 4; returns the same shape"""
        first = self.first(images)
        half = F.max_pool2d(first, 2)
        second = self.second(half)
        quarter = F.max_pool2d(second, 2)
        bottom = self.bottom(quarter)
        above = self.up_second(bottom)
        joined = torch.cat([second, above], 1)
        second = self.down_second(joined)
        above = self.up_first(second)
        joined = torch.cat([first, above], 1)
        y = self.down_first(joined)
        return self.last(y)


def _two_convolutions(fan_in: int, fan_out: int) -> nn.Module:
    layers = nn.Sequential()
    for channels in (fan_in, fan_out):
        layers.append(nn.Conv2d(channels, fan_out, 3, padding=1))
        layers.append(nn.ReLU())
    return layers


def _conv3x3(fan_in: int, fan_out: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(fan_in, fan_out, 3, stride, 1, groups=groups, bias=False)


def _conv1x1(fan_in: int, fan_out: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)


def _classifier(channels: int) -> list[nn.Module]:
    head = nn.Linear(channels, 10)
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), head]
