"""Inputs for networks that are data, learned with the model that asks them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2

import torch
from torch import Tensor, nn

SMALLEST = 4  # Pixels of the sides of the first map of a generator of images.


class LearnedInputs(nn.Module):
    """Base class: () -> (m, *shape)."""

    def forward(self) -> Tensor:
        raise NotImplementedError


class FreeInputs(LearnedInputs):
    """Each number is learned by itself; they begin between -1 and 1."""

    def __init__(self, count: int, shape: Sequence[int]):
        super().__init__()
        self.inputs = nn.Parameter(2 * torch.rand(count, *shape) - 1)

    def forward(self) -> Tensor:
        return self.inputs


class GeneratedInputs(LearnedInputs):
    """Learned codes that went through a generator without activations between its
    layers (Kahana et al. 2024), so that images stay smooth.

    latent: size of the codes. channels: of a generator of images, before its last map.

    Raises ValueError for networks of other inputs than points and images.
    """

    def __init__(
        self,
        count: int,
        shape: Sequence[int],
        latent: int = 32,
        channels: int = 16,
    ):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(count, latent))
        self.generator = generator(shape, latent, channels)

    def forward(self) -> Tensor:
        return self.generator(self.codes)


def generator(shape: Sequence[int], latent: int, channels: int) -> nn.Module:
    """Codes (m, latent) to inputs (m, *shape).

    Points are two linear maps away, images transposed convolutions. Raises ValueError
    for others.
    """
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(latent, latent), nn.Linear(latent, shape[0]))
    if len(shape) == 3:
        return ImageGenerator(shape, latent, channels)
    raise ValueError(
        f"learned inputs: expected networks of points or images; got inputs {tuple(shape)}"
    )


class ImageGenerator(nn.Module):
    """Transposed convolutions that double the sides of a map, a convolution, tanh.

    Shapes: (m, latent) -> (m, *shape); shape is (channels, height, width). What is too
    much of the last map is cut away.
    """

    def __init__(self, shape: Sequence[int], latent: int, channels: int):
        super().__init__()
        self.shape = shape
        doublings = max(1, ceil(log2(max(shape[1:]) / SMALLEST)))
        widths = [channels * 2**k for k in reversed(range(doublings))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent, 2 * widths[0], SMALLEST)]
        for wide, width in zip((2 * widths[0], *widths), widths, strict=False):
            layers.append(nn.ConvTranspose2d(wide, width, 4, stride=2, padding=1))
        layers += [nn.Conv2d(channels, shape[0], 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: Tensor) -> Tensor:
        _, height, width = self.shape
        return self.layers(codes[..., None, None])[..., :height, :width]
