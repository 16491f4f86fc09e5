"""Networks of several architectures, numbered together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from harness.random import derive_seed
from tasks.networks.architectures import NetworkStack
from tasks.shards import Networks, merged, read_split

# Networks of one architecture that follow each other in an epoch, as they are read
# together. All of a large zoo of few architectures would be too many: a model forgets
# the others meanwhile.
ALIKE = 8


@dataclass(frozen=True, eq=False)
class NetworkDataset:
    """Stacks, one for each architecture, and what is known of their networks: columns
    of (n,).

    Networks are numbered from the first stack's first to the last one's last.
    """

    stacks: Sequence[NetworkStack]
    columns: dict[str, Tensor]

    @classmethod
    def from_groups(cls, groups: Iterable[Networks]) -> NetworkDataset:
        """Of groups as shards have them; those of one architecture come together."""
        found: dict[str, list[Networks]] = {}
        for group in groups:
            found.setdefault(str(group.architecture), []).append(group)
        whole = [merged(some) for some in found.values()]
        keys = set.intersection(*(set(group.columns) for group in whole))
        columns = {
            key: torch.cat([group.columns[key] for group in whole])
            for key in sorted(keys)
        }
        return cls([NetworkStack.from_networks(group) for group in whole], columns)

    @cached_property
    def offsets(self) -> Tensor:
        """Number of the first network of each stack, and that of all, (stacks + 1,)."""
        counts = torch.tensor([0, *(stack.count for stack in self.stacks)])
        return counts.cumsum(0)

    @cached_property
    def stack_numbers(self) -> Tensor:
        """Place of each network's stack, (n,)."""
        counts = self.offsets.diff()
        return torch.arange(len(self.stacks)).repeat_interleave(counts)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def filter(self, is_kept: Callable[[NetworkStack], bool]) -> NetworkDataset:
        """Those of some architectures."""
        places = [place for place, stack in enumerate(self.stacks) if is_kept(stack)]
        mask = torch.isin(self.stack_numbers, torch.tensor(places, dtype=torch.int64))
        columns = {key: value[mask] for key, value in self.columns.items()}
        return NetworkDataset([self.stacks[place] for place in places], columns)

    def subset(self, count: int | None) -> NetworkDataset:
        """So many networks, in equal distances, so that all architectures have their
        share; None for all."""
        if count is None or count >= len(self):
            return self
        index = torch.arange(count) * len(self) // count
        places = self.stack_numbers[index]
        stacks = []
        for place in places.unique().tolist():
            own = index[places == place] - self.offsets[place]
            stacks.append(self.stacks[place].select(own))
        columns = {key: value[index] for key, value in self.columns.items()}
        return NetworkDataset(stacks, columns)

    def apply(
        self, model: Callable[[Sequence[NetworkStack]], Tensor], index: Tensor
    ) -> Tensor:
        """What a model says of some networks, by their numbers (k,) -> (k, *)."""
        places = self.stack_numbers[index]
        rows, stacks = [], []
        for place in places.unique().tolist():
            row = (places == place).nonzero().squeeze(1)
            own = index[row] - self.offsets[place]
            rows.append(row)
            stacks.append(self.stacks[place].select(own))
        return model(stacks)[torch.cat(rows).argsort()]

    def batch_indices(self, size: int, *, seed: int, step: int) -> Tensor:
        """Numbers of a step's networks, (size,): every epoch another order, in which up
        to `ALIKE` networks of one architecture follow each other, so that a batch has
        few of them.

        Raises ValueError if there are fewer networks than that.
        """
        if not 1 <= size <= len(self):
            raise ValueError(f"batch: expected 1 to {len(self)} networks; got {size}")
        epoch, position = divmod(step, len(self) // size)
        order = _order(tuple(self.offsets.tolist()), derive_seed(seed, epoch))
        return order[position * size : (position + 1) * size]


def read_network_dataset(
    folder: str, split: str, skip_damaged: bool = False
) -> NetworkDataset:
    """A split of a folder of shards; see `read_split`. Raises ValueError for a damaged
    shard."""
    return NetworkDataset.from_groups(read_split(Path(folder), split, skip_damaged))


@lru_cache(maxsize=4)
def _order(starts: tuple[int, ...], seed: int) -> Tensor:
    """A random order of networks, `ALIKE` of an architecture at a time."""
    generator = torch.Generator().manual_seed(seed)
    runs: list[Tensor] = []
    for start, end in pairwise(starts):
        own = start + torch.randperm(end - start, generator=generator)
        runs += own.split(ALIKE)
    order = torch.randperm(len(runs), generator=generator).tolist()
    return torch.cat([runs[i] for i in order])
