"""Networks of several architectures, numbered together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tasks.common.random import derive_seed
from tasks.networks.architectures import Stack
from tasks.shards import Networks, merged, read_split


@dataclass(frozen=True, eq=False)
class Collection:
    """Stacks, one for each architecture, and what is known of their networks: columns of (n,).

    Networks are numbered from the first stack's first to the last one's last.
    """

    stacks: Sequence[Stack]
    columns: dict[str, Tensor]

    @classmethod
    def of(cls, groups: Iterable[Networks]) -> Collection:
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
        return cls([Stack.of(group) for group in whole], columns)

    @cached_property
    def starts(self) -> Tensor:
        """Number of the first network of each stack, and that of all, (stacks + 1,)."""
        counts = torch.tensor([0, *(stack.count for stack in self.stacks)])
        return counts.cumsum(0)

    @cached_property
    def stack_of(self) -> Tensor:
        """Place of each network's stack, (n,)."""
        counts = self.starts.diff()
        return torch.arange(len(self.stacks)).repeat_interleave(counts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def where(self, is_kept: Callable[[Stack], bool]) -> Collection:
        """Those of some architectures."""
        places = [place for place, stack in enumerate(self.stacks) if is_kept(stack)]
        mask = torch.isin(self.stack_of, torch.tensor(places, dtype=torch.int64))
        columns = {key: value[mask] for key, value in self.columns.items()}
        return Collection([self.stacks[place] for place in places], columns)

    def first(self, count: int | None) -> Collection:
        """The first networks; None for all."""
        if count is None:
            return self
        pairs = zip(self.stacks, self.starts.tolist(), strict=False)
        stacks = [
            stack.select(slice(count - start))
            for stack, start in pairs
            if start < count
        ]
        return Collection(
            stacks, {key: value[:count] for key, value in self.columns.items()}
        )

    def said(self, model: Callable[[Stack], Tensor], index: Tensor) -> Tensor:
        """What a model says of some networks, by their numbers (k,) -> (k, *)."""
        places = self.stack_of[index]
        rows, found = [], []
        for place in places.unique().tolist():
            row = (places == place).nonzero().squeeze(1)
            own = index[row] - self.starts[place]
            rows.append(row)
            found.append(model(self.stacks[place].select(own)))
        return torch.cat(found)[torch.cat(rows).argsort()]

    def batch(self, size: int, *, seed: int, step: int) -> Tensor:
        """Numbers of a step's networks, (size,): every epoch another order, in which networks of
        one architecture follow each other, so that a batch has few of them.

        Raises ValueError if there are fewer networks than that.
        """
        if not 1 <= size <= len(self):
            raise ValueError(f"batch: expected 1 to {len(self)} networks; got {size}")
        epoch, position = divmod(step, len(self) // size)
        order = _order(tuple(self.starts.tolist()), derive_seed(seed, epoch))
        return order[position * size : (position + 1) * size]


def read_collection(folder: str, split: str, skip_damaged: bool = False) -> Collection:
    """A split of a folder of shards; see `read_split`. Raises ValueError for a damaged shard."""
    return Collection.of(read_split(Path(folder), split, skip_damaged))


@lru_cache(maxsize=4)
def _order(starts: tuple[int, ...], seed: int) -> Tensor:
    """A random order of stacks, and of the networks within."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(starts).diff()
    order = torch.randperm(starts[-1], generator=generator)
    keys = torch.randperm(len(counts), generator=generator).repeat_interleave(counts)
    return order[keys[order].argsort(stable=True)]
