"""Small networks of many kinds, with PyTorch's initial weights."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from meta_train.step_size.tasks import Task

HEAD = 12  # neurons of an attention head at least
GROUPS = 4  # of a group norm at most
PATCH = 4  # side of a patch in pixels
PATCHES = 9  # of an image of 14x14 pixels
PLACES = 0.02  # standard deviation of positions, as in GPT-2


class Sine(nn.Module):
    """As in SIRENs (Sitzmann et al. 2020), whose frequency is 30."""

    def __init__(self, frequency: float = 1.0):
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return (self.frequency * x).sin()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sine": Sine,
    "sine 10": partial(Sine, 10.0),
    "sine 30": partial(Sine, 30.0),
}


class NetworkSettings(NamedTuple):
    """What a network is built from.

    norm: in `FEATURE_NORMS` or `CHANNEL_NORMS`. fused: queries, keys and values
    are one matrix.
    """

    task: Task
    depth: int
    width: int
    act: Callable[[], nn.Module]
    norm: str
    skip: bool
    fused: bool

    @property
    def inputs(self) -> int:
        return self.task.inputs[0].numel()


FEATURE_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "batch": partial(nn.BatchNorm1d, track_running_stats=False),
}
"""Norms of features (..., width)."""

CHANNEL_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "batch": partial(nn.BatchNorm2d, track_running_stats=False),
    "group": lambda width: nn.GroupNorm(math.gcd(GROUPS, width), width),
}
"""Norms of images (b, width, rows, columns)."""


class Layer(nn.Module):
    """A linear map or convolution, its norm and activation; perhaps residual."""

    def __init__(self, linear: nn.Module, norm: nn.Module, act: nn.Module, skip: bool):
        super().__init__()
        self.linear = linear
        self.norm = norm
        self.act = act
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.linear(x)))
        return x + y if self.skip else y


def _dense(inputs: int, s: NetworkSettings) -> Layer:
    linear = nn.Linear(inputs, s.width)
    norm = FEATURE_NORMS[s.norm](s.width)
    skip = s.skip and inputs == s.width
    return Layer(linear, norm, s.act(), skip)


def mlp_between(
    inputs: int,
    outputs: int,
    s: NetworkSettings,
    layer: Callable[[int, NetworkSettings], nn.Module] = _dense,
) -> nn.Sequential:
    """depth hidden layers."""
    layers = nn.Sequential(nn.Flatten(), layer(inputs, s))
    layers.extend(layer(s.width, s) for _ in range(1, s.depth))
    return layers.append(nn.Linear(s.width, outputs))


def mlp(s: NetworkSettings) -> nn.Sequential:
    """SIRENs begin as in Sitzmann et al. 2020, section 3.2; their frequency is that of
    the first layer at any frequency."""
    model = mlp_between(s.inputs, s.task.outputs, s)
    activation = s.act()
    if isinstance(activation, Sine):
        linears = [x for x in model.modules() if isinstance(x, nn.Linear)]
        for linear in linears:
            bound = 15.0 if linear is linears[0] else (6 / linear.in_features) ** 0.5
            bound /= activation.frequency
            nn.init.uniform_(linear.weight, -bound, bound)
    return model


def slopes(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Gradients (b, d) of a function with respect to its points (b, d)."""
    return grad(lambda x: function(x).sum())(points)


class Solver(nn.Module):
    """Laplacian of a function on the unit cube, 0 on its surface; (b, 1).

    In evaluation mode: the function itself. Its boundary values hold for any weights
    (Lagaris et al. 1998).
    """

    def __init__(self, s: NetworkSettings):
        super().__init__()
        self.layers = mlp(s)

    def forward(self, points: Tensor) -> Tensor:
        if not self.training:
            return self._function(points)
        total = torch.zeros_like(points[:, :1])
        for i in range(points.shape[1]):
            first = lambda x, i=i: slopes(self._function, x)[:, i]  # noqa: E731
            total = total + slopes(first, points)[:, i : i + 1]
        return total

    def _function(self, points: Tensor) -> Tensor:
        bump = (4 * points * (1 - points)).prod(1, keepdim=True)
        return bump * self.layers(points)


def autoencoder(s: NetworkSettings) -> nn.Sequential:
    """Hidden layers whose widths halve and then double."""
    widths = [max(4, s.width >> i) for i in range((s.depth + 1) // 2)]
    widths += widths[-2::-1]
    layers = nn.Sequential(nn.Flatten())
    for before, width in pairwise([s.inputs, *widths]):
        layers.append(_dense(before, s._replace(width=width, skip=False)))
    return layers.append(nn.Linear(widths[-1], s.inputs))


class GatedLayer(nn.Module):
    """A gated linear unit with any activation (Shazeer 2020)."""

    def __init__(self, inputs: int, s: NetworkSettings):
        super().__init__()
        self.norm = FEATURE_NORMS[s.norm](inputs)
        self.gate = nn.Linear(inputs, s.width)
        self.value = nn.Linear(inputs, s.width)
        self.act = s.act()
        self.out = nn.Linear(s.width, s.width)
        self.skip = s.skip and inputs == s.width

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y = self.out(self.act(self.gate(y)) * self.value(y))
        return x + y if self.skip else y


def gated_mlp(s: NetworkSettings) -> nn.Sequential:
    return mlp_between(s.inputs, s.task.outputs, s, GatedLayer)


def _convolution(channels: int, s: NetworkSettings) -> Layer:
    linear = nn.Conv2d(channels, s.width, 3, padding=1)
    norm = CHANNEL_NORMS[s.norm](s.width)
    skip = s.skip and channels == s.width
    return Layer(linear, norm, s.act(), skip)


def cnn(s: NetworkSettings) -> nn.Sequential:
    """3x3 convolutions of gray images, pooled by two after the first and the second."""
    layers = nn.Sequential()
    channels = 1
    for i in range(s.depth):
        layers.append(_convolution(channels, s))
        if i < 2:
            layers.append(nn.MaxPool2d(2))
        channels = s.width
    linear = nn.Linear(s.width, s.task.outputs)
    return layers.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear])


def strided_cnn(s: NetworkSettings) -> nn.Sequential:
    """Strided convolutions whose channels double, then a dense layer of all pixels."""
    layers = nn.Sequential()
    channels, side = 1, 14
    for i in range(s.depth):
        width = s.width << i
        linear = nn.Conv2d(channels, width, 3, 2, padding=1)
        layers.extend([linear, CHANNEL_NORMS[s.norm](width), s.act()])
        channels, side = width, (side + 1) // 2
    hidden = nn.Linear(channels * side**2, 2 * s.width)
    output = nn.Linear(2 * s.width, s.task.outputs)
    return layers.extend([nn.Flatten(), hidden, s.act(), output])


class Attention(nn.Module):
    """Self-attention; queries, keys and values of one matrix or of three."""

    def __init__(self, s: NetworkSettings, causal: bool):
        super().__init__()
        width = s.width
        self.heads = max(width // HEAD, 1)
        while width % self.heads:
            self.heads -= 1
        self.causal = causal
        sizes = [3 * width] if s.fused else [width] * 3
        self.qkv = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = torch.cat([linear(x) for linear in self.qkv], -1)
        qkv = qkv.unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.transpose(1, 3).unbind(2)
        # `scaled_dot_product_attention` is slow under vmap on CPUs
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if self.causal:
            later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -1e4)
        y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block (Xiong et al. 2020)."""

    def __init__(self, s: NetworkSettings, causal: bool):
        super().__init__()
        self.attention = Attention(s, causal)
        self.first_norm = FEATURE_NORMS[s.norm](s.width)
        self.second_norm = FEATURE_NORMS[s.norm](s.width)
        self.up = nn.Linear(s.width, 4 * s.width)
        self.act = s.act()
        self.down = nn.Linear(4 * s.width, s.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first_norm(x))
        y = self.act(self.up(self.second_norm(x)))
        return x + self.down(y)


class Tokens(nn.Module):
    """Embeddings of words and their positions."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        length = s.task.inputs.shape[1]
        self.words = nn.Embedding(s.task.outputs, s.width)
        self.positions = nn.Parameter(PLACES * torch.randn(length, s.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.words(x) + self.positions


class WordHead(nn.Module):
    """Logits of the next word at each position, (b, words, length)."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        self.norm = FEATURE_NORMS[s.norm](s.width)
        self.linear = nn.Linear(s.width, s.task.outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x)).mT


def transformer_blocks(s: NetworkSettings, causal: bool) -> nn.Sequential:
    return nn.Sequential(*(Block(s, causal) for _ in range(s.depth)))


def gpt(s: NetworkSettings) -> nn.Sequential:
    embed, head = Tokens(s), WordHead(s)
    if s.skip:  # tied embeddings
        head.linear.weight = embed.words.weight
    return nn.Sequential(embed, transformer_blocks(s, causal=True), head)


class Patches(nn.Module):
    """Embeddings of square patches of gray images and their positions."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        self.project = nn.Conv2d(1, s.width, PATCH, PATCH)
        self.positions = nn.Parameter(PLACES * torch.randn(PATCHES, s.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).mT + self.positions


class MeanHead(nn.Module):
    """Predicts from the mean of all positions."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        self.norm = nn.LayerNorm(s.width)
        self.linear = nn.Linear(s.width, s.task.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).mean(1))


def vit(s: NetworkSettings) -> nn.Sequential:
    return nn.Sequential(Patches(s), transformer_blocks(s, causal=False), MeanHead(s))


class Factors(nn.Module):
    """Dot products of the embeddings of two items, (b,)."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        items = s.task.outputs
        self.rows = nn.Embedding(items, s.width)
        self.columns = nn.Embedding(items, s.width)
        self.row_bias = nn.Embedding(items, 1)

    def forward(self, x: Tensor) -> Tensor:
        row, column = x.unbind(1)
        product = self.rows(row) * self.columns(column)
        return product.sum(-1) + self.row_bias(row).squeeze(-1)


class Bag(nn.Module):
    """Classifies the mean embedding of words."""

    def __init__(self, s: NetworkSettings):
        super().__init__()
        last = max(s.task.inputs.max(), s.task.validation_inputs.max())
        self.words = nn.Embedding(1 + int(last), s.width)
        self.head = nn.Linear(s.width, s.task.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


class Players(nn.Module):
    """A generator of points (b, size) from noise, and a critic of points: a generative
    adversarial network (Goodfellow et al. 2014).

    Each has gradients of its own loss alone, so that one optimizer can step both.

    Inputs are noise and real points, (b, noise + size). Outputs are the critic's logits
    of real points, of generated points, and of generated points without gradients for
    the critic; squared slopes of the critic, 0 in evaluation; and generated points,
    (b, 4 + size).
    """

    def __init__(self, s: NetworkSettings):
        super().__init__()
        size = s.task.outputs
        self.noise = s.inputs - size
        self.generator = mlp_between(self.noise, size, s)
        self.critic = mlp_between(size, 1, s)

    def forward(self, x: Tensor) -> Tensor:
        noise, real = x[:, : self.noise], x[:, self.noise :]
        fake = self.generator(noise)
        weights = {name: p.detach() for name, p in self.critic.named_parameters()}
        fixed = functional_call(self.critic, weights, (fake,))
        points = fake.detach()
        squares = torch.zeros_like(fixed)
        if self.training:
            for x in (real, points):
                squares = squares + slopes(self.critic, x).square().sum(1, keepdim=True)
        logits = self.critic(real), self.critic(points), fixed
        return torch.cat((*logits, squares, fake), 1)
