"""Normalisation by running averages over batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Weight of a batch in the running averages. It is larger at first, so that they are
# plain means of the batches.
MOMENTUM = 0.01
EPSILON = 1e-5


class RunningNorm(nn.Module):
    """Subtracts a running mean, and divides by a running standard deviation.

    A mean over all parameters of a network is nearly the same in all networks.
    Normalised, it is learned from much faster. Unlike batch normalisation (Ioffe &
    Szegedy 2015), the running averages are also used in training, because a batch may
    be a few similar networks.

    Shapes: (b, d) -> (b, d).
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, d: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("variance", torch.ones(d))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._update_averages(x.detach())
        return (x - self.mean) / (self.variance + EPSILON).sqrt()

    def _update_averages(self, x: Tensor) -> None:
        self.batches += 1
        weight = (1 / self.batches).clamp_min(MOMENTUM)
        self.mean.lerp_(x.mean(0), weight)
        self.variance.lerp_((x - self.mean).square().mean(0), weight)
