"""Aggregated messages to the neurons of a graph, in one round."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ngopt.metanets.layers.aggregation import Aggregate, Incoming

# Bytes of a piece of an arena. The C library maps so much on its own,
# and gives it back when it is freed.
CHUNK = 1 << 25


class Arena:
    """Memory for results that outlive the temporaries from which they are computed.

    Where they were computed, between large temporaries, they keep the C library from
    reusing that memory: the heap of a step of DenseNet-121 grew by 800 MiB around 120
    MiB of messages.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0)

    def copied(self, messages: Aggregate, out: Aggregate | None = None) -> Aggregate:
        """A copy in the arena. out: where to write it, messages of the same shapes."""
        fields: Any = messages
        targets: Any = (None,) * len(fields) if out is None else out
        return fields._make(map(self._copied, fields, targets))

    def _copied(self, value: Any, out: Tensor | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        if out is not None:
            return out.copy_(value)
        size = value.numel()
        if self._free.numel() < size or self._free.dtype != value.dtype:
            self._free = value.new_empty(max(size, CHUNK // value.itemsize))
        free = self._free[:size]
        self._free = self._free[size:]
        return free.view(value.shape).copy_(value)


class Inbox:
    """Messages to the neurons of every group, from all blocks so far.

    Messages of blocks that reach a whole group are merged, in the memory of the first
    ones; others stay apart. arena: where they are stored. Autograd needs them where
    they are: None.
    """

    def __init__(self, groups: int, arena: Arena | None):
        self.groups: list[list[Incoming]] = [[] for _ in range(groups)]
        self._arena = arena

    def add(self, group: int, messages: Aggregate, index: Tensor | None) -> None:
        """index: neurons of the group, (n,); None for all."""
        parts = self.groups[group]
        if index is None and parts and parts[0].index is None:
            before = parts[0].messages
            merged = self._stored(before.merged(messages), before)
            parts[0] = Incoming(merged, None)
        else:
            place = 0 if index is None else len(parts)
            parts.insert(place, Incoming(self._stored(messages), index))

    def _stored(self, messages: Aggregate, out: Aggregate | None = None) -> Aggregate:
        return messages if self._arena is None else self._arena.copied(messages, out)
