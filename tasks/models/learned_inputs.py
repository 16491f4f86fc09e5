"""Probing inputs of networks, () -> (m, *shape), learned together with the model that
uses them."""

from collections.abc import Sequence
from math import ceil, log2

import torch
from torch import Tensor, nn

FIRST_SIDE = 4
"""Height and width of the first map of an image generator."""


class FreeInputs(nn.Module):
    """Inputs that are parameters themselves, initially uniform in (-1, 1)."""

    def __init__(self, count: int, shape: Sequence[int]):
        super().__init__()
        self.inputs = nn.Parameter(2 * torch.rand(count, *shape) - 1)

    def forward(self) -> Tensor:
        return self.inputs


class GeneratedInputs(nn.Module):
    """Learned codes, mapped to inputs by a generator without activations between its
    layers, so that images are smooth (Kahana et al. 2024): two linear layers for
    points, transposed convolutions for images.

    latent: size of a code. channels: of an image generator, before its last map.

    Raises ValueError for inputs that are neither points nor images.
    """

    def __init__(
        self, count: int, shape: Sequence[int], latent: int = 32, channels: int = 16
    ):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(count, latent))
        if len(shape) == 1:
            self.generator = nn.Sequential(
                nn.Linear(latent, latent), nn.Linear(latent, shape[0])
            )
        elif len(shape) == 3:
            self.generator = ImageGenerator(shape, latent, channels)
        else:
            raise ValueError(
                f"learned inputs: expected networks of points or images; "
                f"got inputs {tuple(shape)}"
            )

    def forward(self) -> Tensor:
        return self.generator(self.codes)


class ImageGenerator(nn.Module):
    """Transposed convolutions that double the side, a convolution, tanh.

    Shapes: (m, latent) -> (m, *shape), with shape (channels, height, width). The last
    map is cropped to it.
    """

    def __init__(self, shape: Sequence[int], latent: int, channels: int):
        super().__init__()
        self.shape = shape
        doublings = max(1, ceil(log2(max(shape[1:]) / FIRST_SIDE)))
        width = channels * 2**doublings
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent, width, FIRST_SIDE)]
        for _ in range(doublings):
            half = width // 2
            layers.append(nn.ConvTranspose2d(width, half, 4, stride=2, padding=1))
            width = half
        layers += [nn.Conv2d(channels, shape[0], 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: Tensor) -> Tensor:
        _, height, width = self.shape
        return self.layers(codes[..., None, None])[..., :height, :width]
