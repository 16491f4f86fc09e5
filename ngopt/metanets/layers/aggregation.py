"""Messages aggregated at the neurons of a group, over all blocks that reach them in one
round."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

Axes = tuple[int, int]

# Of messages (groups, n_target, n_source, tiles, *batch, width),
# what is reduced for the targets and the sources.
TO_TARGETS: Axes = (2, 3)
TO_SOURCES: Axes = (1, 3)

# Bytes of a piece of an arena. Pieces of this size get pages of their own from malloc,
# which returns them to the system when they are freed.
CHUNK = 1 << 25


class Aggregate(Protocol):
    """Aggregated messages to some neurons, to which others can be added."""

    def merged(self, other: Self) -> Self:
        """Of both sets of messages, to the same neurons."""
        ...

    @classmethod
    def scattered(cls, several: Sequence[Self], index: Tensor, n: int) -> Self:
        """Of all messages to n neurons. index: neurons of all sets, one set after the
        other, (m,). Without messages to a neuron values are 0, as is the degree."""
        ...


class Incoming(NamedTuple):
    """The `Aggregate` of one block at neurons of a group; index: (n,), None for all."""

    messages: Any
    index: Tensor | None


class MessageStatistics(NamedTuple):
    """Statistics of the messages to some neurons.

    degree: messages for each neuron, a number or (n, 1). mean, var, low, high: (*batch,
    n, width).
    """

    degree: int | Tensor
    mean: Tensor
    var: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(
        cls, edges: Tensor, axes: Axes, statistics: Iterable[Tensor]
    ) -> "MessageStatistics":
        """Those of messages along edges (groups, n_target, n_source, tiles, *).

        statistics: mean and the others, over two axes, with the batch inside.
        """
        degree = edges.shape[axes[0]] * edges.shape[axes[1]]
        return cls(degree, *map(by_neuron, statistics))

    def merged(self, other: "MessageStatistics") -> "MessageStatistics":
        """Of both sets of messages, each at least one (Chan et al. 1983)."""
        degree = self.degree + other.degree
        share = other.degree / degree
        step = other.mean - self.mean
        mean = self.mean + step * share
        within = torch.lerp(self.var, other.var, share)
        var = within + step.square() * (share * (1 - share))
        low = torch.minimum(self.low, other.low)
        high = torch.maximum(self.high, other.high)
        return MessageStatistics(degree, mean, var, low, high)

    @classmethod
    def scattered(
        cls, several: "Sequence[MessageStatistics]", index: Tensor, n: int
    ) -> "MessageStatistics":
        rows = []
        for one in several:
            ones = one.mean.new_ones(one.mean.shape[-2], 1)
            rows.append([one.degree * ones, *one[1:]])
        degrees, means, variances, lows, highs = concatenated_columns(rows)
        degree = means.new_zeros(n, 1).index_add(0, index, degrees)
        share = degrees / degree.index_select(0, index)
        mean = scatter_sum(share * means, index, n)
        step = means - mean.index_select(-2, index)
        var = scatter_sum(share * (variances + step.square()), index, n)
        low = scatter_extreme(lows, index, n, "amin")
        high = scatter_extreme(highs, index, n, "amax")
        return cls(degree, mean, var, low, high)

    def of_neurons(self, neurons: slice) -> "MessageStatistics":
        degree, *others = self
        if isinstance(degree, Tensor):
            degree = degree[neurons]
        return MessageStatistics(degree, *(x[..., neurons, :] for x in others))


def of_consecutive_neurons(parts: Iterable[Any]) -> Any:
    """The `Aggregate` at all neurons; a number, such as the degree, is equal in all."""
    first, *others = parts
    if not others:
        return first
    fields = []
    for values in zip(first, *others, strict=True):
        is_number = not isinstance(values[0], Tensor)
        fields.append(values[0] if is_number else torch.cat(values, -2))
    return first._make(fields)


def aggregated(parts: Sequence[Incoming], node: Tensor) -> Any:
    """The `Aggregate` over several blocks, at least one, for every neuron of a group.

    node: (*batch, n, width).
    """
    messages = [part.messages for part in parts]
    kind = type(messages[0])
    if all(part.index is None for part in parts):
        return reduce(kind.merged, messages)
    n = node.shape[-2]
    everything = torch.arange(n, device=node.device)
    index = torch.cat([everything if i is None else i for _, i in parts])
    return kind.scattered(messages, index, n)


def concatenated_columns(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """First tensors of all rows concatenated along neurons, second ones, and so on."""
    return [torch.cat(column, -2) for column in zip(*rows, strict=True)]


def by_neuron(reduced: Tensor) -> Tensor:
    """(groups, a, b, tiles, *batch, width), all but one of a, b and tiles 1 -> (*batch,
    n, width)."""
    return batch_outside(reduced).flatten(-5, -2)


def batch_outside(edges: Tensor) -> Tensor:
    """(groups, a, b, tiles, *batch, width) -> (*batch, groups, a, b, tiles, width),
    without a copy."""
    batch = list(range(edges.dim() - 5))
    if not batch:
        return edges
    return edges.movedim(list(range(4, 4 + len(batch))), batch)


def scatter_sum(rows: Tensor, index: Tensor, n: int) -> Tensor:
    """Sums of the rows (*batch, m, width) of each index, (*batch, n, width)."""
    *batch, _, width = rows.shape
    return rows.new_zeros(*batch, n, width).index_add(-2, index, rows)


def scatter_extreme(
    rows: Tensor, index: Tensor, n: int, reduction: str, empty: float = 0.0
) -> Tensor:
    """Minima ("amin") or maxima ("amax") of the rows of each index; `empty` without
    rows."""
    *batch, _, width = rows.shape
    wide = index.unsqueeze(1).expand_as(rows)
    out = rows.new_full((*batch, n, width), empty)
    return out.scatter_reduce(-2, wide, rows, reduction, include_self=False)


class Arena:
    """Memory for results that outlive the temporaries from which they are computed.

    A small result between large temporaries prevents malloc from reusing their memory:
    the heap of a step of DenseNet-121 grew by 800 MiB around 120 MiB of messages.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0)

    def copied(self, messages: Aggregate, out: Aggregate | None) -> Aggregate:
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
    total = messages if before is None else before.merged(messages)
    return total if arena is None else arena.copied(total, before)


def add_to_group(parts: list[Incoming], new: Incoming, arena: Arena | None) -> None:
    """Adds the messages of a block to those that a group has so far.

    Messages to a whole group are merged, in the memory of the first ones; others stay
    apart.
    """
    is_whole = new.index is None
    if is_whole and parts and parts[0].index is None:
        parts[0] = Incoming(merged(parts[0].messages, new.messages, arena), None)
    else:
        stored = merged(None, new.messages, arena)
        parts.insert(0 if is_whole else len(parts), Incoming(stored, new.index))
