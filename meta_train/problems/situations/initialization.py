"""Initial weights other than PyTorch's, and deep networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn

from meta_train.problems.common import CIFAR_16, FASHION_7, FASHION_14, MNIST_14, Build
from meta_train.problems.networks.convolutional import (
    ResidualBlock,
    group_norm,
    strided_cnn,
)
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import (
    Gpt,
    Mixer,
    RowRnn,
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
)
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.situations.texts import CODE, predict_characters
from meta_train.problems.text import VOCABULARY

Fill = Callable[[Tensor], object]

RELU_GAIN = nn.init.calculate_gain("relu")
TANH_GAIN = nn.init.calculate_gain("tanh")
GPT_STD = 0.02


@torch.no_grad()
def initialised(build: Build, fill: Fill) -> nn.Module:
    """The network with its weights initialised by `fill` and its biases by zeros.

    Parameters of one dimension other than biases keep their values.
    """
    model = build()
    for name, p in model.named_parameters():
        if p.dim() > 1:
            fill(p)
        elif "bias" in name:
            p.zero_()
    return model


def he_normal(weight: Tensor) -> None:
    """He et al. 2015, Eq. 10."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def xavier_uniform(weight: Tensor) -> None:
    """Glorot and Bengio 2010, Eq. 16."""
    nn.init.xavier_uniform_(weight)


def orthogonal(weight: Tensor, gain: float) -> None:
    """Saxe et al. 2014; gain: of the activation."""
    nn.init.orthogonal_(weight, gain)


def gpt_normal(weight: Tensor) -> None:
    """Radford et al. 2019: the same standard deviation for all widths."""
    nn.init.normal_(weight, std=GPT_STD)


def lecun_normal(weight: Tensor) -> None:
    """Variance 1 / fan_in, as muP's hidden weights (Yang et al. 2022)."""
    nn.init.normal_(weight, std=weight[0].numel() ** -0.5)


@torch.no_grad()
def gpt_with_scaled_residuals(build: Callable[[], Gpt]) -> nn.Module:
    """GPT-2's initialisation, with output layers of blocks scaled by the depth."""
    model = initialised(build, gpt_normal)
    assert isinstance(model, Gpt)
    for block in model.blocks:
        for name, p in block.named_parameters():
            if name in ("attention.out.weight", "mlp.2.weight"):
                p /= sqrt(2 * len(model.blocks))
    return model


@torch.no_grad()
def with_zero_head(build: Callable[[], VisionTransformer | Mixer]) -> nn.Module:
    """The last layer is zero, so other layers have no gradient in the first step."""
    model = build()
    for p in model.head.parameters():
        p.zero_()
    return model


@torch.no_grad()
def with_zero_branches(build: Build) -> nn.Module:
    """The scale of each branch's last norm is zero (Goyal et al. 2017)."""
    model = build()
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.second_norm.get_parameter("weight").zero_()
    return model


@torch.no_grad()
def mup_mlp(widths: tuple[int, ...]) -> nn.Module:
    """An MLP with muP's initialisation: the last layer's scale is 1 / fan_in."""
    model = initialised(partial(mlp, widths), lecun_normal)
    assert isinstance(model, nn.Sequential)
    last = model[-1]
    assert isinstance(last, nn.Linear)
    last.weight /= sqrt(last.in_features)
    return model


class ResidualMlp(nn.Module):
    """An MLP with residual hidden layers, x + f(x)."""

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


class ReZeroMlp(nn.Module):
    """Residual layers with gates initialised to zero (Bachlechner et al. 2021)."""

    def __init__(self, fan_in: int, width: int, depth: int, fan_out: int):
        super().__init__()
        self.skips = ResidualMlp(fan_in, width, depth, fan_out)
        self.gates = nn.Parameter(torch.zeros(depth))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, ...); returns (b, fan_out)"""
        x = self.skips.first(x.flatten(1))
        for gate, layer in zip(self.gates, self.skips.layers, strict=True):
            x = x + gate * layer(x).relu()
        return self.skips.last(x)


GPT_SMALL = partial(initialised, GPT, gpt_normal)
GPT_RESIDUAL = partial(gpt_with_scaled_residuals, GPT)
MLP_HE = partial(initialised, partial(mlp, (196, 96, 96, 10)), he_normal)
CNN_ORTHOGONAL = partial(
    initialised,
    partial(strided_cnn, (3, 12, 24, 48), group_norm, nn.ReLU),
    partial(orthogonal, gain=RELU_GAIN),
)

VIT_SMALL = partial(initialised, VIT, gpt_normal)
MLP_XAVIER = partial(
    initialised, partial(mlp, (49, 96, 96, 10), nn.Tanh), xavier_uniform
)
RESNET_BRANCHES = partial(with_zero_branches, RESNET)
MIXER_HEAD = partial(with_zero_head, MIXER)

DEEP_GPT_SMALL = partial(
    initialised, partial(Gpt, VOCABULARY, 32, 48, 2, 3), gpt_normal
)
MLP_MUP = partial(mup_mlp, (196, 256, 256, 10))
CNN_HE = partial(initialised, SHALLOW_CNN, he_normal)
GRU_ORTHOGONAL = partial(
    initialised, partial(RowRnn, nn.GRU, 14, 48), partial(orthogonal, gain=1.0)
)

INITIAL_WEIGHTS = Kind(
    developing=[
        predict_characters("start-gpt-small-40", CODE[0], GPT_SMALL, 16, 40),
        predict_characters("start-gpt-residual-300", CODE[0], GPT_RESIDUAL, 16, 300),
        classify("start-mlp-he-100", FASHION_14, MLP_HE, 64, 100),
        classify("start-cnn-orthogonal-200", CIFAR_16, CNN_ORTHOGONAL, 64, 200),
    ],
    validating=[
        classify("start-vit-small-100", FASHION_14, VIT_SMALL, 64, 100),
        classify("start-mlp-xavier-300", FASHION_7, MLP_XAVIER, 64, 300),
        classify("start-resnet-branches-200", FASHION_14, RESNET_BRANCHES, 32, 200),
        classify("start-mixer-head-100", CIFAR_16, MIXER_HEAD, 64, 100),
    ],
    testing=[
        predict_characters("start-gpt-small-100", CODE[2], DEEP_GPT_SMALL, 16, 100),
        classify("start-mlp-mup-300", FASHION_14, MLP_MUP, 64, 300),
        classify("start-cnn-he-60", MNIST_14, CNN_HE, 64, 60),
        classify("start-gru-orthogonal-200", MNIST_14, GRU_ORTHOGONAL, 64, 200),
    ],
)


def _deep(
    fan_in: int,
    depth: int,
    fan_out: int,
    activation: type = nn.ReLU,
    norm: Callable | None = None,
) -> Build:
    return partial(mlp, (fan_in, *[48] * depth, fan_out), activation, norm)


RELU_30 = partial(initialised, _deep(16, 30, 4), he_normal)
RELU_20 = partial(initialised, _deep(10, 20, 5), he_normal)
RELU_25 = partial(initialised, _deep(6, 25, 4), he_normal)
RESIDUAL_50 = partial(ResidualMlp, 10, 32, 50, 5)
NORM_10 = _deep(12, 10, 3, nn.GELU, nn.LayerNorm)
ORTHOGONAL_15 = partial(
    initialised, _deep(12, 15, 3, nn.Tanh), partial(orthogonal, gain=TANH_GAIN)
)

DEEP = Kind(
    developing=[
        regress("deep-relu-30", SINES, RELU_30, 64, 300),
        regress("deep-norm-8", SINES, _deep(16, 8, 4, norm=nn.LayerNorm), 64, 300),
        regress("deep-tanh-10", SINES, _deep(16, 10, 4, nn.Tanh), 64, 300),
    ],
    validating=[
        regress("deep-relu-20", PROJECTIONS, RELU_20, 64, 250),
        regress("deep-skips-50", PROJECTIONS, RESIDUAL_50, 64, 200),
        regress("deep-gelu-8", PROJECTIONS, _deep(10, 8, 5, nn.GELU), 64, 300),
    ],
    testing=[
        regress("deep-relu-25", DISTANCES, RELU_25, 64, 400),
        regress("deep-norm-10", DIRECTIONS, NORM_10, 64, 300),
        regress("deep-orthogonal-15", DIRECTIONS, ORTHOGONAL_15, 64, 300),
    ],
)

KINDS = {"initial weights": INITIAL_WEIGHTS, "deep chains": DEEP}
