"""Examples made of MNIST, FashionMNIST and CIFAR-10: smaller, gray, reconstructed,
noisy."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.image_datasets import Split, load_dataset
from meta_train.problems.supervised import Batch, Listed, Splits, mapped

NOISE = (
    0.5  # standard deviation that the denoiser has to remove, in those of the pixels
)


@cache
def images(name: str, pool: int = 1, gray: bool = False) -> Splits:
    """Images and their labels, normalised by the moments of the data set.

    pool: side of the squares of pixels that one pixel becomes, their mean.
    gray: whether to average the channels.
    """
    data = load_dataset(name)
    return Splits(
        *(_smaller(s, pool, gray) for s in (data.train, data.validation, data.test))
    )


@cache
def pixels(name: str, pool: int = 1, gray: bool = False) -> Splits:
    """Images as in `images`, but with pixels in [0, 1]; the targets are the images
    themselves."""
    splits = images(name, pool, gray)
    plain = [
        replace(s, mean=(0.0,), std=(1.0,)) for s in splits if isinstance(s, Split)
    ]
    return mapped(lambda: Splits(*plain), _reconstruct)


@cache
def noisy_images(name: str, pool: int = 1, gray: bool = False) -> Splits:
    """Images with normal noise; the targets are the images without."""
    return mapped(partial(images, name, pool, gray), _with_noise)


@cache
def diffused_images(name: str, pool: int = 1, gray: bool = False) -> Splits:
    """Images mixed with normal noise by random shares; the targets are the noise.

    inputs: the mixtures (b, channels, height, width), and the shares' levels in [0, 1]
    (b, 1).
    """
    return mapped(partial(images, name, pool, gray), _diffuse)


@cache
def brightest_pixels(name: str, pool: int, count: int) -> Splits:
    """Images as sets of points (count, 3): row, column and value of the brightest
    pixels."""
    return mapped(partial(images, name, pool), partial(_as_points, count=count))


@cache
def lower_brightness(name: str) -> Splits:
    """Tables of 28 features: a 28x28 image's upper half in squares; target: its lower
    half's mean.

    inputs: (b, 28); targets: (b, 1)
    """
    return mapped(partial(images, name, 4), _halves)


@cache
def picture(index: int, gray: bool) -> Splits:
    """A function of the plane: coordinates in [-1, 1] (1024, 2) to an image's pixels in
    [-1, 1].

    It is one training image of CIFAR-10, alike for all seeds. What counts is how well
    it is fitted, so all three splits are the same points.
    """
    # (3, 32, 32)
    image = load_dataset("cifar10").train.images[index].float() / 127.5 - 1
    if gray:
        image = image.mean(0, keepdim=True)
    points = Listed(grid(32), image.flatten(1).mT.contiguous())
    return Splits(points, points, points)


@cache
def picture_slopes(index: int) -> Splits:
    """Coordinates as in `picture` to the central differences of a gray image, (1024,
    2)."""
    values = picture(index, gray=True).train.batch(torch.arange(1024))[1]
    image = values.view(1, 1, 32, 32)
    tall = F.pad(image, (0, 0, 1, 1), "replicate")
    wide = F.pad(image, (1, 1, 0, 0), "replicate")
    rows = (tall[:, :, 2:] - tall[:, :, :-2]).flatten()
    columns = (wide[..., 2:] - wide[..., :-2]).flatten()
    points = Listed(grid(32), torch.stack([rows, columns], 1))
    return Splits(points, points, points)


def grid(side: int) -> Tensor:
    """Coordinates in [-1, 1] of the pixels of a square image, row by row: (side * side,
    2)."""
    axis = torch.linspace(-1, 1, side)
    return torch.cartesian_prod(axis, axis)


def _smaller(split: Split, pool: int, gray: bool) -> Split:
    """Pixels stay uint8, so means are rounded."""
    parts = []
    # as floats a whole data set would take gigabytes
    for part in split.images.split(5000):
        values = part.float()
        if gray:
            values = values.mean(1, keepdim=True)
        if pool > 1:
            values = F.avg_pool2d(values, pool)
        parts.append(values.round().to(torch.uint8))
    moments = {}
    if gray:
        moments = {key: (_mean(getattr(split, key)),) for key in ("mean", "std")}
    return replace(split, images=torch.cat(parts), **moments)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _reconstruct(images: Tensor, labels: Tensor) -> Batch:
    return images, images


def _with_noise(images: Tensor, labels: Tensor) -> Batch:
    return images + NOISE * torch.randn_like(images), images


def _diffuse(images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Variance is kept, by a cosine schedule (Nichol and Dhariwal 2021)."""
    noise = torch.randn_like(images)
    levels = torch.rand(len(images), 1)
    angles = 0.5 * pi * levels[..., None, None]
    return (angles.cos() * images + angles.sin() * noise, levels), noise


def _as_points(images: Tensor, labels: Tensor, count: int) -> Batch:
    values, places = images.flatten(1).topk(count)
    positions = grid(images.shape[-1])[places]  # (b, count, 2)
    return torch.cat([positions, values[..., None]], -1), labels


def _halves(images: Tensor, labels: Tensor) -> Batch:
    upper, lower = images.flatten(1).split([28, 21], 1)  # rows of 7 squares
    return upper, lower.mean(1, keepdim=True)
