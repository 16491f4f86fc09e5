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


def present(*tensors: Tensor | None) -> list[Tensor]:
    """Those that there are."""
    return [x for x in tensors if x is not None]


def without_repeats(tensors: Sequence[Tensor], keep: Sequence[int] = ()) -> list[Tensor]:
    """Tensors of one shape, of length 1 along dimensions in which all repeat (stride 0)."""
    found = list(tensors)
    for d, size in enumerate(found[0].shape):
        # all must repeat, as they keep one shape
        strides = {t.stride(d) for t in found}
        if strides == {0} and d not in keep:
            length = min(1, size)
            found = [t.narrow(d, 0, length) for t in found]
    return found


def is_one_number(constant: Tensor) -> bool:
    """Whether all entries of a tensor are the same; an empty one has none."""
    return constant.numel() > 0 and same_along(constant.flatten(), 0)


def constant_labels(constant: Tensor) -> Tensor:
    """Labels of a tensor that is no neurons."""
    # columns of one constant are twins of each other, those of different ones are not
    label = SAME_CONSTANT if is_one_number(constant) else NO_NEURON
    return torch.full(constant.shape, label)


def compact(labels: Tensor) -> Tensor:
    """The same labels, of length 1 along every dimension in which they only repeat."""
    (labels,) = without_repeats([labels])
    for d, size in enumerate(labels.shape):
        if size > 1 and same_along(labels, d):
            labels = labels.narrow(d, 0, 1)
    return labels


def folded(labels: Tensor) -> Tensor:
    """The same labels, with stride 0 along every dimension in which they only repeat."""
    own = compact(labels)
    return own.expand(labels.shape)


def nodes_among(labels: Tensor) -> Tensor:
    """The different nodes among labels, sorted."""
    (labels,) = without_repeats([labels])
    nodes = labels.unique()
    return nodes[nodes > 0]


def looked_up(labels: Tensor, table: Tensor) -> Tensor:
    """table[label] for labels of nodes; those of no neuron stay as they are."""
    # -1 would read the last entry
    places = labels.clamp(min=0)
    return torch.where(labels > 0, table[places], labels)


def unique_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The different pairs of entries of two flat, non-negative tensors, and which each is.

    Pairs are sorted, (2, pairs).
    """
    if _are_increasing(a):
        which = torch.arange(len(a))
        return torch.stack([a, b]), which
    # one number for each pair: unique is much slower on rows
    base = int(b.max()) + 1
    keys = a * base + b
    keys, which = keys.unique(return_inverse=True)
    first = keys // base
    second = keys % base
    return torch.stack([first, second]), which


def same_along(labels: Tensor, dim: int) -> bool:
    """Whether labels are the same at all places along a dimension."""
    first = labels.narrow(dim, 0, 1)
    last = labels.narrow(dim, -1, 1)
    if not torch.equal(first, last):  # cheap, and mostly enough
        return False
    return bool((labels == first).all())


def repeats_any(nodes: Tensor) -> bool:
    """Whether one of the nodes comes several times."""
    nodes = nodes.flatten()
    if _are_increasing(nodes):
        return False
    different = nodes.unique()
    return len(different) < len(nodes)


def _are_increasing(nodes: Tensor) -> bool:
    """Whether each node is greater than the one before: cheap, and so with most layers."""
    steps = nodes.diff()
    return bool((steps > 0).all())


def in_order(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The different nodes, in the order in which they first come, and which of them is where."""
    found, which = nodes.unique(return_inverse=True)
    # unique sorts, and torch's does not say where an entry first comes
    first = first_places(which, len(found))
    order = first.argsort()
    rank = order.argsort()  # the inverse permutation
    return found[order], rank[which]


def first_places(which: Tensor, count: int) -> Tensor:
    """Where each of 0 ... count - 1 first comes, (count,)."""
    length = len(which)
    places = torch.arange(length)
    behind = which.new_full((count,), length)
    return behind.scatter_reduce(0, which, places, "amin")


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
        nodes = torch.arange(self.count)
        times = torch.arange(self.times)
        return nodes[:, None] * self.step + times * self.time_step


def regular_repeats(nodes: Tensor) -> Repeats | None:
    """How nodes (count * times,) repeat, one by one or all in turn; None if in another way."""
    length = len(nodes)
    count = nodes.unique().numel()
    times = length // max(count, 1)
    if count * times != length:
        return None
    # 5, 5, 6, 6
    one_by_one = nodes[::times].repeat_interleave(times)
    if torch.equal(nodes, one_by_one):
        return Repeats(count, times, step=times, time_step=1)
    # 5, 6, 5, 6
    in_turn = nodes[:count].repeat(times)
    if torch.equal(nodes, in_turn):
        return Repeats(count, times, step=1, time_step=count)
    return None


def distinct_rows(rows: Tensor) -> Tensor:
    """The rows (r, n) that differ, the first one first; a view of it where none does."""
    first = rows[:1]
    if (rows == first).all():
        return first
    # unique sorts: the first row is put ahead, and comes twice
    different = rows.unique(dim=0)
    return torch.cat([first, different])


def exchanged(labels: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Labels with new[i] where old[i] was."""
    flat = labels.flatten()
    known = torch.cat([flat, old])
    size = int(known.max()) + 1
    table = torch.arange(size)
    table[old] = new
    return looked_up(labels, table)
