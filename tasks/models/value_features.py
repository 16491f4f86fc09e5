"""Features of parameter values, which a graph network reads."""

from math import pi

import torch
from torch import Tensor, nn

# Smallest RMS of a tensor, in standard deviations over the training data.
SMALLEST_RMS = 1e-4


class ValueFeatures(nn.Module):
    """A value, and sines and cosines of random multiples of it (Tancik et al. 2020).

    frequencies: their number. bandwidth: their standard deviation, in periods.
    scales: whether `prepare` divides values by the RMS of their tensor, and the
    logarithm of the RMS is another feature.

    Shapes: prepared values (*, 1), or (*, 2) with scales -> (*, size).
    """

    frequencies: Tensor

    def __init__(self, frequencies: int, bandwidth: float, scales: bool = False):
        super().__init__()
        self.scales = scales
        self.size = 1 + 2 * frequencies + scales
        drawn = 2 * pi * bandwidth * torch.randn(frequencies)
        self.register_buffer("frequencies", drawn)

    def prepare(self, values: Tensor) -> Tensor:
        """A parameter of b networks, (b, *shape) -> (b, *shape, 1 or 2).

        With `scales`, values are divided by their RMS in each network, and its
        logarithm is the second feature.
        """
        if not self.scales:
            return values.unsqueeze(-1)
        means = values.square().flatten(1).mean(1)
        rms = means.sqrt().clamp_min(SMALLEST_RMS).view(-1, *[1] * (values.dim() - 1))
        return torch.stack([values / rms, rms.log().expand_as(values)], -1)

    def forward(self, prepared: Tensor) -> Tensor:
        values = prepared[..., :1]
        angles = values * self.frequencies
        return torch.cat([values, angles.sin(), angles.cos(), prepared[..., 1:]], -1)
