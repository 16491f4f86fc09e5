"""What a tensor of a traced network stands for, and operations on labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.graph.tracing.elements import Elements

NO_NEURON, SAME_CONSTANT = -1, -2
"""Labels of entries that are no neuron; the second where they are the same number as their neighbours, such as 0."""


@dataclass(frozen=True)
class Neurons:
    """A tensor of activations: for every entry the number of its node; negative where there is none."""

    labels: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.labels.shape


@dataclass(frozen=True)
class Unknown:
    """A tensor of which nothing is known but its shape.

    equivariant: whether it was computed of a parameter by reductions, so that rows exchanged there are exchanged here.
    """

    shape: torch.Size
    equivariant: bool = False


Value = Neurons | Elements | Unknown | Tensor | Any


def without_repeats(tensors: Sequence[Tensor], keep: Sequence[int] = ()) -> list[Tensor]:
    """Tensors of one shape, cut to length 1 along dimensions in which all of them only repeat (stride 0)."""
    for d in range(tensors[0].dim()):
        if d not in keep and all(t.stride(d) == 0 for t in tensors):
            tensors = [t.narrow(d, 0, min(1, t.shape[d])) for t in tensors]
    return list(tensors)


def nodes_among(labels: Tensor) -> Tensor:
    """The different nodes among labels, sorted."""
    nodes = without_repeats([labels])[0].unique()
    return nodes[nodes >= 0]


def folded(labels: Tensor) -> Tensor:
    """The same labels, with stride 0 along every dimension in which they only repeat."""
    shape = labels.shape
    (labels,) = without_repeats([labels])
    for d in range(labels.dim()):
        if labels.shape[d] > 1:
            first, second = labels.narrow(d, 0, 1), labels.narrow(d, 1, 1)
            if torch.equal(first, second) and (labels == first).all():  # the first test is cheap, and mostly enough
                labels = first
    return labels.expand(shape)


def unique_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The different pairs of entries of two flat, non-negative tensors, (2, pairs), sorted, and which each is."""
    if not a.numel():
        return torch.stack([a, b]), a
    base = int(b.max()) + 1
    keys, which = (a * base + b).unique(return_inverse=True)
    return torch.stack([keys // base, keys % base]), which


class Repeats(NamedTuple):
    """Nodes that come `times` each: the next node is `step` places further, the next time of one `time_step`."""

    count: int
    times: int
    step: int
    time_step: int

    def places(self) -> Tensor:
        """Where each node comes first, (count,)."""
        return torch.arange(self.count) * self.step

    def of(self, nodes: Tensor) -> Tensor:
        """Each node once."""
        return nodes[self.places()]


def regular_repeats(nodes: Tensor) -> Repeats | None:
    """How nodes (count * times,) repeat, one by one or all in turn; None if in another way."""
    count = nodes.unique().numel()
    times = len(nodes) // max(count, 1)
    if count * times != len(nodes):
        return None
    if torch.equal(nodes, nodes[::times].repeat_interleave(times)):
        return Repeats(count, times, times, 1)
    return Repeats(count, times, 1, count) if torch.equal(nodes, nodes[:count].repeat(times)) else None


def distinct_rows(rows: Tensor) -> Tensor:
    """The rows (r, n) that differ, the first one first; a view of it where none does."""
    if not (rows != rows[:1]).any():
        return rows[:1]
    return torch.cat([rows[:1], rows.unique(dim=0)])


def exchanged(labels: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Labels with new[i] where old[i] was."""
    table = torch.arange(int(torch.cat([labels.flatten(), old]).max()) + 1)
    table[old] = new
    return torch.where(labels >= 0, table[labels.clamp(min=0)], labels)
