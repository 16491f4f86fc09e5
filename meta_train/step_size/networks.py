"""Random small networks: MLPs, CNNs, transformers, recurrent and other kinds.

All are built with PyTorch's initial weights; `initialize` draws others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Sine(nn.Module):
    """sin(frequency x), as in SIRENs (Sitzmann et al. 2020)."""

    def __init__(self, frequency: float = 1.0):
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return (self.frequency * x).sin()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sine": Sine,
    "softplus": nn.Softplus,
}


def feature_norm(name: str, width: int) -> nn.Module:
    """A norm of features (..., width)."""
    if name == "layer":
        return nn.LayerNorm(width)
    if name == "rms":
        return nn.RMSNorm(width)
    if name == "batch":
        return nn.BatchNorm1d(width, track_running_stats=False)
    return nn.Identity()


def channel_norm(name: str, width: int) -> nn.Module:
    """A norm of images (b, width, rows, columns)."""
    if name == "batch":
        return nn.BatchNorm2d(width, track_running_stats=False)
    if name == "group":
        return nn.GroupNorm(math.gcd(4, width), width)
    return nn.Identity()


class Layer(nn.Module):
    """A linear map or convolution, its norm and activation; perhaps residual."""

    def __init__(self, linear: nn.Module, norm: nn.Module, act: nn.Module, skip: bool):
        super().__init__()
        self.linear, self.norm, self.act, self.skip = linear, norm, act, skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.linear(x)))
        return x + y if self.skip else y


class Reshaped(nn.Module):
    """The outputs of a network in another shape, (b, *shape)."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.network, self.shape = network, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).unflatten(1, self.shape)


def mlp(
    sizes: tuple[int, int, int],
    depth: int,
    act: Callable[[], nn.Module],
    norm: str,
    skip: bool,
) -> nn.Sequential:
    """depth hidden layers. sizes: of inputs, hidden layers and outputs."""
    inputs, width, outputs = sizes
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        linear = nn.Linear(width if i else inputs, width)
        own = skip and i > 0
        layers.append(Layer(linear, feature_norm(norm, width), act(), own))
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def autoencoder(
    sizes: tuple[int, int], depth: int, act: Callable[[], nn.Module], norm: str
) -> nn.Sequential:
    """Hidden layers that halve and double. sizes: of inputs and the widest layer."""
    inputs, width = sizes
    half = max(1, (depth + 1) // 2)
    widths = [max(4, width >> i) for i in range(half)]
    widths += widths[-2::-1]
    layers: list[nn.Module] = [nn.Flatten()]
    before = inputs
    for own in widths:
        linear = nn.Linear(before, own)
        layers.append(Layer(linear, feature_norm(norm, own), act(), False))
        before = own
    return nn.Sequential(*layers, nn.Linear(before, inputs))


def cnn(
    sizes: tuple[int, int, int],
    depth: int,
    act: Callable[[], nn.Module],
    norm: str,
    skip: bool,
) -> nn.Sequential:
    """depth 3x3 convolutions, pooled by two after the first and the second.

    sizes: channels of the images and of hidden layers, and outputs.
    """
    channels, width, outputs = sizes
    layers: list[nn.Module] = []
    for i in range(depth):
        linear = nn.Conv2d(width if i else channels, width, 3, padding=1)
        own = skip and i > 0
        layers.append(Layer(linear, channel_norm(norm, width), act(), own))
        if i < 2:
            layers.append(nn.MaxPool2d(2))
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(width, outputs))


def denoiser(
    sizes: tuple[int, int], depth: int, act: Callable[[], nn.Module], norm: str
) -> nn.Sequential:
    """Convolutions from images to images. sizes: channels of images, hidden layers."""
    channels, width = sizes
    layers: list[nn.Module] = []
    for i in range(depth):
        linear = nn.Conv2d(width if i else channels, width, 3, padding=1)
        layers.append(Layer(linear, channel_norm(norm, width), act(), i > 0))
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))


class Attention(nn.Module):
    """Self-attention; queries, keys and values of one matrix or of three."""

    def __init__(self, width: int, heads: int, causal: bool, fused: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        sizes = [3 * width] if fused else [width] * 3
        self.qkv = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.cat([linear(x) for linear in self.qkv], -1).chunk(3, -1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        # `scaled_dot_product_attention` is slow under vmap on CPUs
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if self.causal:
            later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -1e4)
        y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block (Xiong et al. 2020); norm "": without norms."""

    def __init__(self, width: int, norm: str, act: nn.Module, attention: Attention):
        super().__init__()
        self.attention = attention
        self.norms = nn.ModuleList(feature_norm(norm, width) for _ in range(2))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.down(self.act(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Blocks between an embedding of tokens or image patches and a head."""

    def __init__(self, embed: nn.Module, blocks: nn.Module, head: nn.Module):
        super().__init__()
        self.embed, self.blocks, self.head = embed, blocks, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)))


class Tokens(nn.Module):
    """Embeddings of tokens and their positions."""

    def __init__(self, words: int, length: int, width: int):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.words(x) + self.positions[: x.shape[1]]


class Patches(nn.Module):
    """Embeddings of the square patches of an image and of their positions."""

    def __init__(self, channels: int, side: int, patch: int, width: int):
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, patch)
        count = (side // patch) ** 2
        self.positions = nn.Parameter(0.02 * torch.randn(count, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).mT + self.positions


class MeanHead(nn.Module):
    """Predicts from the mean of all positions."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).mean(1))


class WordHead(nn.Module):
    """Logits of words, (b, words, length)."""

    def __init__(self, width: int, words: int, norm: str):
        super().__init__()
        self.norm = feature_norm(norm, width)
        self.linear = nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x)).mT


class Recurrent(nn.Module):
    """An LSTM or GRU that predicts the next word, logits (b, words, length)."""

    def __init__(self, kind: str, words: int, width: int, depth: int):
        super().__init__()
        self.words = nn.Embedding(words, width)
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.layers = layer(width, width, depth, batch_first=True)
        self.head = nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.layers(self.words(x))
        return self.head(hidden).mT


class Experts(nn.Module):
    """A mixture of MLPs, weighted by a gate (Jacobs et al. 1991)."""

    def __init__(
        self, sizes: tuple[int, int, int], act: Callable[[], nn.Module], count: int
    ):
        super().__init__()
        inputs, width, outputs = sizes
        self.embed = nn.Linear(inputs, width)
        self.gate = nn.Linear(width, count)
        self.experts = nn.ModuleList()
        for _ in range(count):
            up, down = nn.Linear(width, width), nn.Linear(width, width)
            self.experts.append(nn.Sequential(up, act(), down))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1))
        shares = self.gate(x).softmax(-1)
        mixed = torch.stack([expert(x) for expert in self.experts], -1)
        return self.head(self.norm(x + (mixed * shares.unsqueeze(1)).sum(-1)))


class Factors(nn.Module):
    """Dot products of the embeddings of two items, (b,)."""

    def __init__(self, rows: int, columns: int, width: int):
        super().__init__()
        self.rows, self.columns = (
            nn.Embedding(rows, width),
            nn.Embedding(columns, width),
        )
        self.row_bias = nn.Embedding(rows, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.rows(x[:, 0]), self.columns(x[:, 1])
        return (left * right).sum(-1) + self.row_bias(x[:, 0]).squeeze(-1)


class Bag(nn.Module):
    """Classifies the mean embedding of words."""

    def __init__(self, words: int, width: int, outputs: int):
        super().__init__()
        self.words, self.head = nn.Embedding(words, width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


class Vectors(nn.Module):
    """Scales and shifts before and after a fixed random map: no matrix is trained."""

    fixed: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(inputs))
        self.shift = nn.Parameter(torch.zeros(inputs))
        self.out_scale = nn.Parameter(torch.ones(outputs))
        self.out_shift = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("fixed", torch.randn(outputs, inputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.flatten(1) * self.scale + self.shift
        return hidden @ self.fixed.mT * self.out_scale + self.out_shift
