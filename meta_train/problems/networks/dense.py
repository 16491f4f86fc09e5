"""Networks without convolutions, recurrence or attention."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.networks.siren import FREQUENCY, Siren

Layer = Callable[[], nn.Module]


def mlp(
    widths: Sequence[int],
    activation: Layer = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """Linear layers of these widths; all but the last have a norm and an activation."""
    *hidden, last = pairwise(widths)
    layers = nn.Sequential(nn.Flatten())
    for fan_in, fan_out in hidden:
        layers.append(nn.Linear(fan_in, fan_out))
        if norm is not None:
            layers.append(norm(fan_out))
        layers.append(activation())
    return layers.append(nn.Linear(*last))


def autoencoder(widths: Sequence[int], image: tuple[int, ...]) -> nn.Sequential:
    """An MLP of these widths and back; returns logits of the pixels."""
    return mlp([*widths, *reversed(widths[:-1])]).append(nn.Unflatten(1, image))


class SirenSlopes(Siren):
    """The derivatives of a SIREN of one output with respect to its two coordinates."""

    def __init__(self, widths: Sequence[int]):
        super().__init__(widths)
        # the derivatives do not depend on the last bias
        self.layers[-1].register_parameter("bias", None)

    def forward(self, points: Tensor) -> Tensor:
        """points: (n, 2); returns (n, 2)"""
        *hidden, last = [m for m in self.layers if isinstance(m, nn.Linear)]
        # (n, coordinates, units)
        slopes = torch.eye(2, device=points.device).expand(len(points), 2, 2)
        for layer in hidden:
            angles = FREQUENCY * layer(points)
            points = angles.sin()
            slopes = angles.cos()[:, None] * (
                FREQUENCY * F.linear(slopes, layer.weight)
            )
        return F.linear(slopes, last.weight).squeeze(-1)


class PreNormMlp(nn.Module):
    """Residual blocks of a norm and two linear layers, between two linear layers."""

    def __init__(self, fan_in: int, fan_out: int, width: int, blocks: int):
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(fan_in, width))
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            layers = nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()
            self.blocks.append(nn.Sequential(*layers, nn.Linear(width, width)))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, fan_out))

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, channels, height, width); returns (b, fan_out)"""
        hidden = self.first(images)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden)


class MixtureOfExperts(nn.Module):
    """A mixture of MLPs; a gate selects two of them for each input."""

    def __init__(self, fan_in: int, experts: int, width: int, fan_out: int):
        super().__init__()
        self.embed = nn.Linear(fan_in, width)
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(mlp([width] * 3) for _ in range(experts))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, fan_out)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, channels, height, width); returns (b, fan_out)"""
        hidden = self.embed(images.flatten(1)).relu()
        best, chosen = self.gate(hidden).topk(2)
        # At this size, running all experts on all inputs is faster than sorting inputs.
        zeros = best.new_zeros(len(images), len(self.experts))
        share = zeros.scatter(1, chosen, best.softmax(1))
        outputs = torch.stack([expert(hidden) for expert in self.experts], 1)
        hidden = hidden + (share[..., None] * outputs).sum(1)
        return self.head(self.norm(hidden))


class VariationalAutoencoder(nn.Module):
    """An encoder to mean and log variance, and a decoder (Kingma and Welling 2014)."""

    def __init__(self, pixels: int, width: int, code: int):
        super().__init__()
        self.encoder = mlp((pixels, width, 2 * code))
        self.decoder = mlp((code, width, pixels))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits (b, pixels), and mean and log variance of the code, (b, code).

        In evaluation mode the code is its mean.
        """
        mean, log_variance = self.encoder(images).chunk(2, 1)
        code = mean
        if self.training:
            code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.decoder(code), mean, log_variance


class ResidualDenoiser(nn.Module):
    """Predicts the noise in images, with residual blocks conditioned on its level."""

    frequencies: Tensor

    def __init__(self, pixels: int, width: int, blocks: int):
        super().__init__()
        octaves = pi * 2.0 ** torch.arange(8)
        self.register_buffer("frequencies", octaves, persistent=False)
        self.level = nn.Sequential(nn.Linear(2 * len(octaves), width), nn.SiLU())
        self.first = nn.Linear(pixels, width)
        self.blocks = nn.ModuleList(LeveledBlock(width) for _ in range(blocks))
        self.last = nn.Linear(width, pixels)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """inputs: images (b, channels, height, width) and levels (b, 1); returns the
        shape of the images"""
        images, levels = inputs
        angles = levels * self.frequencies
        level = self.level(torch.cat([angles.sin(), angles.cos()], 1))
        hidden = self.first(images.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden, level)
        return self.last(hidden).view_as(images)


class LeveledBlock(nn.Module):
    """A norm with predicted scale and shift (FiLM, Perez et al. 2018), then an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, hidden: Tensor, level: Tensor) -> Tensor:
        """hidden, level: (b, width); returns (b, width)"""
        scale, shift = self.film(level).chunk(2, 1)
        return self.mlp((1 + scale) * self.norm(hidden) + shift)


class PointSet(nn.Module):
    """PointNet: an MLP on each point, max-pooling over points, another MLP."""

    def __init__(self, features: int, width: int, classes: int):
        super().__init__()
        self.each = nn.Sequential(
            nn.Linear(features, width),
            nn.ReLU(),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
        )
        self.all = mlp((2 * width, width, classes))

    def forward(self, points: Tensor) -> Tensor:
        """points: (b, count, features); returns (b, classes)"""
        return self.all(self.each(points).amax(1))


class BagOfTrigrams(nn.Module):
    """The mean embedding of all trigrams of characters, then an MLP."""

    def __init__(self, rows: int, width: int, hidden: int, classes: int):
        super().__init__()
        self.bag = nn.EmbeddingBag(rows, width, mode="mean")
        self.head = mlp((width, hidden, classes))

    def forward(self, codes: Tensor) -> Tensor:
        """codes: (b, length) int64; returns (b, classes)"""
        trigrams = (codes[:, :-2] * 31 + codes[:, 1:-1]) * 31 + codes[:, 2:]
        return self.head(self.bag(trigrams % self.bag.num_embeddings))
