"""FF: a small MLP that maps every parameter's features to its update (Metz et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ngopt.features import NUM_FEATURES
from ngopt.graph.core import NeuralGraph
from ngopt.models.metanet import Metanet


@dataclass(frozen=True)
class FeedForwardConfig:
    """hidden: widths of the MLP. output_scale and magnitude_scale: see `UpdateMLP`.

    nominal_step: the step size in whose units the optimizer's weight decay is given.
    """

    hidden: tuple[int, ...] = (32, 32)
    output_scale: float = 0.01
    magnitude_scale: float = 0.001
    nominal_step: float = 1e-3


class UpdateMLP(nn.Module):
    """Features of parameters to updates: update = output_scale * d * exp(magnitude_scale * m).

    Direction d and magnitude m are the two outputs of an MLP with ReLU (Metz et al. 2019, App. C;
    there both scales are 1e-3).

    Shapes: (*batch, n, d_in) -> (*batch, n).
    """

    def __init__(self, d_in: int, hidden: Sequence[int], output_scale: float, magnitude_scale: float):
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise((d_in, *hidden)):
            layers += [nn.Linear(a, b), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear((d_in, *hidden)[-1], 2))
        self.output_scale = output_scale
        self.magnitude_scale = magnitude_scale

    def forward(self, features: Tensor) -> Tensor:
        direction, magnitude = self.layers(features).unbind(-1)
        return self.output_scale * direction * torch.exp(self.magnitude_scale * magnitude)


class FeedForward(Metanet):
    """The metanet "ff": sees every parameter alone, not the graph.

    Shapes: features (*batch, numel, 14), in the order of `NeuralGraph.flatten` -> (*batch, numel).
    """

    name = "ff"
    Config = FeedForwardConfig

    def __init__(self, config: FeedForwardConfig | None = None):
        config = config or FeedForwardConfig()
        super().__init__(config)
        self.head = UpdateMLP(NUM_FEATURES, config.hidden, config.output_scale, config.magnitude_scale)

    def forward(self, features: Tensor, graph: NeuralGraph) -> Tensor:
        return self.head(features)
