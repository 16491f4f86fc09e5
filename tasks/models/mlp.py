"""MLPs, which most models end with, and normalisation before them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

# Weight of a batch in the running averages. It is larger at first, so that they are
# plain means of the batches.
MOMENTUM = 0.01
EPSILON = 1e-5


@dataclass(frozen=True)
class MLPConfig:
    """hidden: widths. dropout: after each hidden layer."""

    hidden: tuple[int, ...] = (256, 256)
    dropout: float = 0.0


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
            batch = x.detach()
            self.batches += 1
            weight = (1 / self.batches).clamp_min(MOMENTUM)
            self.mean.lerp_(batch.mean(0), weight)
            self.variance.lerp_((batch - self.mean).square().mean(0), weight)
        return (x - self.mean) / (self.variance + EPSILON).sqrt()


def mlp(
    d_in: int,
    hidden: Sequence[int],
    d_out: int,
    dropout: float = 0.0,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """(*, d_in) -> (*, d_out). dropout: after each hidden layer."""
    layers: list[nn.Module] = []
    widths = (d_in, *hidden)
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], d_out))


def pooled_head(
    d_in: int, hidden: Sequence[int], d_out: int, dropout: float = 0.0
) -> nn.Sequential:
    """A `RunningNorm` and an MLP of pooled features, (b, d_in) -> (b, d_out)."""
    return nn.Sequential(RunningNorm(d_in), *mlp(d_in, hidden, d_out, dropout))
