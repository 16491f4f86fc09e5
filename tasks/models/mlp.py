"""The plain network of linear maps that most models end with."""

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
    """(*, d_in) -> (*, d_out). dropout: share of each hidden layer that is left out in
    training."""
    layers: list[nn.Module] = []
    for fans in pairwise((d_in, *hidden)):
        layers += [nn.Linear(*fans), activation()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    last = (d_in, *hidden)[-1]
    return nn.Sequential(*layers, nn.Linear(last, d_out))


def pooled_head(
    d_in: int,
    hidden: Sequence[int],
    d_out: int,
    dropout: float = 0.0,
) -> nn.Sequential:
    """An MLP of what was pooled, which is normalised first; (b, d_in) -> (b,
    d_out)."""
    return nn.Sequential(RunningNorm(d_in), *mlp(d_in, hidden, d_out, dropout))
