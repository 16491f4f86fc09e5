"""SIRENs: MLPs with sine activations that represent images (Sitzmann et al. 2020)."""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn

from tasks.networks.input_network import InputNetwork

FREQUENCY = 30.0


class Siren(InputNetwork):
    """Initialised as in Sitzmann et al. 2020, section 3.2.

    widths: of the layers, from the coordinates to the channels.
    """

    frequency = FREQUENCY

    def __init__(self, widths: Sequence[int], frequency: float = FREQUENCY):
        super().__init__()
        self.inputs = widths[0]
        self.frequency = frequency
        linears = [nn.Linear(*fans) for fans in pairwise(widths)]
        for index, layer in enumerate(linears):
            fan_in = layer.in_features
            bound = sqrt(6 / fan_in) / frequency if index else 1 / fan_in
            nn.init.uniform_(layer.weight, -bound, bound)
        self.layers = nn.ModuleList(linears)

    def example_input(self) -> Tensor:
        return torch.zeros(1, self.inputs)

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        """x: coordinates (m, d)."""
        *hidden, last = self.layers
        activations: list[Tensor | None] = [x]
        for layer in hidden:
            x = torch.sin(self.frequency * layer(x))
            activations.append(x)
        return [*activations, last(x)]


def render(params: Sequence[Tensor], points: Tensor) -> Tensor:
    """Outputs of stacked SIRENs at the same points.

    Shapes: params, in the order of the module: weights (b, n_out, n_in) and biases
    (b, n_out); points (n, d) -> (b, channels, n).
    """
    x = points.mT.expand(len(params[0]), -1, -1)
    last = len(params) // 2 - 1
    for index, (weight, bias) in enumerate(zip(params[::2], params[1::2], strict=True)):
        x = torch.baddbmm(bias.unsqueeze(-1), weight, x)
        if index < last:
            x = torch.sin(FREQUENCY * x)
    return x


def pixel_grid(height: int, width: int) -> Tensor:
    """Coordinates of the pixels' centres, (height * width, 2), row by row.

    The centres of the outermost pixels are at -1 and 1.
    """
    rows = torch.linspace(-1, 1, height)
    columns = torch.linspace(-1, 1, width)
    return torch.cartesian_prod(rows, columns)
