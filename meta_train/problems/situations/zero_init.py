"""Parameters that begin at zero and have far to go."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_train.problems.common import (
    FASHION_14,
    MNIST_7,
    MNIST_14,
)
from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations import initialization
from meta_train.problems.situations.generated import fixed, generated
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import classify, fit, supervised
from meta_train.problems.supervised import Batch, Objective


class Scaled(nn.Module):
    """A scale and a shift of each input and one of all, all of which begin at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, width); returns the same"""
        return self.scale * x + self.shift + self.offset

    @staticmethod
    def examples(count: int) -> Batch:
        """24 normal numbers, stretched and shifted by about twice their size."""
        x = torch.randn(count, 24)
        stretch, shift = 2 * fixed(2, 24, seed=18)
        return x, stretch * x + shift + 3

    @staticmethod
    def other_examples(count: int) -> Batch:
        """The same with less stretch."""
        x = torch.randn(count, 24)
        stretch, shift = fixed(2, 24, seed=19)
        return x, stretch * x + shift - 1


class LogScales(nn.Module):
    """Normal distributions of 12 targets; logarithms of their scales begin at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = mlp((8, width, 12))
        self.log_scales = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (b, 8); returns means and logarithms of scales, (b, 12)"""
        means = self.layers(x)
        return means, self.log_scales.expand_as(means)

    @staticmethod
    def examples(count: int) -> Batch:
        """8 normal numbers, and 12 sines of them."""
        x = torch.randn(count, 8)
        return x, (x @ fixed(8, 12, seed=23) / 2).sin()


SCALES = 10 ** torch.linspace(-2, 1, 12)  # of the noise in the targets of `LogScales`


def negative_log_likelihood(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Of normal distributions, mean over the targets (b, 12), ()."""
    means, log_scales = outputs
    errors = (targets - means) * (-log_scales).exp()
    return (log_scales + 0.5 * errors.square()).mean()


def divergence(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the distributions with `SCALES`, ().

    targets: their means, (b, 12)
    """
    log_ratio = outputs[1] - SCALES.to(targets.device).log()
    errors = (targets - outputs[0]).square() * (-2 * outputs[1]).exp()
    return (log_ratio + 0.5 * ((-2 * log_ratio).exp() + errors - 1)).mean()


class Tempered(nn.Module):
    """Embeddings of two noisy views of a batch, and a temperature that begins at 1.

    The logarithm of the temperature is a parameter (CLIP, Radford et al. 2021).
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.layers = mlp(widths)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, ...); returns logits (b, b): which view belongs to which"""
        views = [
            F.normalize(self.layers(images + 0.5 * torch.randn_like(images)), dim=1)
            for _ in range(2)
        ]
        return views[0] @ views[1].mT * (-self.log_temperature).exp()


def match_views(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of finding the other view of an image, (); labels: not read."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


LIKELIHOOD = Objective(negative_log_likelihood)
MATCH_VIEWS = Objective(match_views)


_ZEROS: Kind = (
    [
        fit(
            "zeros-scales-300",
            partial(generated, Scaled.examples, 0.1),
            partial(Scaled, 24),
            32,
            300,
        ),
        classify(
            "zeros-gates-200",
            FASHION_14,
            partial(initialization.Gates, 196, 48, 10, 10),
            64,
            200,
        ),
    ],
    [
        supervised(
            "zeros-log-scales-200",
            partial(generated, LogScales.examples, SCALES),
            partial(LogScales, 48),
            LIKELIHOOD,
            64,
            200,
            evaluation=Objective(divergence),
        ),
        supervised(
            "zeros-temperature-300",
            MNIST_7,
            partial(Tempered, (49, 64, 32)),
            MATCH_VIEWS,
            64,
            300,
            evaluation_batch=64,
        ),
    ],
    [
        fit(
            "zeros-scales-100",
            partial(generated, Scaled.other_examples, 0.5),
            partial(Scaled, 24),
            64,
            100,
        ),
        classify(
            "zeros-gates-100",
            MNIST_14,
            partial(initialization.Gates, 196, 32, 20, 10),
            64,
            100,
        ),
    ],
)


KINDS: dict[str, Kind] = {
    "zeros at first": _ZEROS,
}
