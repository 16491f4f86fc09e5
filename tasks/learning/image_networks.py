"""Networks that stand for images, with what is known of the images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tasks.learning.lesson import LessonConfig
from tasks.networks.architectures import Stack
from tasks.shards import SPLITS, merged, read_split


class ImageNetworks(NamedTuple):
    """labels: classes of the images, (n,). index: which images of the data set's split, (n,)."""

    stack: Stack
    labels: Tensor
    index: Tensor


def read_image_networks(config: LessonConfig) -> dict[str, ImageNetworks]:
    """All splits of a folder of `tasks.inr fit`; of the training split as many as the settings say.

    Raises ValueError for a damaged shard, or one without labels.
    """
    found = {}
    for split in SPLITS:
        networks = merged(
            list(read_split(Path(config.data), split, config.skip_damaged))
        )
        for key in ("label", "index"):
            if key not in networks.columns:
                raise ValueError(
                    f"folder '{config.data}': expected networks with a column '{key}'; got none"
                )
        some = slice(config.limit if split == "train" else None)
        labels, index = (
            networks.columns[key][some] for key in ("label", "index")
        )
        found[split] = ImageNetworks(
            Stack.of(networks).select(some), labels, index
        )
    return found
