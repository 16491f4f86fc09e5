"""Messages that reach the neurons of a group, and their statistics over all that come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


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
    def of(cls, messages: Tensor, axes: tuple[int, int]) -> Messages:
        """messages: (*batch, groups, a, b, tiles, width), of which two axes are reduced."""
        mean = messages.mean(axes, keepdim=True)
        # several times as fast as torch.var_mean over inner axes
        var = (messages - mean).square().mean(axes)
        degree = messages.shape[axes[0]] * messages.shape[axes[1]]
        low, high = messages.amin(axes), messages.amax(axes)
        found = (mean.squeeze(axes), var, low, high)
        return cls(degree, *(x.flatten(-3, -2) for x in found))


def joined(first: Messages, second: Messages) -> Messages:
    """Of two sets of messages to the same neurons, each at least one (Chan et al. 1983)."""
    degree = first.degree + second.degree
    share = second.degree / degree
    step = second.mean - first.mean
    within = torch.lerp(first.var, second.var, share)
    return Messages(
        degree,
        first.mean + step * share,
        within + step.square() * (share * (1 - share)),
        torch.minimum(first.low, second.low),
        torch.maximum(first.high, second.high),
    )


def side_by_side(parts: Sequence[Messages]) -> Messages:
    """Of neurons that follow each other; all have the same degree."""
    if len(parts) == 1:
        return parts[0]
    columns = [torch.cat(column, -2) for column in zip(*(part[1:] for part in parts), strict=True)]
    return Messages(parts[0].degree, *columns)


class Incoming(NamedTuple):
    """Messages of one block to the neurons of a group; index: which, (n,), None for all."""

    messages: Messages
    index: Tensor | None


def gathered(parts: Sequence[Incoming], node: Tensor) -> Messages:
    """Statistics over the messages of several blocks, for every neuron of a group.

    node: (*batch, n, width). Where none comes, the degree is 0 and statistics are 0.
    """
    if len(parts) == 1 and parts[0].index is None:
        return parts[0].messages
    if all(part.index is None for part in parts):
        return reduce(joined, [part.messages for part in parts])

    def spread(value: Tensor, index: Tensor | None) -> Tensor:
        """(*batch, neurons of the part, width) -> (*batch, n, width), zeros elsewhere."""
        if index is None:
            return value
        zeros = value.new_zeros(*value.shape[:-2], node.shape[-2], value.shape[-1])
        return zeros.index_copy(-2, index, value)

    one = node.new_ones(1, 1)
    counts = [part.degree * spread(one.expand(part.mean.shape[-2], 1), index) for part, index in parts]
    degree = torch.stack(counts).sum(0)
    shares = [count / degree.clamp(min=1) for count in counts]
    means = [spread(part.mean, index) for part, index in parts]
    mean = torch.stack([s * m for s, m in zip(shares, means, strict=True)]).sum(0)
    rows = zip(parts, shares, means, strict=True)
    within = [s * (spread(p.var, i) + (m - mean).square()) for (p, i), s, m in rows]
    reached = degree > 0

    def extreme(values: Sequence[Tensor], nothing: float) -> Tensor:
        rows = zip(counts, values, parts, strict=True)
        some = [torch.where(c > 0, spread(v, part.index), nothing) for c, v, part in rows]
        stacked = torch.stack(some)
        best = stacked.amin(0) if nothing > 0 else stacked.amax(0)
        return torch.where(reached, best, 0.0)

    low = extreme([part.low for part, _ in parts], torch.inf)
    high = extreme([part.high for part, _ in parts], -torch.inf)
    return Messages(degree, mean, torch.stack(within).sum(0), low, high)
