"""MLPs, which most models end with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from tasks.models.running_norm import RunningNorm


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
    d_in: int,
    hidden: Sequence[int],
    d_out: int,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A `RunningNorm` and an MLP of pooled features, (b, d_in) -> (b, d_out)."""
    return nn.Sequential(RunningNorm(d_in), *mlp(d_in, hidden, d_out, dropout))
