"""Data sets that several lists of problems share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from meta_train.problems.images import images
from meta_train.problems.supervised import Splits

Data = Callable[[], Splits]
Build = Callable[[], nn.Module]

MNIST = partial(images, "mnist")
MNIST_14 = partial(images, "mnist", 2)
MNIST_7 = partial(images, "mnist", 4)
FASHION = partial(images, "fashion-mnist")
FASHION_14 = partial(images, "fashion-mnist", 2)
FASHION_7 = partial(images, "fashion-mnist", 4)
CIFAR = partial(images, "cifar10")
CIFAR_16 = partial(images, "cifar10", 2)
GRAY_16 = partial(images, "cifar10", 2, gray=True)
