"""Classifiers of images that are data: what their inputs are, activations by name,
dropout."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
"""By the names that Wild Park files have."""
SIDE = 32
"""Of images, in pixels."""


class Classifier(InputNetwork):
    """Base class of what reads images.

    channels: of the images.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def example_input(self) -> Tensor:
        return torch.zeros(1, self.channels, SIDE, SIDE)


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """Raises ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(
            f"architecture: activation: expected one of {known}; got {name!r}"
        )
    return ACTIVATIONS[name]


class NeuronDropout(nn.Module):
    """Dropout of whole neurons, with all their places, so that few numbers are drawn.

    As in Tompson et al. 2015, section 3.2.

    share: of the neurons. axis: theirs.
    """

    def __init__(self, share: float, axis: int):
        super().__init__()
        self.share, self.axis = share, axis

    def forward(self, x: Tensor) -> Tensor:
        """(m, *), in training with zeros for some neurons of every input, the others
        scaled up."""
        if not self.training or not self.share:
            return x
        shape = [len(x), *[1] * (x.dim() - 1)]
        shape[self.axis] = x.shape[self.axis]
        kept = torch.rand(shape, device=x.device) >= self.share
        return x * (kept / (1 - self.share))
