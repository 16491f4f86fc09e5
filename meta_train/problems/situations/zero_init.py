"""Parameters that are initialised to zero, far from their optimum."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.generated import fixed
from meta_train.problems.situations.problems import supervised, supervised_by_batch
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
    def examples(count: int, factor: float, offset: float, seed: int) -> Batch:
        """24 normal numbers; targets: scaled and shifted by about `factor`."""
        x = torch.randn(count, 24)
        stretch, shift = factor * fixed(2, 24, seed=seed)
        return x, stretch * x + shift + offset


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
        angles = x @ fixed(8, 12, seed=23) / 2
        return x, angles.sin()


# standard deviations of the noise in the targets of `GaussianMlp`
SCALES = 10 ** torch.linspace(-2, 1, 12)


def negative_log_likelihood(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Of normal distributions, the mean over targets (b, 12), without constants, ()."""
    means, log_scales = outputs
    precision = (-log_scales).exp()
    errors = (targets - means) * precision
    losses = log_scales + 0.5 * errors.square()
    return losses.mean()


def divergence(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Kullback-Leibler divergence from normal distributions with `SCALES`, ().

    targets: the means of these distributions, (b, 12)
    """
    means, log_scales = outputs
    scales = SCALES.to(targets.device)
    log_ratio = log_scales - scales.log()
    precision = (-2 * log_scales).exp()
    errors = (targets - means).square() * precision
    excess = (-2 * log_ratio).exp() + errors - 1
    return (log_ratio + 0.5 * excess).mean()


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
        similarities = first @ second.mT
        return similarities * (-self.log_temperature).exp()

    def _embedded_view(self, images: Tensor) -> Tensor:
        view = images + 0.5 * torch.randn_like(images)
        embedded = self.layers(view)
        return F.normalize(embedded, dim=1)


def view_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of classifying the other view of an image, (); ignores labels."""
    matching = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, matching)


fit_gaussian = partial(
    supervised,
    objective=Objective(negative_log_likelihood),
    evaluation=Objective(divergence),
)
match_views = partial(supervised_by_batch, objective=Objective(view_loss))
