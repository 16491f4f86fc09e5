"""DeepSets: image classifiers on the set of pixels (Zaheer et al. 2017)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.networks.input_network import (
    CLASSES,
    IMAGE_SIDE,
    Classifier,
    NeuronDropout,
    activation_function,
)
from tasks.networks.siren import pixel_grid


class DeepSets(Classifier):
    """A linear layer of pixels, equivariant layers of their set, the mean and a linear
    layer.

    The image is average-pooled to side x side pixels, each with its channels and its
    coordinates. An equivariant layer is own(x) + mean(mean of x over the set), Eq. 4
    of Zaheer et al. 2017 with the mean instead of the sum.

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
        dropout: float = 0.0,
    ):
        super().__init__(channels)
        self.pool_size = IMAGE_SIDE // side
        self.activation = activation_function(activation)
        places = pixel_grid(side, side).mT  # (2, n)
        self.register_buffer("places", places, persistent=False)
        self.embed = nn.Linear(channels + 2, widths[0])
        self.own = nn.ModuleList(nn.Linear(*fans) for fans in pairwise(widths))
        self.mean = nn.ModuleList(
            nn.Linear(*fans, bias=False) for fans in pairwise(widths)
        )
        self.fc = nn.Linear(widths[-1], CLASSES)
        self.drop = NeuronDropout(dropout, axis=-1)
        self.output_group = 2 + len(widths)

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        """x: images (m, channels, height, width)."""
        places = self.places.expand(len(x), -1, -1)
        pixels = F.avg_pool2d(x, self.pool_size).flatten(2)
        # (m, n, width)
        y = self.activation(self.embed(torch.cat([pixels, places], 1).mT))
        first, hidden, means = y.mT, [], []
        for own, mean in zip(self.own, self.mean, strict=True):
            set_mean = y.mean(1, keepdim=True)
            means.append(set_mean.mT)
            y = self.drop(self.activation(own(y) + mean(set_mean)))
            hidden.append(y.mT)
        return [x, first, places, *hidden, self.fc(y.mean(1)), *means]
