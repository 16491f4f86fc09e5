"""Networks that stand for images, with what is known of the images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tasks.architectures import Stack
from tasks.shards import merged, read_split


class ImageNetworks(NamedTuple):
    """labels: classes of the images, (n,). index: which images of the data set's split, (n,)."""

    stack: Stack
    labels: Tensor
    index: Tensor


def read_image_networks(
    folder: str,
    split: str,
    limit: int | None = None,
    skip_damaged: bool = False,
) -> ImageNetworks:
    """A split of a folder of `tasks.inr fit`, or so many of it, from the first. skip_damaged: see `read_split`.

    Raises ValueError for a damaged shard, or one without labels.
    """
    networks = merged(list(read_split(Path(folder), split, skip_damaged)))
    for key in ("label", "index"):
        if key not in networks.columns:
            raise ValueError(f"folder '{folder}': expected networks with a column '{key}'; got none")
    some = slice(limit)
    labels, index = (networks.columns[key][some] for key in ("label", "index"))
    return ImageNetworks(Stack.of(networks).select(some), labels, index)
