"""Networks on sets of pixels that are data (Zaheer et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.networks.classifier import (
    SIDE,
    Classifier,
    NeuronDropout,
    activation_of,
)
from tasks.networks.siren import grid


class DeepSets(Classifier):
    """A linear layer of pixels, equivariant layers of their set, its mean and a linear
    layer.

    A pixel, of an image pooled to so many rows and columns, has its colours and its
    place. An equivariant layer is own(x) + mean(mean of x over the set) (Zaheer et al.
    2017, equation 4, with the mean for the sum).

    channels: of the images. widths: of every layer.

    Raises ValueError for an unknown activation.
    """

    places: Tensor

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        activation: str,
        side: int = 16,
        classes: int = 10,
        dropout: float = 0.0,
    ):
        super().__init__(channels)
        self.pooled = SIDE // side
        self.activation = activation_of(activation)
        self.register_buffer("places", grid(side, side).mT, persistent=False)  # (2, n)
        self.embed = nn.Linear(channels + 2, widths[0])
        self.own = nn.ModuleList(nn.Linear(*fans) for fans in pairwise(widths))
        self.mean = nn.ModuleList(
            nn.Linear(*fans, bias=False) for fans in pairwise(widths)
        )
        self.fc = nn.Linear(widths[-1], classes)
        self.drop = NeuronDropout(dropout, axis=-1)
        self.output_group = 2 + len(widths)

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        """x: (m, channels, height, width), images."""
        places = self.places.expand(len(x), -1, -1)
        pixels = F.avg_pool2d(x, self.pooled).flatten(2)
        # (m, n, width)
        y = self.activation(self.embed(torch.cat([pixels, places], 1).mT))
        layers, means = [y.mT], []
        for own, mean in zip(self.own, self.mean, strict=True):
            means.append(y.mean(1, keepdim=True))
            y = self.drop(self.activation(own(y) + mean(means[-1])))
            layers.append(y.mT)
        first, *others = layers
        output = self.fc(y.mean(1))
        return [
            x,
            first,
            places,
            *others,
            output,
            *(value.mT for value in means),
        ]
