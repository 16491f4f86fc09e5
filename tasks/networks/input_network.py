"""Base classes of input networks, whose parameters are the data of the tasks, and of
image classifiers among them; activation functions by name, and dropout."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.settings import check_choice

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


class InputNetwork(nn.Module):
    """A subclass implements `example_input` and `group_activations`.

    Its parameters alone determine its function, since its graph has nothing else.

    frequency: sine neurons compute sin(frequency * x).
    output_group: index of the neuron group that `forward` returns.
    """

    frequency = 1.0
    output_group = -1

    def example_input(self) -> Tensor:
        """An input of the module, (m, *)."""
        raise NotImplementedError

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        """Activations of every neuron group, in the graph's order.

        Shapes: x (m, *) -> (m, size, *space) each; the first is x itself.

        None for nodes that stand for several neurons together: groups of a GroupNorm,
        products of queries and keys. The graph is traced through this method.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, every_group: bool = False) -> Any:
        """The outputs, (m, *); with `every_group` the result of `group_activations`."""
        activations = self.group_activations(x)
        return activations if every_group else activations[self.output_group]


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
