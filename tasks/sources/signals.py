"""Signals that networks are fitted to: images and sine waves."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from harness.image_datasets import DATASETS, Split, load_dataset
from harness.random import seeded
from tasks.networks.siren import pixel_grid
from tasks.shards import SPLITS

# Subtracted from pixels in [0, 1], so that networks need not learn it.
MIDDLE = 0.5
SINES = "sines"
# Upper bound of amplitudes and frequencies, which are uniform from 0 (Navon et al.
# 2023, section 7.2).
MAXIMUM = 10.0
SAMPLES = 512


@dataclass(frozen=True)
class Images:
    """Images minus `MIDDLE`, with their label."""

    split: Split

    @property
    def points(self) -> Tensor:
        return pixel_grid(*self.split.images.shape[-2:])

    def values(self, index: Tensor) -> Tensor:
        return (self.split.images[index].float() / 255 - MIDDLE).flatten(2)

    def columns(self, index: Tensor) -> dict[str, Tensor]:
        return {"label": self.split.labels[index], "index": index}


@dataclass(frozen=True)
class Sines:
    """a / `MAXIMUM` sin(b pi t) for t in [-1, 1], with amplitudes a and frequencies b,
    (n,) each."""

    amplitudes: Tensor
    frequencies: Tensor

    @property
    def points(self) -> Tensor:
        return torch.linspace(-1, 1, SAMPLES).unsqueeze(1)

    def values(self, index: Tensor) -> Tensor:
        angles = self.frequencies[index, None] * pi * self.points.squeeze(1)
        return (self.amplitudes[index, None] / MAXIMUM * angles.sin()).unsqueeze(1)

    def columns(self, index: Tensor) -> dict[str, Tensor]:
        return {
            "amplitude": self.amplitudes[index],
            "frequency": self.frequencies[index],
            "index": index,
        }


Signals = Images | Sines
"""Signals of one split.

points: coordinates of the values, (n, d). values: of signals (k,), centred at zero,
(k, channels, n). columns: properties of signals, (k,) each.
"""


def load_signals(name: str, counts: Mapping[str, int], seed: int) -> dict[str, Signals]:
    """The splits of an image data set, or of "sines", which are generated.

    counts: signals of every split.

    Raises ValueError for an unknown name, or if a split of a data set has fewer images.
    """
    signals: dict[str, Signals] = {}
    if name == SINES:
        for number, split in enumerate(SPLITS):
            with seeded(seed, 20, number):
                signals[split] = Sines(*(MAXIMUM * torch.rand(2, counts[split])))
        return signals
    if name not in DATASETS:
        expected = ", ".join(map(repr, (*DATASETS, SINES)))
        raise ValueError(f"data: expected one of {expected}; got '{name}'")
    data = load_dataset(name)
    for split in SPLITS:
        images = getattr(data, split)
        if counts[split] > len(images):
            raise ValueError(
                f"{split}: expected at most {len(images)} images; got {counts[split]}"
            )
        signals[split] = Images(images)
    return signals
