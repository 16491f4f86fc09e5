"""Parameters that are initialised to zero, far from their optimum."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_train.problems.images import FASHION_14, MNIST_7, MNIST_14
from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.generated import fixed, generated
from meta_train.problems.situations.initialization import ReZeroMlp
from meta_train.problems.situations.problems import Situation, classify, regress
from meta_train.problems.supervised import Batch, Data, Objective, maker


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


def affine_targets(factor: float, offset: float, seed: int, noise: float) -> Data:
    """24 normal numbers; targets: scaled and shifted by about `factor`."""
    scale, shift = factor * fixed(2, 24, seed=seed)

    def draw(count: int) -> Batch:
        x = torch.randn(count, 24)
        return x, scale * x + shift + offset

    return generated(draw, noise)


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


# standard deviations of the noise in the targets of `GaussianMlp`
SCALES = 10 ** torch.linspace(-2, 1, 12)


def gaussian_targets() -> Data:
    """8 normal numbers; targets: the sines of 12 projections."""
    projections = fixed(8, 12, seed=23)

    def draw(count: int) -> Batch:
        x = torch.randn(count, 8)
        return x, (x @ projections / 2).sin()

    return generated(draw, SCALES)


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
    scales = SCALES.to(targets.device)
    log_ratio = log_scales - scales.log()
    errors = (targets - means).square() * (-2 * log_scales).exp()
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
        first, second = (
            F.normalize(self.layers(images + 0.5 * torch.randn_like(images)), dim=1)
            for _ in range(2)
        )
        return (first @ second.mT) * (-self.log_temperature).exp()


def view_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of classifying the other view of an image, (); ignores labels."""
    matching = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, matching)


_estimate = maker(Situation, Objective(negative_log_likelihood), Objective(divergence))
_match_views = maker(Situation, Objective(view_loss), equal_batches=True)

# in turn for development, validation and test
PROBLEMS = {
    "zeros-scales-300": regress(affine_targets(2.0, 3.0, 18, 0.1), 32, 300, Affine, 24),
    "zeros-log-scales-200": _estimate(gaussian_targets(), 64, 200, GaussianMlp, 48),
    "zeros-scales-100": regress(
        affine_targets(1.0, -1.0, 19, 0.5), 64, 100, Affine, 24
    ),
    "zeros-gates-200": classify(FASHION_14, 64, 200, ReZeroMlp, 196, 48, 10, 10),
    "zeros-temperature-300": _match_views(
        MNIST_7, 64, 300, ContrastiveViews, (49, 64, 32)
    ),
    "zeros-gates-100": classify(MNIST_14, 64, 100, ReZeroMlp, 196, 32, 20, 10),
}
