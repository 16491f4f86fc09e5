"""Signals that networks are fitted to: images and sine waves."""

from collections.abc import Callable, Mapping
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
class Signals:
    """Signals of one split.

    points: coordinates of the values, (n, d). values: those of signals (k,), centred at
    zero, (k, channels, n). properties: of all signals, (count,) each.
    """

    points: Tensor
    values: Callable[[Tensor], Tensor]
    properties: Mapping[str, Tensor]

    def columns(self, index: Tensor) -> dict[str, Tensor]:
        """Properties of signals (k,), and their index."""
        columns = {key: value[index] for key, value in self.properties.items()}
        return {**columns, "index": index}


def image_signals(split: Split) -> Signals:
    """Images minus `MIDDLE`, with their label."""

    def values(index: Tensor) -> Tensor:
        return (split.images[index].float() / 255 - MIDDLE).flatten(2)

    points = pixel_grid(*split.images.shape[-2:])
    return Signals(points, values, {"label": split.labels})


def sine_waves(amplitudes: Tensor, frequencies: Tensor) -> Signals:
    """a / `MAXIMUM` sin(b pi t) for t in [-1, 1], with a and b (n,) each."""
    points = torch.linspace(-1, 1, SAMPLES)

    def values(index: Tensor) -> Tensor:
        angles = frequencies[index, None] * pi * points
        return (amplitudes[index, None] / MAXIMUM * angles.sin()).unsqueeze(1)

    properties = {"amplitude": amplitudes, "frequency": frequencies}
    return Signals(points.unsqueeze(1), values, properties)


def load_signals(name: str, counts: Mapping[str, int], seed: int) -> dict[str, Signals]:
    """The splits of an image data set, or of "sines", which are generated.

    counts: signals of every split.

    Raises ValueError for an unknown name, or if a split of a data set has fewer images.
    """
    signals: dict[str, Signals] = {}
    if name == SINES:
        for number, split in enumerate(SPLITS):
            with seeded(seed, 20, number):
                drawn = MAXIMUM * torch.rand(2, counts[split])
            signals[split] = sine_waves(*drawn)
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
        signals[split] = image_signals(images)
    return signals
