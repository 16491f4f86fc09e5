"""MessageStatistics that reach the neurons of a group, and their statistics over all that come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

Axes = tuple[int, int]

# Of messages (groups, n_target, n_source, tiles, *batch, width),
# what is reduced for the targets and the sources.
TO_TARGETS: Axes = (2, 3)
TO_SOURCES: Axes = (1, 3)


class Aggregate(Protocol):
    """What a layer keeps of the messages to some neurons; it can be continued."""

    def joined(self, other: Self) -> Self:
        """Of the same neurons, from both sets of messages."""
        ...

    def beside(self, others: Sequence[Self]) -> Self:
        """Of neurons that follow each other."""
        ...


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
    def of(cls, degree: int, statistics: Sequence[Tensor]) -> MessageStatistics:
        """Of so many messages to each neuron. statistics: mean and the others,
        with the batch inside."""
        return cls(degree, *map(by_neuron, statistics))

    def joined(self, other: MessageStatistics) -> MessageStatistics:
        """Of two sets of messages to the same neurons, each at least one (Chan et al.
        1983)."""
        degree = self.degree + other.degree
        share = other.degree / degree
        step = other.mean - self.mean
        within = torch.lerp(self.var, other.var, share)
        return MessageStatistics(
            degree,
            self.mean + step * share,
            within + step.square() * (share * (1 - share)),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    def of_neurons(self, some: slice) -> MessageStatistics:
        """Those of some of the neurons."""
        degree = self.degree[some] if isinstance(self.degree, Tensor) else self.degree
        return MessageStatistics(degree, *(column[..., some, :] for column in self[1:]))

    def beside(self, others: Sequence[MessageStatistics]) -> MessageStatistics:
        """Of neurons that follow each other; all have the same degree."""
        if not others:
            return self
        columns = zip(self[1:], *(other[1:] for other in others), strict=True)
        return MessageStatistics(
            self.degree, *(torch.cat(column, -2) for column in columns)
        )


def by_neuron(reduced: Tensor) -> Tensor:
    """(groups, a, b, tiles, *batch, width), all but one of a, b and tiles 1 -> (*batch,
    n, width)."""
    return batch_outside(reduced).flatten(-5, -2)


def batch_outside(edges: Tensor) -> Tensor:
    """(groups, a, b, tiles, *batch, width) -> (*batch, groups, a, b, tiles, width),
    without a copy."""
    batch = edges.dim() - 5
    return (
        edges.movedim(list(range(4, 4 + batch)), list(range(batch))) if batch else edges
    )


Kept = TypeVar("Kept", bound=Aggregate)


class Incoming(NamedTuple, Generic[Kept]):
    """MessageStatistics of one block to the neurons of a group; index: which, (n,), None for
    all."""

    messages: Kept
    index: Tensor | None


def gathered(
    parts: Sequence[Incoming[MessageStatistics]], node: Tensor
) -> MessageStatistics:
    """Statistics over the messages of several blocks, for every neuron of a group.

    node: (*batch, n, width). Where none comes, the degree is 0 and statistics are 0.
    """
    if len(parts) == 1 and parts[0].index is None:
        return parts[0].messages
    if all(part.index is None for part in parts):
        return reduce(MessageStatistics.joined, [part.messages for part in parts])
    return _by_index(parts, node)


def _by_index(
    parts: Sequence[Incoming[MessageStatistics]], node: Tensor
) -> MessageStatistics:
    """The same where blocks name neurons, some of them perhaps more than once."""
    n = node.shape[-2]
    degrees, *columns = (
        torch.cat(column, -2) for column in zip(*map(_columns, parts), strict=True)
    )
    index = joined_index(parts, n, node.device)
    degree = node.new_zeros(n, 1).index_add(0, index, degrees)
    share = degrees / degree.index_select(0, index)
    means, variances, lows, highs = columns

    def total(rows: Tensor) -> Tensor:
        return added(share * rows, index, n)

    mean = total(means)
    far = means - mean.index_select(-2, index)
    var = total(variances + far.square())
    low = extremes(lows, index, n, "amin")
    return MessageStatistics(degree, mean, var, low, extremes(highs, index, n, "amax"))


def _columns(part: Incoming[MessageStatistics]) -> list[Tensor]:
    """Degree (n, 1), mean, var, low and high of the neurons that a block names."""
    messages = part.messages
    ones = messages.mean.new_ones(messages.mean.shape[-2], 1)
    return [messages.degree * ones, *messages[1:]]


def joined_index(
    parts: Sequence[Incoming[Any]], n: int, device: torch.device
) -> Tensor:
    """Which neurons of a group of n all blocks name, one block after the other, (m,)."""
    everything = torch.arange(n, device=device)
    return torch.cat([everything if i is None else i for _, i in parts])


def added(rows: Tensor, index: Tensor, n: int) -> Tensor:
    """Rows (*batch, m, width) that an index names, summed: (*batch, n, width)."""
    shape = (*rows.shape[:-2], n, rows.shape[-1])
    return rows.new_zeros(shape).index_add(-2, index, rows)


def extremes(
    rows: Tensor, index: Tensor, n: int, which: str, nothing: float = 0.0
) -> Tensor:
    """The same, the least ("amin") or largest ("amax") of them; `nothing` where there
    are none."""
    shape = (*rows.shape[:-2], n, rows.shape[-1])
    wide = index.unsqueeze(1).expand_as(rows)
    return rows.new_full(shape, nothing).scatter_reduce(
        -2, wide, rows, which, include_self=False
    )
