"""Random Fourier features of numbers (Tancik et al. 2020),
through which values enter a graph network."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """A number, and sines and cosines of random multiples of it.

    bandwidth: standard deviation of the frequencies, in periods.

    Shapes: (*) -> (*, size).
    """

    frequencies: Tensor

    def __init__(self, count: int, bandwidth: float):
        super().__init__()
        self.size = 1 + 2 * count
        self.register_buffer("frequencies", 2 * pi * bandwidth * torch.randn(count))

    def forward(self, values: Tensor) -> Tensor:
        values = values.unsqueeze(-1)
        angles = values * self.frequencies
        return torch.cat([values, angles.sin(), angles.cos()], -1)
