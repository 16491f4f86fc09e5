"""Normalisation by running averages, for what differs little between networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Of a batch in the running averages; more at first, when they are plain means of all
# batches.
MOMENTUM = 0.01
EPSILON = 1e-5


class RunningNorm(nn.Module):
    """Features less a mean, divided by a standard deviation: running averages over
    batches.

    A mean over all parameters of a network is nearly the same in all networks; so
    normalised, it is learned from much faster. The running averages normalise in
    training as well, unlike in batch normalisation (Ioffe & Szegedy 2015), because a
    batch may be a few networks that are alike.

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
            self._take(x.detach())
        return (x - self.mean) / (self.variance + EPSILON).sqrt()

    def _take(self, x: Tensor) -> None:
        self.batches += 1
        weight = (1 / self.batches).clamp_min(MOMENTUM)
        self.mean.lerp_(x.mean(0), weight)
        self.variance.lerp_((x - self.mean).square().mean(0), weight)
