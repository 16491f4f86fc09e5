"""Random tasks: data of classification, regression, reconstruction, text and others.

Data depend on a task's seed alone. Images are those of FashionMNIST and MNIST.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache, partial
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_train.problems.images import images as image_splits
from meta_train.problems.situations.games import energy_distance
from meta_train.problems.text import VOCABULARY, next_characters

VALIDATION = 512  # examples
TEXTS = 96  # windows of text for validation, each with many words to predict
IMAGES = 10_000  # of a data set that are used
CLASSES = 10
# tasks whose training data are all there is
EXACT = "picture", "featured picture", "sound", "distances", "poisson", "few numbers"

Loss = Callable[[Tensor, Tensor], Tensor]


class Examples(NamedTuple):
    """Inputs and targets.

    outputs: number of a network's outputs, or of words. score: is measured for
    validation; None: the loss.
    """

    inputs: Tensor
    targets: Tensor
    loss: Loss
    outputs: int
    score: Loss | None = None


class Source:
    """The random numbers of a task, and the number and noise of its examples.

    noise: share of random labels, or standard deviation of noise in targets.
    """

    def __init__(self, seed: int, examples: int, noise: float):
        self.generator = torch.Generator().manual_seed(seed)
        self.choice = Random(seed).choice
        self.examples = examples
        self.noise = noise

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def integers(self, count: int, *shape: int) -> Tensor:
        return torch.randint(count, shape, generator=self.generator)

    def words(self, shares: Tensor, count: int) -> Tensor:
        return torch.multinomial(shares, count, True, generator=self.generator)

    def chosen(self, count: int) -> Tensor:
        """Numbers of as many examples as are wanted."""
        order = torch.randperm(count, generator=self.generator)
        return order[: self.examples]

    def relabelled(self, labels: Tensor, classes: int) -> Tensor:
        is_wrong = self.uniform(len(labels)) < self.noise
        other = self.integers(classes, len(labels))
        return torch.where(is_wrong, other, labels)

    def with_noise(self, targets: Tensor) -> Tensor:
        return targets + self.noise * self.normal(*targets.shape)


class Task(NamedTuple):
    """Examples for training and validation, and a score of these; see `Examples`."""

    inputs: Tensor
    targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    loss: Loss
    outputs: int
    score: Loss


@lru_cache(2)
def make_task(name: str, seed: int, examples: int, noise: float) -> Task:
    """The task of the function with this name.

    examples: for training and validation. noise: see `Source`.
    """
    source = Source(seed, examples, noise)
    make = globals()[name.replace(" ", "_")]
    inputs, targets, loss, outputs, score = make(source)
    same = loss, outputs, score or loss
    count = VALIDATION
    if name in ("characters", "markov"):
        count = TEXTS
    elif name in EXACT:
        return Task(inputs, targets, inputs, targets, *same)
    cut = len(inputs) - min(count, len(inputs) // 4)
    return Task(inputs[:cut], targets[:cut], inputs[cut:], targets[cut:], *same)


@cache
def _all_images(name: str, side: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, side, side) and labels."""
    train = image_splits(name, 28 // side).train
    return train.batch(torch.arange(IMAGES))


def _images(source: Source, side: int) -> tuple[Tensor, Tensor]:
    name = source.choice(["fashion-mnist", "mnist"])
    x, y = _all_images(name, side)
    chosen = source.chosen(len(x))
    return x[chosen], y[chosen]


def images(source: Source) -> Examples:
    x, y = _images(source, 14)
    y = source.relabelled(y, CLASSES)
    return Examples(x, y, F.cross_entropy, CLASSES)


def image_labels(source: Source) -> Examples:
    """For each class, yes or no."""
    x, y = _images(source, 14)
    y = source.relabelled(y, CLASSES)
    targets = F.one_hot(y, CLASSES).float()
    return Examples(x, targets, F.binary_cross_entropy_with_logits, CLASSES)


def small_images(source: Source) -> Examples:
    x, y = _images(source, 7)
    y = source.relabelled(y, CLASSES)
    return Examples(x.flatten(1), y, F.cross_entropy, CLASSES)


def pixels(source: Source) -> Examples:
    """Reconstruction of pixels with squared errors or cross entropy."""
    x, _ = _images(source, 7)
    x = x.flatten(1)
    loss = source.choice([F.mse_loss, F.binary_cross_entropy_with_logits])
    if loss is F.binary_cross_entropy_with_logits:
        x = x - x.min()
        x = x / x.max()
    return Examples(x, x, loss, x.shape[1])


def picture(source: Source) -> Examples:
    """The pixels of one image as a function of their positions."""
    side = source.choice([14, 28])
    x, _ = _images(source, side)
    axis = torch.linspace(-1, 1, side)
    points = torch.cartesian_prod(axis, axis)
    return Examples(points, x[0].reshape(-1, 1), F.mse_loss, 1)


def featured_picture(source: Source) -> Examples:
    """The same, with random Fourier features (Tancik et al. 2020)."""
    plain = picture(source)
    angles = source.choice([5.0, 15.0]) * plain.inputs @ source.normal(2, 32)
    return plain._replace(inputs=torch.cat((angles.sin(), angles.cos()), 1))


def characters(source: Source) -> Examples:
    """Windows of Python source, each character predicting the next."""
    length = source.choice([16, 32])
    windows = next_characters(length).train
    x, y = windows.batch(source.chosen(len(windows)))
    return Examples(x, y, F.cross_entropy, VOCABULARY)


def _frequencies(words: int, power: float) -> Tensor:
    """Zipf's law."""
    return torch.arange(1, words + 1) ** -power


def markov(source: Source) -> Examples:
    """A Markov chain of words, of which most are rare."""
    words = source.choice([64, 64, 256, 1024])
    length = source.choice([12, 24])
    shares = _frequencies(words, source.choice([0.7, 1.1]))
    following = source.words(shares.expand(words, -1), 4)
    codes = [source.words(shares, source.examples)]
    for _ in range(length):
        branch = source.integers(4, source.examples)
        usual = following[codes[-1], branch]
        other = source.words(shares, source.examples)
        is_random = source.uniform(source.examples) < 0.1 + source.noise
        codes.append(torch.where(is_random, other, usual))
    text = torch.stack(codes, 1)
    return Examples(text[:, :-1], text[:, 1:], F.cross_entropy, words)


def bags(source: Source) -> Examples:
    """Bags of words, whose class is their topic."""
    words = source.choice([200, 1000])
    classes = source.choice([2, 8])
    topics = torch.exp(1.5 * source.normal(classes, words))
    shares = topics * _frequencies(words, 1.0)
    y = source.integers(classes, source.examples)
    x = source.words(shares[y], 12)
    y = source.relabelled(y, classes)
    return Examples(x, y, F.cross_entropy, classes)


def ratings(source: Source) -> Examples:
    """Entries of a matrix of low rank; rows and columns are given by number."""
    size = source.choice([40, 120])
    rank = source.choice([2, 6])
    left = source.normal(size, rank)
    right = source.normal(size, rank)
    x = source.integers(size, source.examples, 2)
    row, column = x.unbind(1)
    y = (left[row] * right[column]).sum(-1)
    y = source.with_noise(y / rank**0.5)
    return Examples(x, y, F.mse_loss, size)


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


def modes(source: Source) -> Examples:
    """Points in narrow clusters, which a generator should fill."""
    size = source.choice([2, 2, 4])
    count = source.choice([4, 8, 16])
    noise = source.choice([2, 4, 8])
    penalty = source.choice([0.3, 3.0])
    centers = 1.5 * source.normal(count, size)
    chosen = source.integers(count, source.examples)
    points = centers[chosen] + 0.12 * source.normal(source.examples, size)
    inputs = torch.cat((source.normal(source.examples, noise), points), 1)
    return Examples(inputs, points, partial(game, penalty=penalty), size, distance)


def game(outputs: Tensor, points: Tensor, penalty: float) -> Tensor:
    """Both players' non-saturating losses, and the critic's mean squared slopes.

    These are R1 and R2 of Mescheder et al. 2018, times half of `penalty`.
    """
    real, fake, fixed, squares = outputs[:, :4].unbind(1)
    critic = F.softplus(-real) + F.softplus(fake) + 0.5 * penalty * squares
    return (critic + F.softplus(-fixed)).mean()


def distance(outputs: Tensor, points: Tensor) -> Tensor:
    """Energy distance of generated and real points."""
    return energy_distance(outputs[:, 4:], points)
