"""Examples made from MNIST, FashionMNIST and CIFAR-10: smaller, gray or noisy."""

from dataclasses import replace
from functools import cache, partial
from math import isqrt, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.image_datasets import Split, load_dataset
from meta_train.problems.supervised import (
    Batch,
    Data,
    Examples,
    Splits,
    on_batches,
    on_itself,
)
from tasks.networks.siren import pixel_grid

NOISE = 0.5  # standard deviation of `noisy` images, of normalised pixels


@cache
def pooled_splits(name: str, pool: int, gray: bool) -> list[Split]:
    """Splits of a data set; arguments as of `images`."""

    def pooled(split: Split) -> Split:
        parts = []
        # a whole data set in float32 would take gigabytes
        for part in split.images.split(5000):
            pixels = part.float()
            if gray:
                pixels = pixels.mean(1, keepdim=True)
            if pool > 1:
                pixels = F.avg_pool2d(pixels, pool)
            parts.append(pixels.round().to(torch.uint8))
        mean, std = split.mean, split.std
        if gray:
            mean = (sum(mean) / len(mean),)
            std = (sum(std) / len(std),)
        return replace(split, images=torch.cat(parts), mean=mean, std=std)

    return list(map(pooled, load_dataset(name)))


@cache
def images(name: str, pool: int = 1, gray: bool = False) -> Splits:
    """Images and their labels, normalised by the moments of the data set.

    pool: kernel size of average pooling. gray: whether to average the channels. Pixels
    stay uint8, so means are rounded.
    """
    splits = pooled_splits(name, pool, gray)
    return Splits(*(Examples(len(split), split.batch) for split in splits))


@cache
def pixels(name: str, pool: int = 1) -> Splits:
    """Images as in `images` with pixels in [0, 1]; the targets are the inputs."""
    examples = []
    for split in pooled_splits(name, pool, gray=False):
        unnormalised = replace(split, mean=(0.0,), std=(1.0,))
        examples.append(Examples(len(split), unnormalised.batch))
    return Splits(*examples).map(lambda pixels, labels: (pixels, pixels))


@on_batches
def noisy(images: Tensor, labels: Tensor) -> Batch:
    """Images with normal noise; the targets are the images without noise."""
    return images + NOISE * torch.randn_like(images), images


@on_batches
def diffused(images: Tensor, labels: Tensor) -> Batch:
    """Images mixed with normal noise at random levels; the targets are the noise.

    Keeps the variance by a cosine schedule (Nichol and Dhariwal 2021).

    inputs: mixtures (b, channels, height, width) and levels (b, 1) in [0, 1]
    """
    noise = torch.randn_like(images)
    levels = torch.rand(len(images), 1)
    angles = 0.5 * pi * levels[..., None, None]
    return (angles.cos() * images + angles.sin() * noise, levels), noise


def brightest_pixels(data: Data, count: int) -> Data:
    """Row, column and value of an image's brightest pixels, as points (b, count, 3)."""

    def as_points(images: Tensor, labels: Tensor) -> Batch:
        brightness, indices = images.flatten(1).topk(count)
        side = images.shape[-1]
        positions = pixel_grid(side, side)[indices]  # (b, count, 2)
        return torch.cat([positions, brightness[..., None]], -1), labels

    return lambda: data().map(as_points)


@on_batches
def lower_brightness(images: Tensor, labels: Tensor) -> Batch:
    """Predicts the mean of the lower half of 7x7 pixels from the upper half.

    inputs: the upper four rows, (b, 28); targets: (b, 1)
    """
    upper, lower = images.flatten(1).split([28, 21], 1)
    return upper, lower.mean(1, keepdim=True)


@cache
def picture(name: str, pool: int = 1, first: int = 0, count: int = 1) -> Splits:
    """Pixels (n, channels) in [-1, 1] as a function of coordinates (n, 2).

    The problem is to fit them, so all three splits are the same points.

    pool: kernel size of average pooling.
    first, count: training images that fill a square, the same for all seeds.
    """
    images = pooled_splits(name, pool, gray=False)[0].images[first : first + count]
    squares = images.unflatten(0, (isqrt(count), -1))  # (rows, columns, c, h, w)
    image = squares.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    values = image.flatten(1).mT.float() / 127.5 - 1
    return on_itself(pixel_grid(*image.shape[1:]), values)


@cache
def picture_slopes(name: str, first: int) -> Splits:
    """Central differences (1024, 2) of a `picture` in gray."""
    points, pixels = picture(name, first=first).train.batch(torch.arange(1024))
    image = pixels.mT.mean(0).view(1, 1, 32, 32)
    tall = F.pad(image, (0, 0, 1, 1), "replicate")
    wide = F.pad(image, (1, 1, 0, 0), "replicate")
    rows = tall[:, :, 2:] - tall[:, :, :-2]
    columns = wide[..., 2:] - wide[..., :-2]
    slopes = torch.stack([rows.flatten(), columns.flatten()], 1)
    return on_itself(points, slopes)


MNIST = partial(images, "mnist")
MNIST_14 = partial(images, "mnist", 2)
MNIST_7 = partial(images, "mnist", 4)
FASHION = partial(images, "fashion-mnist")
FASHION_14 = partial(images, "fashion-mnist", 2)
FASHION_7 = partial(images, "fashion-mnist", 4)
CIFAR = partial(images, "cifar10")
CIFAR_16 = partial(images, "cifar10", 2)
GRAY_16 = partial(images, "cifar10", 2, gray=True)
