"""Tasks whose inputs are vectors."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_train.step_size.sources import Examples, Source


def clusters(source: Source) -> Examples:
    """Classes that are mixtures of Gaussians."""
    size = source.choice([4, 16, 48])
    classes = source.choice([2, 5, 12])
    count = classes * source.choice([1, 3])
    spread = source.choice([0.3, 0.6, 1.0])
    centers = source.normal(count, size)
    chosen = source.integers(count, source.examples)
    x = centers[chosen] + spread * source.normal(source.examples, size)
    y = source.relabelled(chosen % classes, classes)
    return Examples(x, y, F.cross_entropy, classes)


def _taught(source: Source, x: Tensor, outputs: int) -> Tensor:
    """Outputs of a random network, of mean 0 and standard deviation 1."""
    hidden = x
    for size in (32, 32):
        fan = hidden.shape[1]
        weight = source.normal(fan, size) * 1.5 / fan**0.5
        hidden = torch.tanh(hidden @ weight)
    y = hidden @ source.normal(32, outputs)
    y = y - y.mean(0)
    return y / y.std(0)


def teacher(source: Source) -> Examples:
    """Outputs of a random network, at some scale."""
    size = source.choice([4, 12, 40])
    outputs = source.choice([1, 4])
    scale = source.choice([0.1, 1.0, 1.0, 10.0])
    loss = source.choice([F.mse_loss, F.smooth_l1_loss, F.l1_loss])
    x = source.normal(source.examples, size)
    y = _taught(source, x, outputs)
    y = scale * source.with_noise(y)
    return Examples(x, y, loss, outputs)


def table(source: Source) -> Examples:
    """Heavy-tailed columns of unequal scales, and a class or a number."""
    size = source.choice([6, 14])
    is_class = source.choice([False, True])
    base = source.normal(source.examples, size)
    y = _taught(source, base, 1)
    scales = torch.exp(0.8 * source.normal(size))
    x = scales * torch.sinh(0.5 * base)
    x = x + 0.3 * source.normal(size)
    if not is_class:
        return Examples(x, source.with_noise(y), F.mse_loss, 1)
    labels = (y[:, 0] > 0.3).long()
    labels = source.relabelled(labels, 2)
    return Examples(x, labels, F.cross_entropy, 2)


def curve(source: Source) -> Examples:
    """A sum of sines of one or two numbers."""
    size = source.choice([1, 2])
    x = 2 * source.uniform(source.examples, size) - 1
    waves = 6.0 * source.normal(size, 4)
    phases = 6.0 * source.uniform(4)
    angles = x @ waves + phases
    y = angles.sin().sum(1, keepdim=True) / 2
    return Examples(x, source.with_noise(y), F.mse_loss, 1)


def sound(source: Source) -> Examples:
    """A sum of decaying tones as a function of time (n, 1)."""
    time = torch.linspace(-1, 1, source.choice([256, 512]))[:, None]
    tones = source.choice([3, 6])
    frequencies = torch.exp(4 * source.uniform(tones))  # half cycles
    phases = 6.0 * source.uniform(tones)
    decays = 2 * source.uniform(tones)
    waves = (3 * frequencies * time + phases).sin() * (-decays * time).exp()
    y = waves.mean(1, keepdim=True)
    stretch = source.choice([1.0, 10.0])
    return Examples(stretch * time, y / y.std(), F.mse_loss, 1)


def distances(source: Source) -> Examples:
    """Signed distances of points (n, 2) or (n, 3) to balls."""
    size = source.choice([2, 3])
    points = 2 * source.uniform(512, size) - 1
    centers = 1.2 * source.uniform(4, size) - 0.6
    radii = 0.1 + 0.3 * source.uniform(4)
    y = (torch.cdist(points, centers) - radii).amin(1, keepdim=True)
    return Examples(points, y, F.mse_loss, 1)


def poisson(source: Source) -> Examples:
    """Points of a unit cube; targets are a Laplacian and its function, (n, 2)."""
    size = source.choice([1, 2])
    points = source.uniform(source.choice([64, 256]), size)
    waves = 1 + source.integers(4, 3, size)  # half waves along each axis
    amplitudes = source.normal(3)
    sines = (math.pi * points[:, None] * waves).sin().prod(2) * amplitudes
    laplacian = -(math.pi**2) * (sines @ waves.square().sum(1).float())
    targets = torch.stack((laplacian, sines.sum(1)), 1)
    loss, score = (partial(relative_loss, column=column) for column in (0, 1))
    return Examples(points, targets, loss, 1, score)


def relative_loss(outputs: Tensor, targets: Tensor, column: int) -> Tensor:
    y = targets[:, column]
    return F.mse_loss(outputs[:, 0], y) / y.square().mean()


def few_numbers(source: Source) -> Examples:
    """A few outputs of a random network, to be learned by heart."""
    count = source.choice([32, 128])
    x = source.normal(count, source.choice([4, 12]))
    y = _taught(source, x, source.choice([1, 4]))
    return Examples(x, source.with_noise(y), F.mse_loss, y.shape[1])
