"""Aggregated messages to the neurons of a graph, in one round."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ngopt.metanets.layers.aggregation import Aggregate, Incoming

# Bytes of a piece of an arena. Pieces of this size get pages of their own from malloc,
# which returns them to the system when they are freed.
CHUNK = 1 << 25


class Arena:
    """Memory for results that outlive the temporaries from which they are computed.

    A small result between large temporaries prevents malloc from reusing their memory:
    the heap of a step of DenseNet-121 grew by 800 MiB around 120 MiB of messages.
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


def merged(
    before: Aggregate | None, messages: Aggregate, arena: Arena | None
) -> Aggregate:
    """Messages with those before, which are in the same arena.

    arena: where the result is stored. None leaves it in place, as autograd requires.
    """
    both = messages if before is None else before.merged(messages)
    return both if arena is None else arena.copied(both, before)


def add_to_group(parts: list[Incoming], new: Incoming, arena: Arena | None) -> None:
    """Adds the messages of a block to those that a group has so far.

    Messages to a whole group are merged, in the memory of the first ones; others stay
    apart.
    """
    is_whole = new.index is None
    if is_whole and parts and parts[0].index is None:
        both = merged(parts[0].messages, new.messages, arena)
        parts[0] = Incoming(both, None)
    else:
        stored = merged(None, new.messages, arena)
        parts.insert(0 if is_whole else len(parts), Incoming(stored, new.index))
