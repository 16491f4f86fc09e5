"""Random tasks: data of classification, regression, reconstruction and text.

Data depend on a task's seed alone. Images are those of FashionMNIST and MNIST.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_train.problems.images import images
from meta_train.problems.text import VOCABULARY, next_characters

VALIDATION = 512  # examples
TEXTS = 96  # windows of text for validation, each with many words to predict
PAIRS = 256  # examples for validation of a contrastive loss, all with all
IMAGES = 10_000  # of a data set that are used
CLASSES = 10
TEMPERATURE = 0.1  # of the contrastive loss, as in Khosla et al. 2020
NEVER = -1e4  # a logit

Loss = Callable[[Tensor, Tensor], Tensor]


class Examples(NamedTuple):
    """Inputs and targets. outputs: number of a network's outputs, or of words."""

    inputs: Tensor
    targets: Tensor
    loss: Loss
    outputs: int


class Task(NamedTuple):
    """Examples for training and validation; see `Examples`."""

    inputs: Tensor
    targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    loss: Loss
    outputs: int


class Source:
    """The random numbers of a task, and the number and noise of its examples.

    noise: share of random labels, or standard deviation of noise in targets.
    """

    def __init__(self, seed: int, examples: int, noise: float):
        self.generator = torch.Generator().manual_seed(seed)
        self.choice = Random(seed).choice
        self.examples, self.noise = examples, noise

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


@lru_cache(2)
def make_task(name: str, seed: int, examples: int, noise: float) -> Task:
    """examples: for training and validation. noise: see `Source`."""
    source = Source(seed, examples, noise)
    inputs, targets, loss, outputs = TASKS[name](source)
    count = VALIDATION
    if name in ("characters", "markov"):
        count = TEXTS
    elif name == "contrast":
        count = PAIRS
    elif name == "picture":  # all pixels are known
        return Task(inputs, targets, inputs, targets, loss, outputs)
    cut = len(inputs) - min(count, len(inputs) // 4)
    return Task(inputs[:cut], targets[:cut], inputs[cut:], targets[cut:], loss, outputs)


@cache
def _all_images(name: str, side: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, side, side) and labels."""
    train = images(name, 28 // side).train
    return train.batch(torch.arange(IMAGES))


def _images(source: Source, side: int) -> tuple[Tensor, Tensor]:
    name = source.choice(["fashion-mnist", "mnist"])
    x, y = _all_images(name, side)
    chosen = source.chosen(len(x))
    return x[chosen], y[chosen]


def image_classes(source: Source) -> Examples:
    x, y = _images(source, 14)
    y = source.relabelled(y, CLASSES)
    return Examples(x, y, F.cross_entropy, CLASSES)


def small_image_classes(source: Source) -> Examples:
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


def noisy_images(source: Source) -> Examples:
    """Images with noise; the targets are without."""
    x, _ = _images(source, 14)
    level = source.choice([0.3, 0.6, 1.0])
    noisy = x + level * source.normal(*x.shape)
    return Examples(noisy, x, F.mse_loss, 1)


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


def picture(source: Source) -> Examples:
    """The pixels of one image as a function of their positions."""
    x, _ = _images(source, 28)
    axis = torch.linspace(-1, 1, 28)
    points = torch.cartesian_prod(axis, axis)
    return Examples(points, x[0].reshape(-1, 1), F.mse_loss, 1)


def curve(source: Source) -> Examples:
    """A sum of sines of one or two numbers."""
    size = source.choice([1, 2])
    x = 2 * source.uniform(source.examples, size) - 1
    waves = 6.0 * source.normal(size, 4)
    phases = 6.0 * source.uniform(4)
    angles = x @ waves + phases
    y = angles.sin().sum(1, keepdim=True) / 2
    return Examples(x, source.with_noise(y), F.mse_loss, 1)


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


def contrast(source: Source) -> Examples:
    """Embeds examples so that those of one class are near."""
    found = clusters(source)
    return found._replace(loss=contrastive_loss, outputs=16)


def contrastive_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Khosla et al. 2020, Eq. 2, (); of fixed shapes, for vmap."""
    unit = F.normalize(outputs, dim=1)
    same = torch.eye(len(labels), dtype=torch.bool)
    logits = unit @ unit.mT / TEMPERATURE
    log_shares = logits.masked_fill(same, NEVER).log_softmax(1)
    alike = labels[:, None] == labels
    alike = (alike & ~same).float()
    means = (log_shares * alike).sum(1) / alike.sum(1).clamp(min=1)
    return -means.mean()


TASKS: dict[str, Callable[[Source], Examples]] = {
    "images": image_classes,
    "small images": small_image_classes,
    "pixels": pixels,
    "noisy images": noisy_images,
    "clusters": clusters,
    "teacher": teacher,
    "table": table,
    "picture": picture,
    "curve": curve,
    "characters": characters,
    "markov": markov,
    "bags": bags,
    "ratings": ratings,
    "contrast": contrast,
}
