"""Initial weights other than PyTorch's, and deep networks."""

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import TypeVar

import torch
from torch import Tensor, nn

from meta_train.problems.images import CIFAR_16, FASHION_7, FASHION_14, MNIST_14
from meta_train.problems.networks.convolutional import (
    Layer,
    Norm,
    ResidualBlock,
    plain_cnn,
    residual_cnn,
    strided_cnn,
)
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import Gpt, Mixer, RowRnn, Vit
from meta_train.problems.situations.generated import (
    directions,
    distances,
    projections,
    sines,
)
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.situations.texts import CODE_0, CODE_2, text_gpt
from meta_train.problems.supervised import Arguments

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def initialised(
    fill: Callable[[Tensor], object],
    network: Callable[Arguments, Network],
    *args: Arguments.args,
    **settings: Arguments.kwargs,
) -> Network:
    """A network with its weights initialised by `fill` and its biases by zeros.

    network: a function or class, called with the arguments after it. Parameters of one
        dimension other than biases keep their values.
    """
    model = network(*args, **settings)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            fill(p)
        elif "bias" in name:
            p.zero_()
    return model


# These make networks too: their arguments are the network and what is passed to it.
gpt_normal = partial(initialised, partial(nn.init.normal_, std=0.02))
"""Radford et al. 2019: the same standard deviation for all widths."""
he_normal = partial(initialised, partial(nn.init.kaiming_normal_, nonlinearity="relu"))
"""He et al. 2015, Eq. 10."""
xavier_uniform = partial(initialised, nn.init.xavier_uniform_)
orthogonal = partial(initialised, nn.init.orthogonal_)
orthogonal_relu = partial(initialised, partial(nn.init.orthogonal_, gain=sqrt(2)))
orthogonal_tanh = partial(initialised, partial(nn.init.orthogonal_, gain=5 / 3))
lecun_normal = partial(
    initialised, partial(nn.init.kaiming_normal_, nonlinearity="linear")
)
"""Variance 1 / fan_in, as muP's hidden weights (Yang et al. 2022)."""


@torch.no_grad()
def gpt_with_scaled_residuals(width: int, heads: int, depth: int) -> Gpt:
    """GPT-2's initialisation, with output layers of blocks scaled by the depth."""
    model = gpt_normal(text_gpt, width, heads, depth)
    for block in model.blocks:
        for name, p in block.named_parameters():
            if name in ("attention.out.weight", "mlp.2.weight"):
                p /= sqrt(2 * depth)
    return model


@torch.no_grad()
def with_zero_head(model: Mixer) -> Mixer:
    """The last layer is zero, so other layers have no gradient in the first step."""
    for p in model.head.parameters():
        p.zero_()
    return model


@torch.no_grad()
def with_zero_branches(model: nn.Module) -> nn.Module:
    """The scale of each branch's last norm is zero (Goyal et al. 2017)."""
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.second_norm.get_parameter("weight").zero_()
    return model


@torch.no_grad()
def mup_mlp(widths: tuple[int, ...]) -> nn.Module:
    """An MLP with muP's initialisation: the last layer's scale is 1 / fan_in."""
    model = lecun_normal(mlp, widths)
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


def deep_mlp(
    fan_in: int,
    depth: int,
    fan_out: int,
    activation: Layer = nn.ReLU,
    norm: Norm | None = None,
) -> nn.Sequential:
    """An MLP with hidden layers of 48 units."""
    return mlp((fan_in, *[48] * depth, fan_out), activation, norm)


# of each kind in turn for development, validation and test
PROBLEMS = {
    "start-gpt-small-40": classify(CODE_0, 16, 40, gpt_normal, text_gpt, 64, 4, 2),
    "start-vit-small-100": classify(
        FASHION_14, 64, 100, gpt_normal, Vit, 1, 14, 7, 32, 4, 2
    ),
    "start-gpt-small-100": classify(CODE_2, 16, 100, gpt_normal, text_gpt, 48, 2, 3),
    "start-gpt-residual-300": classify(
        CODE_0, 16, 300, gpt_with_scaled_residuals, 64, 4, 2
    ),
    "start-mlp-xavier-300": classify(
        FASHION_7, 64, 300, xavier_uniform, mlp, (49, 96, 96, 10), nn.Tanh
    ),
    "start-mlp-mup-300": classify(FASHION_14, 64, 300, mup_mlp, (196, 256, 256, 10)),
    "start-mlp-he-100": classify(
        FASHION_14, 64, 100, he_normal, mlp, (196, 96, 96, 10)
    ),
    "start-resnet-branches-200": classify(
        FASHION_14, 32, 200, lambda: with_zero_branches(residual_cnn(1, (8, 16)))
    ),
    "start-cnn-he-60": classify(
        MNIST_14, 64, 60, he_normal, plain_cnn, (1, 12, 24), (5, 3)
    ),
    "start-cnn-orthogonal-200": classify(
        CIFAR_16, 64, 200, orthogonal_relu, strided_cnn, (3, 12, 24, 48)
    ),
    "start-mixer-head-100": classify(
        CIFAR_16, 64, 100, lambda: with_zero_head(Mixer(3, 16, 4, 32, 2))
    ),
    "start-gru-orthogonal-200": classify(
        MNIST_14, 64, 200, orthogonal, RowRnn, nn.GRU, 14, 48
    ),
    "deep-relu-30": regress(sines, 64, 300, he_normal, deep_mlp, 16, 30, 4),
    "deep-relu-20": regress(projections, 64, 250, he_normal, deep_mlp, 10, 20, 5),
    "deep-relu-25": regress(distances, 64, 400, he_normal, deep_mlp, 6, 25, 4),
    "deep-norm-8": regress(sines, 64, 300, deep_mlp, 16, 8, 4, norm=nn.LayerNorm),
    "deep-skips-50": regress(projections, 64, 200, ResidualMlp, 10, 32, 50, 5),
    "deep-norm-10": regress(
        directions, 64, 300, deep_mlp, 12, 10, 3, nn.GELU, nn.LayerNorm
    ),
    "deep-tanh-10": regress(sines, 64, 300, deep_mlp, 16, 10, 4, nn.Tanh),
    "deep-gelu-8": regress(projections, 64, 300, deep_mlp, 10, 8, 5, nn.GELU),
    "deep-orthogonal-15": regress(
        directions, 64, 300, orthogonal_tanh, deep_mlp, 12, 15, 3, nn.Tanh
    ),
}
