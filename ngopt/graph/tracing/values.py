"""What a tensor of a traced network stands for, and operations on labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.graph.tracing.elements import Elements

NO_NEURON, SAME_CONSTANT = 0, -1
"""Labels of entries that are no neuron; the second of those that are one number, such as 0."""


@dataclass(frozen=True)
class Neurons:
    """A tensor of activations: for every entry the number of its node, 0 or less without one.

    is_pristine: whether nothing but a weight was applied to make them.
    is_normalised: whether they come from a norm without a scale; a parameter that follows is one.
    positions: nodes that the places along a dimension are, where a weight between places made them.
    """

    labels: Tensor
    is_pristine: bool = False
    is_normalised: bool = False
    positions: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.labels.shape


@dataclass(frozen=True)
class Unknown:
    """A tensor of which nothing is known but its shape.

    equivariant: whether it was computed of a parameter by reductions, so that rows exchanged there
    are exchanged here.
    """

    shape: torch.Size
    equivariant: bool = False


Value = Neurons | Elements | Unknown | Tensor | Any


def without_repeats(tensors: Sequence[Tensor], keep: Sequence[int] = ()) -> list[Tensor]:
    """Tensors of one shape, of length 1 along dimensions in which all repeat (stride 0)."""
    for d in range(tensors[0].dim()):
        if d not in keep and all(t.stride(d) == 0 for t in tensors):
            tensors = [t.narrow(d, 0, min(1, t.shape[d])) for t in tensors]
    return list(tensors)


def compact(labels: Tensor) -> Tensor:
    """The same labels, of length 1 along every dimension in which they only repeat."""
    (labels,) = without_repeats([labels])
    for d in range(labels.dim()):
        if labels.shape[d] > 1:
            first, second = labels.narrow(d, 0, 1), labels.narrow(d, 1, 1)
            # the first test is cheap, and mostly enough
            if torch.equal(first, second) and (labels == first).all():
                labels = first
    return labels


def folded(labels: Tensor) -> Tensor:
    """The same labels, with stride 0 along every dimension in which they only repeat."""
    return compact(labels).expand(labels.shape)


def nodes_among(labels: Tensor) -> Tensor:
    """The different nodes among labels, sorted."""
    nodes = without_repeats([labels])[0].unique()
    return nodes[nodes > 0]


def unique_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The different pairs of entries of two flat, non-negative tensors, and which each is.

    Pairs are sorted, (2, pairs).
    """
    if _are_increasing(a):
        return torch.stack([a, b]), torch.arange(len(a))
    base = int(b.max()) + 1
    keys, which = (a * base + b).unique(return_inverse=True)
    return torch.stack([keys // base, keys % base]), which


def same_along(labels: Tensor, dim: int) -> bool:
    """Whether labels are the same at all places along a dimension."""
    return bool((labels == labels.narrow(dim, 0, 1)).all())


def repeats_any(nodes: Tensor) -> bool:
    """Whether one of the nodes comes several times."""
    nodes = nodes.flatten()
    return not _are_increasing(nodes) and nodes.unique().numel() < len(nodes)


def _are_increasing(nodes: Tensor) -> bool:
    """Whether each node is greater than the one before: cheap, and so with most layers."""
    return bool((nodes[1:] > nodes[:-1]).all())


def in_order(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The different nodes, in the order in which they first come, and which of them is where."""
    found, which = nodes.unique(return_inverse=True)
    places = torch.arange(len(nodes))
    first = torch.full_like(found, len(nodes)).scatter_reduce(0, which, places, "amin")
    order = first.argsort()
    return found[order], order.argsort()[which]


class Repeats(NamedTuple):
    """Nodes that come `times` each.

    The next node is `step` places further, the next time of one `time_step`.
    """

    count: int
    times: int
    step: int
    time_step: int

    def places(self) -> Tensor:
        """Where each node comes, (count, times)."""
        first = torch.arange(self.count) * self.step
        return first[:, None] + torch.arange(self.times) * self.time_step


def regular_repeats(nodes: Tensor) -> Repeats | None:
    """How nodes (count * times,) repeat, one by one or all in turn; None if in another way."""
    count = nodes.unique().numel()
    times = len(nodes) // max(count, 1)
    if count * times != len(nodes):
        return None
    if torch.equal(nodes, nodes[::times].repeat_interleave(times)):
        return Repeats(count, times, times, 1)
    if torch.equal(nodes, nodes[:count].repeat(times)):
        return Repeats(count, times, 1, count)
    return None


def distinct_rows(rows: Tensor) -> Tensor:
    """The rows (r, n) that differ, the first one first; a view of it where none does."""
    if not (rows != rows[:1]).any():
        return rows[:1]
    return torch.cat([rows[:1], rows.unique(dim=0)])


def exchanged(labels: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Labels with new[i] where old[i] was."""
    table = torch.arange(int(torch.cat([labels.flatten(), old]).max()) + 1)
    table[old] = new
    return torch.where(labels > 0, table[labels.clamp(min=0)], labels)
