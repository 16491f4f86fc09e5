"""Small vision transformers that are data (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from tasks.networks.classifier import (
    SIDE,
    Classifier,
    NeuronDropout,
    activation_of,
)


class EncoderBlock(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and with a residual connection."""

    def __init__(self, width: int, heads: int, activation: str):
        super().__init__()
        self.heads, self.activation = heads, activation_of(activation)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, drop: nn.Module) -> tuple[Tensor, list[Tensor | None]]:
        """(m, n, width), tokens -> the same, and what the neurons of the block's groups
        say."""
        normed = self.norm1(x)
        q = self.q(normed)
        k = self.k(normed)
        v = self.v(normed)
        heads = [y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v)]
        weights = attention(*heads[:2])  # (m, heads, n, n)
        attended = (weights @ heads[2]).transpose(1, 2).flatten(2)
        between = x + drop(self.out(attended))
        normed2 = self.norm2(between)
        hidden = self.activation(self.up(normed2))
        end = between + drop(self.down(hidden))
        tokens = (attended, between, normed2, hidden, end)
        before = [y.mT for y in (normed, q, k, v)]
        # a product of a query's and a key's neuron has a value for every pair of tokens
        return end, [*before, None, weights, *(y.mT for y in tokens)]


class ViT(Classifier):
    """Patches as tokens with learned places, blocks, a LayerNorm, the tokens' mean, a
    linear layer.

    channels: of the images. patch: side of one in pixels. depth: blocks.

    Raises ValueError for an unknown activation, or a width that the heads do not
    divide.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        activation: str = "gelu",
        classes: int = 10,
        dropout: float = 0.0,
    ):
        super().__init__(channels)
        if width % heads:
            expected = f"a multiple of {heads} heads"
            raise ValueError(f"architecture: width: expected {expected}; got {width}")
        self.patch = nn.Conv2d(channels, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn((SIDE // patch) ** 2, width))
        self.blocks = nn.ModuleList(
            EncoderBlock(width, heads, activation) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)
        self.drop = NeuronDropout(dropout, axis=-1)

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        """x: (m, channels, height, width), images. Space is the tokens."""
        tokens = self.patch(x).flatten(2).mT + self.places
        found: list[Tensor | None] = [x, tokens.mT]
        for block in self.blocks:
            tokens, said = block(tokens, self.drop)
            found += said
        normed = self.norm(tokens)
        return [*found, normed.mT, self.fc(normed.mean(1))]


def attention(queries: Tensor, keys: Tensor) -> Tensor:
    """(m, heads, n, d) each -> (m, heads, n, n), of every query its weights of the
    keys."""
    return (queries @ keys.mT / sqrt(queries.shape[-1])).softmax(-1)
