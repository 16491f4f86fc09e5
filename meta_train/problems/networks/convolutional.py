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
    for (fan_in, fan_out), kernel in zip(pairwise(channels), kernels, strict=True):
        if layers:
            stride, padding = 1, kernel // 2
        layers.extend([nn.Conv2d(fan_in, fan_out, kernel, stride, padding), nn.ReLU()])
    return layers.extend(_classifier(channels[-1]))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def strided_cnn(
    channels: Sequence[int], norm: Norm = group_norm, activation: Layer = nn.ReLU
) -> nn.Module:
    """3x3 convolutions of stride 2 with norms, mean pooling, a linear layer."""
    layers = nn.Sequential()
    for fan_in, fan_out in pairwise(channels):
        conv = _conv3x3(fan_in, fan_out, stride=2)
        layers.extend([conv, norm(fan_out), activation()])
    return layers.extend(_classifier(channels[-1]))


def even_cnn(
    in_channels: int, width: int, depth: int, norm: Norm | None = None
) -> nn.Module:
    """3x3 convolutions of one width, the first of stride 2, each with ReLU.

    norm: between a convolution and its ReLU.
    """
    layers = nn.Sequential()
    for number in range(depth):
        fan_in, stride = (width, 1) if number else (in_channels, 2)
        has_bias = norm is None
        layers.append(nn.Conv2d(fan_in, width, 3, stride, 1, bias=has_bias))
        if norm is not None:
            layers.append(norm(width))
        layers.append(nn.ReLU())
    return layers.extend(_classifier(width))


def pooled_cnn(channels: Sequence[int], side: int) -> nn.Module:
    """5x5 convolutions with max-pooling, then a linear layer, similar to LeNet.

    side: of the feature map after the last pooling.
    """
    layers = nn.Sequential()
    for fan_in, fan_out in pairwise(channels):
        conv = nn.Conv2d(fan_in, fan_out, 5, padding=2)
        layers.extend([conv, nn.ReLU(), nn.MaxPool2d(2)])
    return layers.extend([nn.Flatten(), nn.Linear(channels[-1] * side**2, 10)])


def depthwise_cnn(channels: Sequence[int]) -> nn.Module:
    """Depthwise, then pointwise convolutions with BatchNorm, similar to MobileNet."""
    layers = nn.Sequential()
    for fan_in, fan_out in pairwise(channels):
        depthwise = _conv3x3(fan_in, fan_in, 2, groups=fan_in)
        layers.extend([depthwise, nn.BatchNorm2d(fan_in)])
        pointwise = nn.Conv2d(fan_in, fan_out, 1, bias=False)
        layers.extend([pointwise, nn.BatchNorm2d(fan_out), nn.ReLU()])
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
            self.shortcut = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first_norm(self.first(x)).relu()
        inner = self.second_norm(self.second(inner))
        return (inner + self.shortcut(x)).relu()


def residual_cnn(
    in_channels: int, channels: Sequence[int], norm: Norm = nn.BatchNorm2d
) -> nn.Module:
    """A convolution, then residual blocks, all but the first of stride 2."""
    first = channels[0]
    layers = nn.Sequential(_conv3x3(in_channels, first), norm(first), nn.ReLU())
    layers.append(ResidualBlock(first, first, 1, norm))
    for fan_in, fan_out in pairwise(channels):
        layers.append(ResidualBlock(fan_in, fan_out, 2, norm))
    return layers.extend(_classifier(channels[-1]))


def convolutional_autoencoder(channels: tuple[int, int], code: int) -> nn.Module:
    """Convolutions of stride 2 from 28x28 to 7x7, a code, transposed convolutions."""
    a, b = channels
    return nn.Sequential(
        nn.Conv2d(1, a, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(a, b, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(49 * b, code),
        nn.Linear(code, 49 * b),
        nn.ReLU(),
        nn.Unflatten(1, (b, 7, 7)),
        nn.ConvTranspose2d(b, a, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(a, 1, 4, stride=2, padding=1),
    )


def wave_cnn(channels: Sequence[int], classes: int = 10) -> nn.Module:
    """1-D convolutions with kernel 9, stride 2 and BatchNorm on the flattened image."""
    layers = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, -1)))
    for fan_in, fan_out in pairwise(channels):
        conv = nn.Conv1d(fan_in, fan_out, 9, stride=2, padding=4)
        layers.extend([conv, nn.BatchNorm1d(fan_out), nn.ReLU()])
    head = nn.Linear(channels[-1], classes)
    return layers.extend([nn.AdaptiveAvgPool1d(1), nn.Flatten(), head])


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
        second = self.second(F.max_pool2d(first, 2))
        bottom = self.bottom(F.max_pool2d(second, 2))
        second = self.down_second(torch.cat([second, self.up_second(bottom)], 1))
        first = self.down_first(torch.cat([first, self.up_first(second)], 1))
        return self.last(first)


def _two_convolutions(fan_in: int, fan_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(fan_out, fan_out, 3, padding=1),
        nn.ReLU(),
    )


def _conv3x3(fan_in: int, fan_out: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(fan_in, fan_out, 3, stride, 1, groups=groups, bias=False)


def _classifier(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
