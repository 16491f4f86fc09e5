"""Messages that reach the neurons of a group, and their statistics over all that come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

Axes = tuple[int, int]

# Of messages (groups, n_target, n_source, tiles, *batch, width),
# what is reduced for the targets and the sources.
TO_TARGETS: Axes = (2, 3)
TO_SOURCES: Axes = (1, 3)


class Reduced(Protocol):
    """What a layer keeps of the messages to some neurons; it can be continued."""

    def joined(self, other: Self) -> Self:
        """Of the same neurons, from both sets of messages."""
        ...

    def beside(self, others: Sequence[Self]) -> Self:
        """Of neurons that follow each other."""
        ...


class Messages(NamedTuple):
    """Statistics of the messages to some neurons.

    degree: messages for each neuron, a number or (n, 1). mean, var, low, high: (*batch, n, width).
    """

    degree: int | Tensor
    mean: Tensor
    var: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, degree: int, statistics: Sequence[Tensor]) -> Messages:
        """Of so many messages to each neuron. statistics: mean and the others,
        with the batch inside."""
        return cls(degree, *map(by_neuron, statistics))

    def joined(self, other: Messages) -> Messages:
        """Of two sets of messages to the same neurons, each at least one (Chan et al. 1983)."""
        degree = self.degree + other.degree
        share = other.degree / degree
        step = other.mean - self.mean
        within = torch.lerp(self.var, other.var, share)
        return Messages(
            degree,
            self.mean + step * share,
            within + step.square() * (share * (1 - share)),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    def of_neurons(self, some: slice) -> Messages:
        """Those of some of the neurons."""
        degree = (
            self.degree[some]
            if isinstance(self.degree, Tensor)
            else self.degree
        )
        return Messages(degree, *(column[..., some, :] for column in self[1:]))

    def beside(self, others: Sequence[Messages]) -> Messages:
        """Of neurons that follow each other; all have the same degree."""
        if not others:
            return self
        columns = zip(self[1:], *(other[1:] for other in others), strict=True)
        return Messages(
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
        edges.movedim(list(range(4, 4 + batch)), list(range(batch)))
        if batch
        else edges
    )


Kept = TypeVar("Kept", bound=Reduced)


class Incoming(NamedTuple, Generic[Kept]):
    """Messages of one block to the neurons of a group; index: which, (n,), None for all."""

    messages: Kept
    index: Tensor | None


def spread(
    value: Tensor, index: Tensor | None, n: int, nothing: float = 0.0
) -> Tensor:
    """(*batch, neurons that the index names, width) -> (*batch, n, width)."""
    if index is None:
        return value
    empty = value.new_full((*value.shape[:-2], n, value.shape[-1]), nothing)
    return empty.index_copy(-2, index, value)


def gathered(parts: Sequence[Incoming[Messages]], node: Tensor) -> Messages:
    """Statistics over the messages of several blocks, for every neuron of a group.

    node: (*batch, n, width). Where none comes, the degree is 0 and statistics are 0.
    """
    if len(parts) == 1 and parts[0].index is None:
        return parts[0].messages
    if all(part.index is None for part in parts):
        return reduce(Messages.joined, [part.messages for part in parts])
    n, one = node.shape[-2], node.new_ones(1, 1)
    counts = [
        part.degree * spread(one.expand(part.mean.shape[-2], 1), index, n)
        for part, index in parts
    ]
    degree = torch.stack(counts).sum(0)
    shares = [count / degree.clamp(min=1) for count in counts]
    means = [spread(part.mean, index, n) for part, index in parts]
    weighted = [s * m for s, m in zip(shares, means, strict=True)]
    mean = torch.stack(weighted).sum(0)
    rows = zip(parts, shares, means, strict=True)
    within = [
        s * (spread(p.var, i, n) + (m - mean).square()) for (p, i), s, m in rows
    ]
    reached = degree > 0

    def extreme(values: Sequence[Tensor], nothing: float) -> Tensor:
        rows = zip(counts, values, parts, strict=True)
        some = [
            torch.where(c > 0, spread(v, part.index, n), nothing)
            for c, v, part in rows
        ]
        stacked = torch.stack(some)
        best = stacked.amin(0) if nothing > 0 else stacked.amax(0)
        return torch.where(reached, best, 0.0)

    low = extreme([part.low for part, _ in parts], torch.inf)
    high = extreme([part.high for part, _ in parts], -torch.inf)
    return Messages(degree, mean, torch.stack(within).sum(0), low, high)
