"""Networks on sequences: attention, MLP-Mixer, recurrence."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING_STD = 0.02  # GPT-2's
Recurrence = type[nn.GRU] | type[nn.LSTM]


class Patches(nn.Module):
    """A linear map of each square patch of an image: (b, patches, width)."""

    def __init__(self, channels: int, side: int, patch: int, width: int):
        super().__init__()
        self.map = nn.Conv2d(channels, width, patch, stride=patch)
        self.count = (side // patch) ** 2

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images).flatten(2).mT


class PositionedPatches(nn.Module):
    """The first layer of vision transformers: patches and learned positions."""

    def __init__(self, channels: int, side: int, patch: int, width: int):
        super().__init__()
        self.patches = Patches(channels, side, patch, width)
        positions = EMBEDDING_STD * torch.randn(self.patches.count, width)
        self.positions = nn.Parameter(positions)

    def embed(self, images: Tensor) -> Tensor:
        """images: (b, channels, side, side); returns (b, patches, width)"""
        return self.patches(images) + self.positions


class Vit(PositionedPatches):
    """Torch's transformer layers on patches, then mean pooling and a linear layer."""

    def __init__(
        self, channels: int, side: int, patch: int, width: int, heads: int, depth: int
    ):
        super().__init__(channels, side, patch, width)
        self.layers = nn.Sequential()
        for _ in range(depth):
            layer = nn.TransformerEncoderLayer(
                width,
                heads,
                dim_feedforward=2 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            self.layers.append(layer)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, channels, side, side); returns (b, 10)"""
        x = self.layers(self.embed(images))
        return self.head(self.norm(x).mean(1))


class CausalAttention(nn.Module):
    """Causal attention with one linear layer for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, t, width); returns the same"""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # (b, heads, t, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class LinearAttention(nn.Module):
    """Attention with the kernel elu + 1 (Katharopoulos et al. 2020, Eq. 5)."""

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
        mixed = q @ (k.mT @ v) / (q @ k.sum(-2)[..., None])
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """A residual branch of attention and one of an MLP, each with a norm first."""

    def __init__(self, width: int, attention: nn.Module):
        super().__init__()
        self.first_norm = nn.LayerNorm(width)
        self.attention = attention
        self.second_norm = nn.LayerNorm(width)
        self.mlp = _mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first_norm(x))
        return x + self.mlp(self.second_norm(x))


class Gpt(nn.Module):
    """A small GPT-2 that predicts the next character.

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
        self.blocks = nn.Sequential(
            *(Block(width, CausalAttention(width, heads)) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.characters, self.positions):
            nn.init.normal_(embedding.weight, std=EMBEDDING_STD)
        if tied:
            self.head.weight = self.characters.weight

    def forward(self, codes: Tensor) -> Tensor:
        """codes: (b, t) int64; returns logits (b, vocabulary, t)"""
        x = self.characters(codes) + self.positions.weight[: codes.shape[1]]
        return self.head(self.norm(self.blocks(x))).mT


class LinearTransformer(PositionedPatches):
    """Blocks of linear attention on patches, then mean pooling and a linear layer."""

    def __init__(
        self, channels: int, side: int, patch: int, width: int, heads: int, depth: int
    ):
        super().__init__(channels, side, patch, width)
        self.blocks = nn.Sequential(
            *(Block(width, LinearAttention(width, heads)) for _ in range(depth))
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, channels, side, side); returns (b, 10)"""
        return self.head(self.blocks(self.embed(images)).mean(1))


class MixerBlock(nn.Module):
    """An MLP across patches, then one across channels (Tolstikhin et al. 2021)."""

    def __init__(self, patches: int, width: int):
        super().__init__()
        self.first_norm = nn.LayerNorm(width)
        self.second_norm = nn.LayerNorm(width)
        self.across_patches = _mlp(patches, 2 * patches)
        self.across_channels = _mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across_patches(self.first_norm(x).mT).mT
        return x + self.across_channels(self.second_norm(x))


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Mixer(nn.Module):
    """MLP-Mixer blocks on patches, then mean pooling and a linear layer."""

    def __init__(self, channels: int, side: int, patch: int, width: int, depth: int):
        super().__init__()
        self.patches = Patches(channels, side, patch, width)
        self.blocks = nn.Sequential(
            *(MixerBlock(self.patches.count, width) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, channels, side, side); returns (b, 10)"""
        x = self.blocks(self.patches(images))
        return self.head(self.norm(x).mean(1))


class RowRnn(nn.Module):
    """Recurrent layers over the rows of an image; classifies their last output."""

    def __init__(self, kind: Recurrence, side: int, width: int, out: int = 10):
        super().__init__()
        self.cells = kind(side, width, batch_first=True)
        self.head = nn.Linear(width, out)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, 1, side, side); returns (b, out)"""
        outputs, _ = self.cells(images.squeeze(1))
        return self.head(outputs[:, -1])


class CharacterRnn(nn.Module):
    """Embedding and recurrent layers that predict the next character."""

    def __init__(
        self,
        kind: Recurrence,
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
