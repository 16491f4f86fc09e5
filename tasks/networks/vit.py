"""Small vision transformers (Dosovitskiy et al. 2021)."""

from math import sqrt

import torch
from torch import Tensor, nn

from harness.settings import check_setting
from tasks.networks.input_network import (
    CLASSES,
    IMAGE_SIDE,
    Classifier,
    NeuronDropout,
    activation_function,
)


class EncoderBlock(nn.Module):
    """Attention and an MLP, each after a LayerNorm and with a residual connection."""

    def __init__(self, width: int, heads: int, activation: str):
        super().__init__()
        self.heads, self.activation = heads, activation_function(activation)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, drop: nn.Module) -> tuple[Tensor, list[Tensor | None]]:
        """Tokens (m, n, width) -> tokens (m, n, width), and the activations of the
        block's neuron groups."""
        normed = self.norm1(x)
        q, k, v = self.q(normed), self.k(normed), self.v(normed)
        queries, keys = self._by_head(q), self._by_head(k)
        products = queries @ keys.mT / sqrt(queries.shape[-1])
        weights = products.softmax(-1)  # (m, heads, n, n)
        attended = (weights @ self._by_head(v)).transpose(1, 2).flatten(2)
        between = x + drop(self.out(attended))
        normed2 = self.norm2(between)
        hidden = self.activation(self.up(normed2))
        end = between + drop(self.down(hidden))
        # products of query and key neurons have a value for every pair of tokens
        attention = [normed.mT, q.mT, k.mT, v.mT, None, weights, attended.mT]
        return end, [*attention, between.mT, normed2.mT, hidden.mT, end.mT]

    def _by_head(self, x: Tensor) -> Tensor:
        """(m, n, width) -> (m, heads, n, width / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ViT(Classifier):
    """Patches as tokens, learned position embeddings, encoder blocks, a LayerNorm, the
    mean over tokens, a linear layer.

    channels: of the images. patch: side of a patch in pixels. depth: number of blocks.

    Raises ValueError for an unknown activation, or a width that is no multiple of
    heads.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        activation: str = "gelu",
        dropout: float = 0.0,
    ):
        super().__init__(channels)
        expected = f"a multiple of {heads} heads"
        check_setting(width % heads == 0, "architecture: width", expected, width)
        self.patch = nn.Conv2d(channels, width, patch, patch)
        self.places = nn.Parameter(
            0.02 * torch.randn((IMAGE_SIDE // patch) ** 2, width)
        )
        self.blocks = nn.ModuleList(
            EncoderBlock(width, heads, activation) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, CLASSES)
        self.drop = NeuronDropout(dropout, axis=-1)

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        """x: images (m, channels, height, width). The tokens are the space."""
        tokens = self.patch(x).flatten(2).mT + self.places
        activations: list[Tensor | None] = [x, tokens.mT]
        for block in self.blocks:
            tokens, of_block = block(tokens, self.drop)
            activations += of_block
        normed = self.norm(tokens)
        return [*activations, normed.mT, self.fc(normed.mean(1))]
