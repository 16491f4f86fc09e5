"""ProbeGen: an MLP on what networks say of generated inputs (Kahana et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import torch
from torch import Tensor, nn

from tasks.models.base import NetworkModel
from tasks.models.perceptron import perceptron
from tasks.networks.architectures import Architecture, Stack

SMALLEST = 4  # Pixels of the sides of the first map of a generator of images.


@dataclass(frozen=True)
class ProbeGenConfig:
    """probes: inputs. latent: size of their codes. channels: of the generator of images, before
    its last map. hidden, dropout: of the MLP.
    """

    probes: int = 64
    latent: int = 32
    channels: int = 16
    hidden: tuple[int, ...] = (256,) * 5
    dropout: float = 0.0


class ProbeGen(NetworkModel):
    """The baseline "probegen": sees outputs on probes alone, so that all symmetries are known.

    Probes are learned codes that went through a generator without activations between its layers,
    which all networks share. Raises ValueError for networks of other inputs or outputs.
    """

    name = "probegen"

    def __init__(
        self,
        architectures: Sequence[Architecture],
        d_out: int,
        config: ProbeGenConfig,
        edits: bool = False,
    ):
        super().__init__(architectures, edits)
        self.ends = ends(architectures[0])
        for other in architectures:
            self._check(other)
        self.codes = nn.Parameter(torch.randn(config.probes, config.latent))
        inputs, outputs = self.ends
        self.generator = generator(inputs, config.latent, config.channels)
        self.head = perceptron(
            config.probes * outputs, config.hidden, d_out, config.dropout
        )

    def probes(self) -> Tensor:
        """(probes, *input)."""
        return self.generator(self.codes)

    def forward(self, stack: Stack) -> Tensor:
        self._check(stack.architecture)
        said = stack.architecture.outputs(stack.params, self.probes())
        return self.head(said.flatten(1))

    def _check(self, architecture: Architecture) -> None:
        found = ends(architecture)
        if found != self.ends:
            told = "{} and {} outputs; got {} and {}".format(*self.ends, *found)
            raise ValueError(f"probegen: expected networks of inputs {told}")


def ends(architecture: Architecture) -> tuple[tuple[int, ...], int]:
    """The shape of an input, and how many outputs there are."""
    example = architecture.module.example()
    group = architecture.graph.groups[architecture.module.output]
    return tuple(example.shape[1:]), group.size


def generator(shape: Sequence[int], latent: int, channels: int) -> nn.Module:
    """Codes (m, latent) to inputs (m, *shape).

    Points are two linear maps away, images transposed convolutions. Raises ValueError for others.
    """
    if len(shape) == 1:
        return nn.Sequential(
            nn.Linear(latent, latent), nn.Linear(latent, shape[0])
        )
    if len(shape) == 3:
        return ImageGenerator(shape, latent, channels)
    raise ValueError(
        f"probegen: expected networks of points or images; got inputs {tuple(shape)}"
    )


class ImageGenerator(nn.Module):
    """Transposed convolutions that double the sides of a map, a convolution, tanh.

    Shapes: (m, latent) -> (m, *shape); shape is (channels, height, width). What is too much of the
    last map is cut away.
    """

    def __init__(self, shape: Sequence[int], latent: int, channels: int):
        super().__init__()
        self.shape = shape
        doublings = max(1, ceil(log2(max(shape[1:]) / SMALLEST)))
        widths = [channels * 2**k for k in reversed(range(doublings))]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent, 2 * widths[0], SMALLEST)
        ]
        for wide, width in zip((2 * widths[0], *widths), widths, strict=False):
            layers.append(
                nn.ConvTranspose2d(wide, width, 4, stride=2, padding=1)
            )
        layers += [nn.Conv2d(channels, shape[0], 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: Tensor) -> Tensor:
        _, height, width = self.shape
        return self.layers(codes[..., None, None])[..., :height, :width]
