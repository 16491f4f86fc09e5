"""Messages that reach the neurons of a group, block by block, and their statistics over all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.graph.core import Index


class Messages(NamedTuple):
    """Statistics of the messages that one block brings to its neurons.

    degree: messages for each neuron, a number or (n, 1). mean, var, low, high: (*batch, n, width).
    index: the neurons, None for all of the group.
    """

    degree: int | Tensor
    mean: Tensor
    var: Tensor
    low: Tensor
    high: Tensor
    index: Index

    @classmethod
    def of(cls, messages: Tensor, index: Index) -> Messages:
        """messages: (*batch, n, degree, width)."""
        mean = messages.mean(-2)
        # several times as fast as torch.var_mean over an inner axis
        var = (messages - mean.unsqueeze(-2)).square().mean(-2)
        return cls(messages.shape[-2], mean, var, messages.amin(-2), messages.amax(-2), index)


def join(parts: Sequence[Messages], node: Tensor) -> Messages:
    """Statistics over the messages of several blocks, for every neuron of a group."""

    def spread(part: Messages, value: Tensor) -> Tensor:
        """(*batch, neurons of the part, width) -> (*batch, n, width), zeros elsewhere."""
        if part.index is None:
            return value
        zeros = value.new_zeros(*value.shape[:-2], node.shape[-2], value.shape[-1])
        return zeros.index_copy(-2, index_tensor(part.index, value), value)

    covered = [spread(part, torch.ones_like(part.mean[..., :1])) for part in parts]
    degree = sum(part.degree * c for part, c in zip(parts, covered, strict=True))
    assert isinstance(degree, Tensor)
    share = [part.degree * c / degree.clamp(min=1) for part, c in zip(parts, covered, strict=True)]
    means = [spread(part, part.mean) for part in parts]
    mean = torch.stack([s * m for s, m in zip(share, means, strict=True)]).sum(0)
    var = torch.stack(
        [s * (spread(p, p.var) + (m - mean).square()) for p, s, m in zip(parts, share, means, strict=True)]
    ).sum(0)
    low = torch.stack([torch.where(c > 0, spread(p, p.low), torch.inf) for p, c in zip(parts, covered, strict=True)])
    high = torch.stack([torch.where(c > 0, spread(p, p.high), -torch.inf) for p, c in zip(parts, covered, strict=True)])
    reached = degree > 0
    return Messages(
        degree,
        mean,
        var,
        torch.where(reached, low.amin(0), 0.0),
        torch.where(reached, high.amax(0), 0.0),
        None,
    )


def select_neurons(nodes: Tensor, index: Index) -> Tensor:
    """(*batch, n, width) -> the rows that a block names."""
    return nodes if index is None else nodes.index_select(-2, index_tensor(index, nodes))


def index_tensor(index: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(index, device=like.device)
