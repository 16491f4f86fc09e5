"""Initial weights other than PyTorch's, and deep chains of layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn

from meta_train.problems.common import (
    CIFAR_16,
    FASHION_7,
    FASHION_14,
    MNIST_14,
    Build,
)
from meta_train.problems.networks.convolutional import (
    ResidualBlock,
    group_norm,
    strided_cnn,
)
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import (
    Gpt,
    Mixer,
    RowReader,
    VisionTransformer,
)
from meta_train.problems.situations.kinds import (
    DIRECTIONS,
    DISTANCES,
    GPT,
    MIXER,
    PROJECTIONS,
    RESNET,
    SHALLOW_CNN,
    SINES,
    VIT,
    Kind,
    read,
)
from meta_train.problems.situations.problems import classify, fit
from meta_train.problems.text import VOCABULARY

Fill = Callable[[Tensor], object]

RELU_GAIN = nn.init.calculate_gain("relu")
TANH_GAIN = nn.init.calculate_gain("tanh")
GPT_STD = 0.02  # Radford et al. 2019


@torch.no_grad()
def started(build: Build, fill: Fill) -> nn.Module:
    """The network with its weights filled anew and biases at zero.

    Weights have two dimensions or more; scales of norms keep their ones.
    """
    model = build()
    for name, p in model.named_parameters():
        if p.dim() > 1:
            fill(p)
        elif "bias" in name:
            p.zero_()
    return model


def he(weight: Tensor) -> None:
    """He et al. 2015, Eq. 10."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def xavier(weight: Tensor) -> None:
    """Glorot and Bengio 2010, Eq. 16."""
    nn.init.xavier_uniform_(weight)


def orthogonal(weight: Tensor, gain: float) -> None:
    """Saxe et al. 2014; gain: of the activation."""
    nn.init.orthogonal_(weight, gain)


def small(weight: Tensor) -> None:
    """GPT-2's normal numbers, whatever the width."""
    nn.init.normal_(weight, std=GPT_STD)


def by_fan(weight: Tensor) -> None:
    """Normal numbers of variance 1 / fan, muP's hidden weights (Yang et al. 2022)."""
    nn.init.normal_(weight, std=weight[0].numel() ** -0.5)


@torch.no_grad()
def gpt_with_scaled_residuals(build: Callable[[], Gpt]) -> nn.Module:
    """GPT-2's start: output layers of blocks are scaled down by the depth."""
    model = started(build, small)
    assert isinstance(model, Gpt)
    for block in model.blocks:
        for name, p in block.named_parameters():
            if name in ("attention.out.weight", "mlp.2.weight"):
                p /= sqrt(2 * len(model.blocks))
    return model


@torch.no_grad()
def with_zero_head(build: Callable[[], VisionTransformer | Mixer]) -> nn.Module:
    """The last layer begins at zero, so that the others get no gradient at first."""
    model = build()
    for p in model.head.parameters():
        p.zero_()
    return model


@torch.no_grad()
def with_zero_branches(build: Build) -> nn.Module:
    """The scale of the last norm of each branch begins at zero (Goyal et al. 2017)."""
    model = build()
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.second_norm.get_parameter("weight").zero_()
    return model


@torch.no_grad()
def mup_mlp(widths: tuple[int, ...]) -> nn.Module:
    """An MLP with muP's start: a readout whose weights go with 1 / fan."""
    model = started(partial(mlp, widths), by_fan)
    assert isinstance(model, nn.Sequential)
    last = model[-1]
    assert isinstance(last, nn.Linear)
    last.weight /= sqrt(last.in_features)
    return model


class Skips(nn.Module):
    """Layers with a path around each: x + f(x), the start and the end without."""

    def __init__(self, fan_in: int, width: int, depth: int, fan_out: int):
        super().__init__()
        self.first = nn.Linear(fan_in, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, ...); returns (b, fan_out)"""
        x = self.first(x.flatten(1))
        for layer in self.layers:
            x = x + layer(x.relu())
        return self.last(x.relu())


class Gates(nn.Module):
    """Residual layers with gates that begin at zero (Bachlechner et al. 2021)."""

    def __init__(self, fan_in: int, width: int, depth: int, fan_out: int):
        super().__init__()
        self.skips = Skips(fan_in, width, depth, fan_out)
        self.gates = nn.Parameter(torch.zeros(depth))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, ...); returns (b, fan_out)"""
        x = self.skips.first(x.flatten(1))
        for gate, layer in zip(self.gates, self.skips.layers, strict=True):
            x = x + gate * layer(x).relu()
        return self.skips.last(x)


_START: Kind = (
    [
        read("start-gpt-small-40", 0, partial(started, GPT, small), 16, 40),
        read(
            "start-gpt-residual-300",
            0,
            partial(gpt_with_scaled_residuals, GPT),
            16,
            300,
        ),
        classify(
            "start-mlp-he-100",
            FASHION_14,
            partial(started, partial(mlp, (196, 96, 96, 10)), he),
            64,
            100,
        ),
        classify(
            "start-cnn-orthogonal-200",
            CIFAR_16,
            partial(
                started,
                partial(strided_cnn, (3, 12, 24, 48), group_norm, nn.ReLU),
                partial(orthogonal, gain=RELU_GAIN),
            ),
            64,
            200,
        ),
    ],
    [
        classify(
            "start-vit-small-100",
            FASHION_14,
            partial(started, VIT, small),
            64,
            100,
        ),
        classify(
            "start-mlp-xavier-300",
            FASHION_7,
            partial(started, partial(mlp, (49, 96, 96, 10), nn.Tanh), xavier),
            64,
            300,
        ),
        classify(
            "start-resnet-branches-200",
            FASHION_14,
            partial(with_zero_branches, RESNET),
            32,
            200,
        ),
        classify(
            "start-mixer-head-100",
            CIFAR_16,
            partial(with_zero_head, MIXER),
            64,
            100,
        ),
    ],
    [
        read(
            "start-gpt-small-100",
            2,
            partial(started, partial(Gpt, VOCABULARY, 32, 48, 2, 3), small),
            16,
            100,
        ),
        classify(
            "start-mlp-mup-300",
            FASHION_14,
            partial(mup_mlp, (196, 256, 256, 10)),
            64,
            300,
        ),
        classify(
            "start-cnn-he-60", MNIST_14, partial(started, SHALLOW_CNN, he), 64, 60
        ),
        classify(
            "start-gru-orthogonal-200",
            MNIST_14,
            partial(
                started,
                partial(RowReader, nn.GRU, 14, 48),
                partial(orthogonal, gain=1.0),
            ),
            64,
            200,
        ),
    ],
)


def _deep(
    fan_in: int,
    depth: int,
    fan_out: int,
    norm: Callable | None = None,
    activation: type = nn.ReLU,
) -> Build:
    return partial(mlp, (fan_in, *[48] * depth, fan_out), activation, norm)


_DEEP: Kind = (
    [
        fit("deep-relu-30", SINES, partial(started, _deep(16, 30, 4), he), 64, 300),
        fit("deep-norm-8", SINES, _deep(16, 8, 4, nn.LayerNorm), 64, 300),
        fit("deep-tanh-10", SINES, _deep(16, 10, 4, activation=nn.Tanh), 64, 300),
    ],
    [
        fit(
            "deep-relu-20", PROJECTIONS, partial(started, _deep(10, 20, 5), he), 64, 250
        ),
        fit("deep-skips-50", PROJECTIONS, partial(Skips, 10, 32, 50, 5), 64, 200),
        fit("deep-gelu-8", PROJECTIONS, _deep(10, 8, 5, activation=nn.GELU), 64, 300),
    ],
    [
        fit("deep-relu-25", DISTANCES, partial(started, _deep(6, 25, 4), he), 64, 400),
        fit(
            "deep-norm-10",
            DIRECTIONS,
            _deep(12, 10, 3, nn.LayerNorm, nn.GELU),
            64,
            300,
        ),
        fit(
            "deep-orthogonal-15",
            DIRECTIONS,
            partial(
                started,
                _deep(12, 15, 3, activation=nn.Tanh),
                partial(orthogonal, gain=TANH_GAIN),
            ),
            64,
            300,
        ),
    ],
)


KINDS: dict[str, Kind] = {
    "initial weights": _START,
    "deep chains": _DEEP,
}
