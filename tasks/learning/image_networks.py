"""Networks that represent images, with the labels of the images."""

from math import inf
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tasks.learning.task import TaskConfig
from tasks.networks.architectures import NetworkStack
from tasks.shards import SPLITS, Networks, check_column, merged, read_split

CLASSES = 10


class ImageNetworks(NamedTuple):
    """labels: classes of the images, (n,). index: of the images in a split, (n,)."""

    stack: NetworkStack
    labels: Tensor
    index: Tensor


def read_image_networks(config: TaskConfig) -> dict[str, ImageNetworks]:
    """All splits of a folder of `tasks.inr fit`, with `limit` training networks.

    Raises ValueError for networks of another kind, a damaged shard, and missing or
    wrong labels.
    """
    splits = {}
    for split in SPLITS:
        networks = read_sirens(config, split)
        columns = networks.columns
        check_column(config.data, columns, "label", 0, CLASSES - 1)
        check_column(config.data, columns, "index", 0, inf)
        used = slice(config.limit if split == "train" else None)
        splits[split] = ImageNetworks(
            NetworkStack.from_networks(networks).select(used),
            columns["label"][used],
            columns["index"][used],
        )
    return splits


def read_sirens(config: TaskConfig, split: str) -> Networks:
    """A split of a folder of `tasks.inr fit`, together. Raises ValueError for other
    networks."""
    folder = Path(config.data)
    groups = list(read_split(folder, split, config.skip_damaged))
    for group in groups:
        kind = group.architecture.get("kind")
        if kind != "siren":
            raise ValueError(
                f"folder '{folder}': expected networks of kind siren; got {kind}"
            )
    return merged(groups)
