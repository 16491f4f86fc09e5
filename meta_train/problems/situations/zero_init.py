"""Parameters that are initialised to zero, far from their optimum."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_train.problems.common import FASHION_14, MNIST_7, MNIST_14
from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.generated import fixed, generated
from meta_train.problems.situations.initialization import ReZeroMlp
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import classify, regress, supervised
from meta_train.problems.supervised import Batch, Objective


class Affine(nn.Module):
    """Scales and shifts per input and a common offset, all initialised to zero."""

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
        """24 normal numbers; targets: scaled and shifted by factors of about 2."""
        x = torch.randn(count, 24)
        stretch, shift = 2 * fixed(2, 24, seed=18)
        return x, stretch * x + shift + 3

    @staticmethod
    def other_examples(count: int) -> Batch:
        """As `examples` with factors of about 1."""
        x = torch.randn(count, 24)
        stretch, shift = fixed(2, 24, seed=19)
        return x, stretch * x + shift - 1


class GaussianMlp(nn.Module):
    """Normal distributions of 12 targets, with log scales initialised to zero."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = mlp((8, width, 12))
        self.log_scales = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (b, 8); returns means and log scales, (b, 12) each"""
        means = self.layers(x)
        return means, self.log_scales.expand_as(means)

    @staticmethod
    def examples(count: int) -> Batch:
        """8 normal numbers; targets: the sines of 12 projections."""
        x = torch.randn(count, 8)
        return x, (x @ fixed(8, 12, seed=23) / 2).sin()


# standard deviations of the noise in the targets of `GaussianMlp`
SCALES = 10 ** torch.linspace(-2, 1, 12)


def negative_log_likelihood(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Of normal distributions, the mean over targets (b, 12), without constants, ()."""
    means, log_scales = outputs
    errors = (targets - means) * (-log_scales).exp()
    return (log_scales + 0.5 * errors.square()).mean()


def divergence(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Kullback-Leibler divergence from normal distributions with `SCALES`, ().

    targets: the means of these distributions, (b, 12)
    """
    means, log_scales = outputs
    log_ratio = log_scales - SCALES.to(targets.device).log()
    errors = (targets - means).square() * (-2 * log_scales).exp()
    return (log_ratio + 0.5 * ((-2 * log_ratio).exp() + errors - 1)).mean()


class ContrastiveViews(nn.Module):
    """Similarities of two noisy views, with a trained temperature as in CLIP.

    The parameter is the log temperature, initialised to zero (Radford et al. 2021).
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.layers = mlp(widths)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, ...); returns logits (b, b) of pairs of views"""
        first = self._embedded_view(images)
        second = self._embedded_view(images)
        return first @ second.mT * (-self.log_temperature).exp()

    def _embedded_view(self, images: Tensor) -> Tensor:
        view = images + 0.5 * torch.randn_like(images)
        return F.normalize(self.layers(view), dim=1)


def match_views(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of classifying the other view of an image, (); ignores labels."""
    matching = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, matching)


LIKELIHOOD = Objective(negative_log_likelihood)
MATCH_VIEWS = Objective(match_views)


AFFINE_TARGETS = partial(generated, Affine.examples, 0.1)
OTHER_AFFINE_TARGETS = partial(generated, Affine.other_examples, 0.5)
SINES = partial(generated, GaussianMlp.examples, SCALES)
AFFINE_NETWORK = partial(Affine, 24)
VIEWS = partial(ContrastiveViews, (49, 64, 32))
SHALLOW_REZERO = partial(ReZeroMlp, 196, 48, 10, 10)
DEEP_REZERO = partial(ReZeroMlp, 196, 32, 20, 10)

zeros_log_scales = supervised(
    "zeros-log-scales-200",
    SINES,
    partial(GaussianMlp, 48),
    LIKELIHOOD,
    batch_size=64,
    steps=200,
    evaluation=Objective(divergence),
)
zeros_temperature = supervised(
    "zeros-temperature-300",
    MNIST_7,
    VIEWS,
    MATCH_VIEWS,
    batch_size=64,
    steps=300,
    evaluation_batch=64,
)

KINDS = {
    "zeros at first": Kind(
        developing=[
            regress("zeros-scales-300", AFFINE_TARGETS, AFFINE_NETWORK, 32, 300),
            classify("zeros-gates-200", FASHION_14, SHALLOW_REZERO, 64, 200),
        ],
        validating=[zeros_log_scales, zeros_temperature],
        testing=[
            regress("zeros-scales-100", OTHER_AFFINE_TARGETS, AFFINE_NETWORK, 64, 100),
            classify("zeros-gates-100", MNIST_14, DEEP_REZERO, 64, 100),
        ],
    )
}
