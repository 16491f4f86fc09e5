"""Networks of images and sine waves, with properties of their signals."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tasks.networks.architectures import NetworkStack
from tasks.shards import SPLITS, merged, read_split


class Sirens(NamedTuple):
    """columns: properties of the networks and their signals by name, (n,) each."""

    stack: NetworkStack
    columns: Mapping[str, Tensor]


def read_sirens(folder: str, limit: int | None = None) -> dict[str, Sirens]:
    """All splits of a folder of `tasks.inr fit`.

    limit: number of training networks, the first; None for all.

    Raises ValueError for networks of another kind, and for a damaged shard.
    """
    splits = {}
    for split in SPLITS:
        groups = list(read_split(Path(folder), split))
        for group in groups:
            kind = group.architecture.get("kind")
            if kind != "siren":
                raise ValueError(
                    f"folder '{folder}': expected networks of kind siren; got {kind}"
                )
        networks = merged(groups)
        used = slice(limit if split == "train" else None)
        stack = NetworkStack.from_networks(networks).select(used)
        columns = {key: value[used] for key, value in networks.columns.items()}
        splits[split] = Sirens(stack, columns)
    return splits
