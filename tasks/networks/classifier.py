"""Base class of image classifiers, activation functions by name, and dropout."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.settings import check_choice
from tasks.networks.input_network import InputNetwork

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "none": lambda x: x,
}
"""By the names in Wild Park files."""
IMAGE_SIDE = 32
"""Height and width of the images, in pixels."""
CLASSES = 10


class Classifier(InputNetwork):
    """Base class of networks that classify images (m, channels, 32, 32)."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def example_input(self) -> Tensor:
        return torch.zeros(1, self.channels, IMAGE_SIDE, IMAGE_SIDE)


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """Raises ValueError for an unknown name."""
    check_choice("architecture: activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


class NeuronDropout(nn.Module):
    """Dropout of whole neurons, at all positions together (Tompson et al. 2015,
    section 3.2).

    p: probability that a neuron of an input is zeroed. axis: dimension of the neurons.

    Shapes: (m, *) -> (m, *).
    """

    def __init__(self, p: float, axis: int):
        super().__init__()
        self.p, self.axis = p, axis

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        shape = [len(x), *[1] * (x.dim() - 1)]
        shape[self.axis] = x.shape[self.axis]
        is_kept = torch.rand(shape, device=x.device) >= self.p
        return x * (is_kept / (1 - self.p))
