"""Physics-informed networks (Raissi et al. 2019): u'' = f on an interval, with random
sources f and u = 0 at both ends.

ngopt specialize examples.families.poisson --horizons 50:200
"""

from math import pi

import torch
from torch import Tensor, nn
from torch.func import jvp

WIDTH, WAVES = 32, 4
PLACES = torch.linspace(0, 1, 128).unsqueeze(1)
ENDS = torch.tensor([[0.0], [1.0]])


def second_derivative(network: nn.Module, x: Tensor) -> Tensor:
    ones = torch.ones_like(x)

    def derivative(places: Tensor) -> Tensor:
        return jvp(network, (places,), (ones,))[1]

    return jvp(derivative, (x,), (ones,))[1]


def loss(network: nn.Module, source: Tensor) -> Tensor:
    """Mean squares of the residual and of the values at the ends; source: (128, 1)."""
    residual = second_derivative(network, PLACES) - source
    return residual.square().mean() + 100 * network(ENDS).square().mean()


def member(seed: int) -> tuple:
    network = nn.Sequential(
        nn.Linear(1, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, 1),
    )
    waves = torch.arange(1, WAVES + 1)
    source = (torch.sin(pi * waves * PLACES) * torch.randn(WAVES)).sum(1, keepdim=True)
    return network, [source], loss
