"""Random tasks: data of classification, regression, reconstruction, text and others.

Data depend on a task's seed alone. Images are those of FashionMNIST and MNIST.
"""

from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_train.problems.images import images as image_splits
from meta_train.problems.text import VOCABULARY, next_characters
from meta_train.step_size import games, vector_tasks
from meta_train.step_size.sources import Examples, Source, Task

VALIDATION = 512  # examples
TEXTS = 96  # windows of text for validation, each with many words to predict
IMAGES = 10_000  # of a data set that are used
CLASSES = 10
# tasks whose training data are all there is
EXACT = "picture", "featured picture", "sound", "distances", "poisson", "few numbers"


@lru_cache(2)
def make_task(name: str, seed: int, examples: int, noise: float) -> Task:
    """The task of the function with this name in `tasks`, `vector_tasks` or `games`.

    examples: for training and validation. noise: see `Source`.
    """
    source = Source(seed, examples, noise)
    functions = globals() | vars(vector_tasks) | vars(games)
    inputs, targets, loss, outputs, score = functions[name.replace(" ", "_")](source)
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
