"""What reaches the neurons of a graph in one round of messages, joined as it comes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ngopt.metanets.layers.aggregation import Aggregate, Incoming

# Bytes of a piece of an arena. The C library maps so much on its own,
# and gives it back when it is freed.
CHUNK = 1 << 25


class Arena:
    """Memory for results that stay while what they are made of goes.

    Left where they were made, between large temporaries, they keep the C library from
    using these places again: the heap of a step of DenseNet-121 grew by 800 MiB around
    120 MiB of messages.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0)

    def kept(self, messages: Aggregate, before: Aggregate | None = None) -> Aggregate:
        """The same in the arena, over messages that are there, whose shapes are the
        same."""
        columns: Any = messages
        places: Any = (None,) * len(columns) if before is None else before
        return columns._make(map(self._placed, columns, places))

    def _placed(self, value: Any, place: Tensor | None) -> Any:
        """A tensor's values, at a place if there is one; others as they are."""
        if not isinstance(value, Tensor):
            return value
        if place is not None:
            return place.copy_(value)
        size = value.numel()
        if self._free.numel() < size or self._free.dtype != value.dtype:
            self._free = value.new_empty(max(size, CHUNK // value.itemsize))
        free = self._free[:size]
        self._free = self._free[size:]
        return free.view(value.shape).copy_(value)


class Inbox:
    """MessageStatistics to the neurons of every group, from all blocks so far.

    Those of blocks that reach a whole group are joined, in the places of the first
    ones; others stay apart. arena: where they are kept; without one, as where autograd
    needs them, they stay where they are.
    """

    def __init__(self, groups: int, arena: Arena | None):
        self.parts: list[list[Incoming]] = [[] for _ in range(groups)]
        self._arena = arena

    def add(self, group: int, messages: Aggregate, index: Tensor | None) -> None:
        """MessageStatistics to the neurons of a group that an index names; None for all."""
        parts = self.parts[group]
        if index is None and parts and parts[0].index is None:
            before = parts[0].messages
            parts[0] = Incoming(self._kept(before.joined(messages), before), None)
        else:
            place = 0 if index is None else len(parts)
            parts.insert(place, Incoming(self._kept(messages), index))

    def _kept(self, messages: Aggregate, before: Aggregate | None = None) -> Aggregate:
        return messages if self._arena is None else self._arena.kept(messages, before)
