"""What networks are fitted to: images, or sine waves; both are values at points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Protocol

import torch
from torch import Tensor

from harness.image_datasets import DATASETS, Split, load_dataset
from harness.random import seeded
from tasks.networks.siren import pixel_grid
from tasks.shards import SPLITS

# The middle of a pixel's range, which a network does not have to learn.
MIDDLE = 0.5
SINES = "sines"
# Amplitudes and frequencies are uniform between 0 and this number (Navon et al. 2023,
# section 7.2).
LARGEST = 10.0
SAMPLES = 512


class Signals(Protocol):
    """Signals of one split. points: where values are known, (n, d)."""

    @property
    def points(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def values(self, index: Tensor) -> Tensor:
        """Of some signals, (k,), about zero: (k, channels, n)."""
        ...

    def columns(self, index: Tensor) -> dict[str, Tensor]:
        """What is known of them, (k,) each."""
        ...


@dataclass(frozen=True)
class Images:
    """Images less the middle of their range; they have a class, "label"."""

    split: Split

    @property
    def points(self) -> Tensor:
        return pixel_grid(*self.split.images.shape[-2:])

    def __len__(self) -> int:
        return len(self.split)

    def values(self, index: Tensor) -> Tensor:
        return (self.split.images[index].float() / 255 - MIDDLE).flatten(2)

    def columns(self, index: Tensor) -> dict[str, Tensor]:
        return {"label": self.split.labels[index], "index": index}


@dataclass(frozen=True)
class Sines:
    """a / `LARGEST` sin(b pi t) for t in [-1, 1], of amplitudes a and frequencies b,
    (n,) each."""

    amplitudes: Tensor
    frequencies: Tensor

    @property
    def points(self) -> Tensor:
        return torch.linspace(-1, 1, SAMPLES).unsqueeze(1)

    def __len__(self) -> int:
        return len(self.amplitudes)

    def values(self, index: Tensor) -> Tensor:
        angles = self.frequencies[index, None] * pi * self.points.squeeze(1)
        return (self.amplitudes[index, None] / LARGEST * angles.sin()).unsqueeze(1)

    def columns(self, index: Tensor) -> dict[str, Tensor]:
        return {
            "amplitude": self.amplitudes[index],
            "frequency": self.frequencies[index],
            "index": index,
        }


def load_signals(name: str, counts: Mapping[str, int], seed: int) -> dict[str, Signals]:
    """The splits of a data set of images, or of "sines", of which as many are made as
    asked for.

    counts: signals of every split.

    Raises ValueError for an unknown name, or if a data set has fewer.
    """
    if name == SINES:
        return {
            split: _sines(counts[split], seed, place)
            for place, split in enumerate(SPLITS)
        }
    if name not in DATASETS:
        expected = ", ".join(map(repr, (*DATASETS, SINES)))
        raise ValueError(f"data: expected one of {expected}; got '{name}'")
    data = load_dataset(name)
    found: dict[str, Signals] = {
        split: Images(getattr(data, split)) for split in SPLITS
    }
    for split, signals in found.items():
        if counts[split] > len(signals):
            raise ValueError(
                f"{split}: expected at most {len(signals)} images; got {counts[split]}"
            )
    return found


def _sines(count: int, seed: int, place: int) -> Sines:
    with seeded(seed, 20, place):
        return Sines(*(LARGEST * torch.rand(2, count)))
