"""Networks on sequences: attention, mixers, recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING_STD = 0.02  # GPT-2's


class Patches(nn.Module):
    """Squares of an image, each a linear map of its pixels: (b, patches, width)."""

    def __init__(self, channels: int, side: int, patch: int, width: int):
        super().__init__()
        self.map = nn.Conv2d(channels, width, patch, stride=patch)
        self.count = (side // patch) ** 2

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images).flatten(2).mT


class VisionTransformer(nn.Module):
    """Torch's transformer layers on patches with learned positions; their mean is
    classified."""

    def __init__(
        self,
        channels: int,
        side: int,
        patch: int,
        width: int,
        heads: int,
        depth: int,
    ):
        super().__init__()
        self.patches = Patches(channels, side, patch, width)
        self.positions = nn.Parameter(
            EMBEDDING_STD * torch.randn(self.patches.count, width)
        )
        self.layers = nn.ModuleList(_encoder_layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, channels, side, side); returns (b, 10)"""
        x = self.patches(images) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def _encoder_layer(width: int, heads: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width,
        heads,
        dim_feedforward=2 * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


class CausalAttention(nn.Module):
    """Attention to what came before, with one linear map for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        parts = self.qkv(x).view(b, t, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each (b, heads, t, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class LinearAttention(nn.Module):
    """Attention of all to all with the kernel elu + 1 (Katharopoulos et al. 2020, Eq.
    5)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q = F.elu(self._by_head(self.query(x))) + 1  # (b, heads, t, width / heads)
        k = F.elu(self._by_head(self.key(x))) + 1
        v = self._by_head(self.value(x))
        mixed = q @ (k.mT @ v)
        weight = q @ k.sum(-2)[..., None]
        return self.out((mixed / weight).transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """A residual block of attention and one of an MLP, with norms before them."""

    def __init__(self, width: int, attention: nn.Module):
        super().__init__()
        self.first_norm = nn.LayerNorm(width)
        self.attention = attention
        self.second_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first_norm(x))
        return x + self.mlp(self.second_norm(x))


class Gpt(nn.Module):
    """GPT-2 in small: embeddings, causal blocks, the next character's logits.

    tied: whether the embedding is the last layer's weight too.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int,
        heads: int,
        depth: int,
        tied: bool = False,
    ):
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        blocks = (Block(width, CausalAttention(width, heads)) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.characters, self.positions):
            nn.init.normal_(embedding.weight, std=EMBEDDING_STD)
        if tied:
            self.head.weight = self.characters.weight

    def forward(self, codes: Tensor) -> Tensor:
        """codes: (b, t) int64; returns logits (b, vocabulary, t)"""
        x = self.characters(codes) + self.positions.weight[: codes.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).mT


class LinearTransformer(nn.Module):
    """Blocks of linear attention on patches; the mean is classified."""

    def __init__(
        self,
        channels: int,
        side: int,
        patch: int,
        width: int,
        heads: int,
        depth: int,
    ):
        super().__init__()
        self.patches = Patches(channels, side, patch, width)
        self.positions = nn.Parameter(
            EMBEDDING_STD * torch.randn(self.patches.count, width)
        )
        blocks = (Block(width, LinearAttention(width, heads)) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, channels, side, side); returns (b, 10)"""
        x = self.patches(images) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class MixerBlock(nn.Module):
    """An MLP across patches, then one across channels (Tolstikhin et al. 2021)."""

    def __init__(self, patches: int, width: int):
        super().__init__()
        self.first_norm = nn.LayerNorm(width)
        self.second_norm = nn.LayerNorm(width)
        self.across_patches = _mixing(patches, 2 * patches)
        self.across_channels = _mixing(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across_patches(self.first_norm(x).mT).mT
        return x + self.across_channels(self.second_norm(x))


def _mixing(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Mixer(nn.Module):
    """MLP-Mixer: blocks on patches; the mean is classified."""

    def __init__(self, channels: int, side: int, patch: int, width: int, depth: int):
        super().__init__()
        self.patches = Patches(channels, side, patch, width)
        blocks = (MixerBlock(self.patches.count, width) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, channels, side, side); returns (b, 10)"""
        return self.head(self.norm(self.blocks(self.patches(images))).mean(1))


class RowReader(nn.Module):
    """Reads an image row by row; what it remembers at the end is classified."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], side: int, width: int):
        super().__init__()
        self.cells = kind(side, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, 1, side, side); returns (b, 10)"""
        outputs, _ = self.cells(images.squeeze(1))
        return self.head(outputs[:, -1])


class CharacterReader(nn.Module):
    """Embedding, recurrent layers, the next character's logits."""

    def __init__(
        self,
        kind: type[nn.GRU] | type[nn.LSTM],
        vocabulary: int,
        embedding: int,
        width: int,
        depth: int = 1,
    ):
        super().__init__()
        self.characters = nn.Embedding(vocabulary, embedding)
        self.cells = kind(embedding, width, depth, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        """codes: (b, t) int64; returns logits (b, vocabulary, t)"""
        outputs, _ = self.cells(self.characters(codes))
        return self.head(outputs).mT
