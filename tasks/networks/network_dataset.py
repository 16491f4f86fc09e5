"""Networks of several architectures, indexed together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import compress, pairwise

import torch
from torch import Tensor

from harness.random import derive_seed
from tasks.networks.architectures import NetworkStack
from tasks.shards import Networks, column_of, merged_by_architecture

# Consecutive networks of one architecture in an epoch, which a model evaluates
# together. With all networks of an architecture in a row, a model would forget the
# other architectures meanwhile.
BLOCK_SIZE = 8


@dataclass(frozen=True, eq=False)
class NetworkDataset:
    """One stack per architecture, and columns (n,) with a value for every network.

    Networks are indexed stack after stack, from 0 to n - 1.
    """

    stacks: Sequence[NetworkStack]
    columns: dict[str, Tensor]

    @classmethod
    def from_groups(cls, groups: Iterable[Networks]) -> "NetworkDataset":
        """From the groups of shards; groups of one architecture are merged.

        Only columns that all groups have are kept.
        """
        merged = merged_by_architecture(groups)
        columns = {
            key: column_of(merged, key)
            for key in sorted(merged[0].columns)
            if all(key in group.columns for group in merged)
        }
        return cls(list(map(NetworkStack.from_networks, merged)), columns)

    @cached_property
    def offsets(self) -> Tensor:
        """Index of the first network of each stack, then n; (stacks + 1,)."""
        return torch.tensor([0, *(stack.count for stack in self.stacks)]).cumsum(0)

    @cached_property
    def stack_numbers(self) -> Tensor:
        """Index of each network's stack, (n,)."""
        return torch.arange(len(self.stacks)).repeat_interleave(self.offsets.diff())

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def filter(self, is_kept: Callable[[NetworkStack], bool]) -> "NetworkDataset":
        """The stacks for which `is_kept` is true."""
        kept = list(map(is_kept, self.stacks))
        mask = torch.tensor(kept)[self.stack_numbers]
        return NetworkDataset(list(compress(self.stacks, kept)), self._columns_at(mask))

    def subset(self, count: int | None) -> "NetworkDataset":
        """`count` networks at equal distances, so that every architecture keeps its
        share; None for all."""
        if count is None or count >= len(self):
            return self
        index = torch.arange(count) * len(self) // count
        _, stacks = self._selected(index)
        return NetworkDataset(stacks, self._columns_at(index))

    def apply(
        self, model: Callable[[Sequence[NetworkStack]], Tensor], index: Tensor
    ) -> Tensor:
        """A model's outputs for the networks of an index, (k,) -> (k, *)."""
        positions, stacks = self._selected(index)
        return model(stacks)[positions.argsort()]

    def batch_indices(self, size: int, *, seed: int, step: int) -> Tensor:
        """Indices of the networks of a training step, (size,).

        Every epoch has a new order, of blocks of up to `BLOCK_SIZE` networks of one
        architecture, so that a batch has few architectures.

        Raises ValueError if size is not in 1..n.
        """
        if not 1 <= size <= len(self):
            raise ValueError(f"batch: expected 1 to {len(self)} networks; got {size}")
        epoch, position = divmod(step, len(self) // size)
        order = _epoch_order(tuple(self.offsets.tolist()), derive_seed(seed, epoch))
        return order[position * size : (position + 1) * size]

    def _selected(self, index: Tensor) -> tuple[Tensor, list[NetworkStack]]:
        """Positions of networks in the index, (k,), and the networks, by stack."""
        numbers = self.stack_numbers[index]
        positions, stacks = [], []
        for number in numbers.unique().tolist():
            of_stack = (numbers == number).nonzero().squeeze(1)
            within = index[of_stack] - self.offsets[number]
            positions.append(of_stack)
            stacks.append(self.stacks[number].select(within))
        return torch.cat(positions), stacks

    def _columns_at(self, index: Tensor) -> dict[str, Tensor]:
        return {key: value[index] for key, value in self.columns.items()}


@lru_cache(maxsize=4)
def _epoch_order(offsets: tuple[int, ...], seed: int) -> Tensor:
    """A random order of all networks, in blocks of `BLOCK_SIZE` of one architecture."""
    generator = torch.Generator().manual_seed(seed)
    blocks: list[Tensor] = []
    for start, end in pairwise(offsets):
        networks = start + torch.randperm(end - start, generator=generator)
        blocks += networks.split(BLOCK_SIZE)
    order = torch.randperm(len(blocks), generator=generator).tolist()
    return torch.cat([blocks[number] for number in order])
