"""Random tasks: data of classification, regression, reconstruction and text.

Data depend on a task's seed alone. Images are those of FashionMNIST and MNIST.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_train.problems.images import images
from meta_train.problems.text import VOCABULARY, next_characters

VALIDATION = 512  # examples
TEXTS = 96  # windows of text for validation, each with many words to predict
IMAGES = 10_000  # of a data set that are used
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """Inputs and targets of training and validation, and the loss of outputs.

    outputs: number of outputs per example, or of words.
    """

    inputs: Tensor
    targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    loss: Loss
    outputs: int


def _split(inputs: Tensor, targets: Tensor, loss: Loss, outputs: int) -> Task:
    """The last examples are for validation."""
    most = VALIDATION if targets.dim() == 1 or targets.is_floating_point() else TEXTS
    cut = len(inputs) - min(most, len(inputs) // 4)
    return Task(inputs[:cut], targets[:cut], inputs[cut:], targets[cut:], loss, outputs)


@lru_cache(2)
def make_task(name: str, seed: int, examples: int, noise: float) -> Task:
    """examples: in training and validation. noise: share of random labels, or
    standard deviation of noise in targets."""
    generator = torch.Generator().manual_seed(seed)
    make = TASKS[name]
    return make(generator, Random(seed), examples, noise)


def _relabelled(labels: Tensor, classes: int, noise: float, g: torch.Generator):
    is_wrong = torch.rand(len(labels), generator=g) < noise
    other = torch.randint(classes, labels.shape, generator=g)
    return torch.where(is_wrong, other, labels)


@cache
def _small_images(name: str, side: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, side, side) and labels."""
    train = images(name, 28 // side).train
    return train.batch(torch.arange(IMAGES))


def _images(
    g: torch.Generator, rng: Random, examples: int, side: int = 14
) -> tuple[Tensor, Tensor]:
    x, y = _small_images(rng.choice(["fashion-mnist", "mnist"]), side)
    chosen = torch.randperm(len(x), generator=g)[:examples]
    return x[chosen], y[chosen]


def image_classes(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    x, y = _images(g, rng, examples)
    return _split(x, _relabelled(y, 10, noise, g), F.cross_entropy, 10)


def image_features(
    g: torch.Generator, rng: Random, examples: int, noise: float
) -> Task:
    """Classes of images of 7x7 pixels."""
    x, y = _images(g, rng, examples, 7)
    return _split(x.flatten(1), _relabelled(y, 10, noise, g), F.cross_entropy, 10)


def image_pixels(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """Reconstruction of pixels with squared errors or cross entropy."""
    x, _ = _images(g, rng, examples, 7)
    x = x.flatten(1)
    if rng.random() < 0.5:
        return _split(x, x, F.mse_loss, x.shape[1])
    low, high = x.min(), x.max()
    y = (x - low) / (high - low)
    return _split(y, y, F.binary_cross_entropy_with_logits, x.shape[1])


def noisy_images(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """Images with noise; the targets are without."""
    x, _ = _images(g, rng, examples)
    level = rng.choice([0.3, 0.6, 1.0])
    noisy = x + level * torch.randn(x.shape, generator=g)
    return _split(noisy, x, F.mse_loss, 1)


def clusters(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """Classes that are mixtures of Gaussians."""
    size, classes = rng.choice([4, 16, 48]), rng.choice([2, 5, 12])
    count = classes * rng.choice([1, 3])
    centers = torch.randn(count, size, generator=g)
    chosen = torch.randint(count, (examples,), generator=g)
    spread = rng.choice([0.3, 0.6, 1.0])
    x = centers[chosen] + spread * torch.randn(examples, size, generator=g)
    y = _relabelled(chosen % classes, classes, noise, g)
    return _split(x, y, F.cross_entropy, classes)


def _teacher(x: Tensor, outputs: int, g: torch.Generator) -> Tensor:
    hidden = x
    for size in (32, 32):
        weight = torch.randn(size, hidden.shape[1], generator=g)
        hidden = (hidden @ weight.mT * 1.5 / hidden.shape[1] ** 0.5).tanh()
    y = hidden @ torch.randn(32, outputs, generator=g)
    return (y - y.mean(0)) / y.std(0)


def teacher(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """Outputs of a random network, at some scale."""
    size, outputs = rng.choice([4, 12, 40]), rng.choice([1, 4])
    x = torch.randn(examples, size, generator=g)
    y = _teacher(x, outputs, g)
    y = rng.choice([0.1, 1.0, 1.0, 10.0]) * (
        y + noise * torch.randn(y.shape, generator=g)
    )
    loss = rng.choice([F.mse_loss, F.smooth_l1_loss, F.l1_loss])
    return _split(x, y, loss, outputs)


def table(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """Heavy-tailed columns of unequal scales, and a class or a number."""
    size = rng.choice([6, 14])
    base = torch.randn(examples, size, generator=g)
    y = _teacher(base, 1, g)
    scales = (0.8 * torch.randn(size, generator=g)).exp()
    x = scales * (0.5 * base).sinh() + 0.3 * torch.randn(size, generator=g)
    if rng.random() < 0.5:
        labels = _relabelled((y[:, 0] > 0.3).long(), 2, noise, g)
        return _split(x, labels, F.cross_entropy, 2)
    return _split(x, y + noise * torch.randn(y.shape, generator=g), F.mse_loss, 1)


def picture(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """The pixels of one image as a function of their positions; all are known."""
    x, _ = _images(g, rng, 1, 28)
    axis = torch.linspace(-1, 1, x.shape[-1])
    points = torch.cartesian_prod(axis, axis)
    y = x.reshape(-1, 1)
    return Task(points, y, points, y, F.mse_loss, 1)


def curve(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """A sum of sines of one or two numbers."""
    size = rng.choice([1, 2])
    x = 2 * torch.rand(examples, size, generator=g) - 1
    waves = 6.0 * torch.randn(size, 4, generator=g)
    phases = 6.0 * torch.rand(4, generator=g)
    y = (x @ waves + phases).sin().sum(1, keepdim=True) / 2
    y = y + noise * torch.randn(y.shape, generator=g)
    return _split(x, y, F.mse_loss, 1)


def characters(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """Windows of Python source, each character predicting the next."""
    length = rng.choice([16, 32])
    windows = next_characters(length).train
    chosen = torch.randperm(len(windows), generator=g)[:examples]
    x, y = windows.batch(chosen)
    return _split(x, y, F.cross_entropy, VOCABULARY)


def markov(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """A Markov chain of words, of which most are rare."""
    words, length = rng.choice([64, 64, 256, 1024]), rng.choice([12, 24])
    frequency = 1 / torch.arange(1, words + 1) ** rng.choice([0.7, 1.1])
    following = torch.multinomial(
        frequency.expand(words, -1), 4, replacement=True, generator=g
    )
    codes = [torch.multinomial(frequency, examples, replacement=True, generator=g)]
    for _ in range(length):
        branch = torch.randint(4, (examples,), generator=g)
        next_codes = following[codes[-1], branch]
        random = torch.multinomial(frequency, examples, replacement=True, generator=g)
        is_random = torch.rand(examples, generator=g) < 0.1 + noise
        codes.append(torch.where(is_random, random, next_codes))
    text = torch.stack(codes, 1)
    return _split(text[:, :-1], text[:, 1:], F.cross_entropy, words)


def bags(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """Bags of words, whose class their topic decides."""
    words, classes = rng.choice([200, 1000]), rng.choice([2, 8])
    topics = 1.5 * torch.randn(classes, words, generator=g)
    frequency = 1 / torch.arange(1, words + 1) ** 1.0
    y = torch.randint(classes, (examples,), generator=g)
    shares = topics.exp() * frequency
    x = torch.multinomial(shares[y], 12, replacement=True, generator=g)
    return _split(x, _relabelled(y, classes, noise, g), F.cross_entropy, classes)


def ratings(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """Entries of a matrix of low rank; rows and columns are given by number."""
    size, rank = rng.choice([40, 120]), rng.choice([2, 6])
    left = torch.randn(size, rank, generator=g)
    right = torch.randn(size, rank, generator=g)
    x = torch.randint(size, (examples, 2), generator=g)
    y = (left[x[:, 0]] * right[x[:, 1]]).sum(-1) / rank**0.5
    y = y + noise * torch.randn(y.shape, generator=g)
    return _split(x, y, F.mse_loss, size)


def contrast(g: torch.Generator, rng: Random, examples: int, noise: float) -> Task:
    """Embeds examples so that those of one class are near."""
    task = clusters(g, rng, examples, noise)
    return Task(
        task.inputs,
        task.targets,
        task.validation_inputs[:256],
        task.validation_targets[:256],
        _contrastive_loss,
        16,
    )


def _contrastive_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """As Khosla et al. 2020, Eq. 2, without masks that need the data."""
    unit = F.normalize(outputs, dim=1)
    eye = torch.eye(len(labels), dtype=torch.bool)
    logits = (unit @ unit.mT / 0.1).masked_fill(eye, -1e4)
    alike = ((labels[:, None] == labels) & ~eye).float()
    means = (logits.log_softmax(1) * alike).sum(1) / alike.sum(1).clamp(min=1)
    return -means.mean()


TASKS: dict[str, Callable[[torch.Generator, Random, int, float], Task]] = {
    "images": image_classes,
    "small images": image_features,
    "pixels": image_pixels,
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
