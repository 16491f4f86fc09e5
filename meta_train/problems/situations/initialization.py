"""Initial weights other than PyTorch's, and deep networks."""

from collections.abc import Callable
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn

from meta_train.problems.networks.convolutional import ResidualBlock
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import Gpt, Mixer, VisionTransformer
from meta_train.problems.supervised import Build

Fill = Callable[[Tensor], object]

RELU_GAIN = nn.init.calculate_gain("relu")
TANH_GAIN = nn.init.calculate_gain("tanh")


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


gpt_normal = partial(nn.init.normal_, std=0.02)
"""Radford et al. 2019: the same standard deviation for all widths."""
he_normal = partial(nn.init.kaiming_normal_, nonlinearity="relu")
"""He et al. 2015, Eq. 10."""


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


def deep_mlp(
    fan_in: int,
    depth: int,
    fan_out: int,
    activation: type = nn.ReLU,
    norm: Callable | None = None,
) -> nn.Module:
    return mlp((fan_in, *[48] * depth, fan_out), activation, norm)
