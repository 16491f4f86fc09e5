"""The MLP that maps features of a parameter to its update (Metz et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ngopt.metanets.update_mlp.predictor import (
    KernelPredictor,
    MLPPredictor,
    Predictor,
    has_kernel,
)


class UpdateMLP(nn.Module):
    """update = output_scale * d * exp(magnitude_scale * m).

    Direction d and magnitude m are the two outputs of an MLP with ReLU (Metz et al.
    2019, App. C; there both scales are 1e-3).

    Shapes: features (*batch, n, d_in), and context (*batch, n, d_context) -> (*batch,
    n).
    """

    def __init__(
        self,
        d_in: int,
        hidden: Sequence[int],
        output_scale: float,
        magnitude_scale: float,
        d_context: int = 0,
    ):
        super().__init__()
        widths = d_in + d_context, *hidden
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 2))
        self.output_scale = output_scale
        self.magnitude_scale = magnitude_scale

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        # elements last, as they are in memory: products of few rows are fastest so
        x = features.mT if context is None else torch.cat([features.mT, context.mT], -2)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                x = (layer.weight @ x).add_(layer.bias.unsqueeze(-1))
            else:
                x = layer(x)
        direction, magnitude = x.unbind(-2)
        size = torch.exp(self.magnitude_scale * magnitude)
        return self.output_scale * direction * size

    def predictor(self, capacity: int) -> Predictor:
        """See `Metanet.predictor`."""
        linears = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        scales = self.output_scale, self.magnitude_scale
        if has_kernel(linears):
            return KernelPredictor(linears, scales)
        return MLPPredictor(linears, scales, capacity)
