"""What represents a tensor of a traced network: neurons or elements of a parameter.

And operations on their labels and numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import View

NO_NEURON, SAME_CONSTANT = 0, -1
"""Labels of entries that are no neuron; SAME_CONSTANT if a tensor is one number."""


@dataclass(frozen=True)
class Neurons:
    """A tensor of activations.

    Attributes:
        labels: For every entry the number of its node, 0 or less without one.
        is_pristine: Whether they are the outputs of a weight, or sums of such.
        is_normalised: Whether they are the output of a norm without a scale; a
            parameter that multiplies them is the scale.
        positions: The nodes of the places along a dimension, if a weight between places
            made these.
    """

    labels: Tensor
    is_pristine: bool = False
    is_normalised: bool = False
    positions: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.labels.shape


@dataclass(frozen=True)
class Elements:
    """A tensor whose entries are elements of one parameter, each perhaps times or plus
    a constant.

    layout: if they are a view of the parameter, a meta tensor with its strides and
    offset; else the flat numbers of the elements, int64.
    factors: other parameters that are multiplied with the entries or added to them, in
    the same shape, such as the norms of weight normalisation.
    """

    parameter: int
    layout: Tensor
    factors: "tuple[Elements, ...]" = ()

    @classmethod
    def whole(cls, parameter: int, shape: tuple[int, ...]) -> "Elements":
        # strides and a storage, but no memory
        return cls(parameter, torch.empty(shape, device="meta"))

    @property
    def shape(self) -> torch.Size:
        return self.layout.shape

    @property
    def numbers(self) -> Tensor:
        """Flat number of the element at every place."""
        layout = self.layout
        return places_in_memory(layout) if layout.is_meta else layout

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Elements":
        """The elements after a function that only rearranges entries."""
        old = self.layout
        layout = function(old)
        # the strides of a copy, as of a reshaped transpose, are not the parameter's
        if old.is_meta and storage_of(layout) != storage_of(old):
            layout = function(self.numbers)
        factors = tuple(other.apply(function) for other in self.factors)
        return Elements(self.parameter, layout, factors)

    def with_factors(self, others: "Iterable[Elements]") -> "Elements":
        """The same with other parameters as factors or summands."""
        return replace(self, factors=(*self.factors, *others))

    def view(self) -> View | None:
        """The tensor as a strided view; None if it is none or has an element twice."""
        layout = self.layout
        if layout.is_meta:
            strides, offset = layout.stride(), int(layout.storage_offset())
        elif not layout.numel():
            return None
        else:
            offset = int(along(layout))
            # of a single number the first itself: stride 0
            seconds = [int(along(layout, d)[:2][-1]) for d in range(layout.dim())]
            strides = tuple(second - offset for second in seconds)
            # the first entries may be strided although others are not
            expected = strided_numbers(layout.shape, strides, offset)
            # torch has no negative strides
            if min(strides, default=0) < 0 or not torch.equal(expected, layout):
                return None
        if _has_repeats(self.shape, strides):
            return None
        return View(self.parameter, tuple(self.shape), strides, offset)


@dataclass(frozen=True)
class Unknown:
    """A tensor that is not followed.

    equivariant: whether it was computed of a parameter by reductions, so that exchanged
    rows of the parameter are exchanged in it.
    layout: a meta tensor with stride 0 where entries repeat; None if all may differ.
    """

    shape: torch.Size
    equivariant: bool = False
    layout: Tensor | None = None

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Unknown":
        """The tensor after a function that only rearranges entries."""
        dense = torch.empty(self.shape, device="meta")
        old = dense if self.layout is None else self.layout
        layout = function(old.expand(self.shape))  # a view: some work in place
        return Unknown(layout.shape, self.equivariant, layout)


@dataclass(frozen=True)
class Product(Unknown):
    """A matrix (rows, columns), a product of parameters that is not multiplied out:
    neurons are multiplied with one after the other.

    terms: the names of the axes of all parameters, as in an Einstein sum. axes: those
    that are the rows, and those that are the columns.
    """

    parameters: Sequence[Any] = ()
    terms: Sequence[str] = ()
    axes: Sequence[str] = ()

    def apply(self, function: Callable[[Tensor], Tensor]) -> Unknown:
        old = torch.empty(self.shape, device="meta")
        new = function(old)
        for matrix, axes in ((old, self.axes), (old.T, self.axes[::-1])):
            if (new.shape, new.stride()) == (matrix.shape, matrix.stride()):
                return replace(self, shape=new.shape, axes=axes)
        return Unknown(new.shape)


Value = Neurons | Elements | Unknown | Tensor | Any

TRACED = (Neurons, Elements, Unknown)
"""What represents a tensor that is no constant."""


def has_any(values: Iterable[Any], types: type | tuple[type, ...]) -> bool:
    return any(isinstance(value, types) for value in values)


def not_none(*tensors: Tensor | None) -> list[Tensor]:
    return [x for x in tensors if x is not None]


def without_repeats(
    tensors: Sequence[Tensor], keep: Sequence[int] = ()
) -> list[Tensor]:
    """Tensors of one shape, of length 1 along dimensions in which all have stride 0.

    keep: dimensions that stay as they are.
    """
    narrowed = list(tensors)
    for d, size in enumerate(narrowed[0].shape):
        # all must repeat, as they keep one shape
        if d not in keep and all(t.stride(d) == 0 for t in narrowed):
            narrowed = [t.narrow(d, 0, min(1, size)) for t in narrowed]
    return narrowed


def has_one_value(constant: Tensor) -> bool:
    """Whether all entries of a tensor are the same; an empty one has none."""
    return constant.numel() > 0 and same_along(constant.flatten(), 0)


def constant_labels(constant: Tensor) -> Tensor:
    # columns of one number can be exchanged, those of different numbers cannot
    label = SAME_CONSTANT if has_one_value(constant) else NO_NEURON
    return torch.full(constant.shape, label)


def compact(labels: Tensor) -> Tensor:
    """The same labels, of length 1 along all dimensions in which they repeat."""
    (labels,) = without_repeats([labels])
    for d, size in enumerate(labels.shape):
        if size > 1 and same_along(labels, d):
            labels = labels.narrow(d, 0, 1)
    return labels


def with_zero_strides(labels: Tensor) -> Tensor:
    """The same labels, with stride 0 along all dimensions in which they repeat."""
    return compact(labels).expand(labels.shape)


def nodes_among(labels: Tensor) -> Tensor:
    """The different nodes among labels, sorted."""
    (labels,) = without_repeats([labels])
    nodes = labels.unique()
    return nodes[nodes > 0]


def lookup(labels: Tensor, table: Tensor) -> Tensor:
    """table[label] for labels of nodes; labels of no neuron stay."""
    # -1 would read the last entry
    return torch.where(labels > 0, table[labels.clamp(min=0)], labels)


def row_numbers(rows: Tensor) -> Tensor:
    """(n,), the same numbers for the same rows (n, k)."""
    _, which = rows.unique(dim=0, return_inverse=True)
    return which


def unique_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The different pairs of entries of two flat, non-negative tensors, (2, pairs) and
    sorted, and the number of the pair at each entry."""
    if _are_increasing(a):
        which = torch.arange(len(a))
        return torch.stack([a, b]), which
    # one number for each pair: unique is much slower on rows
    base = int(b.max()) + 1
    keys, which = (a * base + b).unique(return_inverse=True)
    return torch.stack([keys // base, keys % base]), which


def same_along(labels: Tensor, dim: int) -> bool:
    """Whether labels are the same at all places along a dimension."""
    first = labels.narrow(dim, 0, 1)
    if not torch.equal(first, labels.narrow(dim, -1, 1)):  # cheap, and mostly enough
        return False
    return bool((labels == first).all())


def has_duplicates(nodes: Tensor) -> bool:
    """Whether some node occurs several times."""
    nodes = nodes.flatten()
    if _are_increasing(nodes):
        return False
    return len(nodes.unique()) < len(nodes)


def _are_increasing(nodes: Tensor) -> bool:
    """Whether each node is greater than the one before: true for most layers."""
    return bool((nodes.diff() > 0).all())


def unique_in_order(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The different nodes in the order of their first occurrences, and the number of
    the node at each entry."""
    different, which = nodes.unique(return_inverse=True)
    # torch.unique sorts, and returns no first index
    order = first_indices(which, len(different)).argsort()
    rank = order.argsort()  # the inverse permutation
    return different[order], rank[which]


def first_indices(which: Tensor, count: int) -> Tensor:
    """The first index (count,) of each of 0 ... count - 1."""
    after_all = which.new_full((count,), len(which))
    return after_all.scatter_reduce(0, which, torch.arange(len(which)), "amin")


class Repeats(NamedTuple):
    """Nodes that occur several times each: how many nodes and times, and how many
    places it is to the next node and to the next occurrence of a node."""

    shape: tuple[int, int]
    strides: tuple[int, int]


def regular_repeats(nodes: Tensor) -> Repeats | None:
    """How nodes (count * times,) repeat: each in a row, or all one after the other.
    None if they repeat in another way."""
    count = nodes.unique().numel()
    times = len(nodes) // max(count, 1)
    if count * times != len(nodes):
        return None
    # 5, 5, 6, 6
    if torch.equal(nodes, nodes[::times].repeat_interleave(times)):
        return Repeats((count, times), (times, 1))
    # 5, 6, 5, 6
    if torch.equal(nodes, nodes[:count].repeat(times)):
        return Repeats((count, times), (1, count))
    return None


def distinct_rows(rows: Tensor) -> Tensor:
    """The different rows of (r, n), the first row first; one if all are the same."""
    first = rows[:1]
    if (rows == first).all():
        return first
    # unique sorts: the first row is prepended, and occurs twice
    return torch.cat([first, rows.unique(dim=0)])


def replaced_labels(labels: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Labels with new[i] in the place of old[i]."""
    table = torch.arange(1 + int(torch.cat([labels.flatten(), old]).max()))
    table[old] = new
    return lookup(labels, table)


def storage_of(tensor: Tensor) -> int:
    """Equal for tensors that share memory."""
    # data_ptr is 0 for every tensor without data
    return tensor.untyped_storage()._cdata


def _has_repeats(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a strided tensor has an element twice, as overlapping windows do."""
    reach = 0
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size <= 1:
            continue
        if stride <= reach:
            numbers = strided_numbers(shape, strides, 0)
            return len(numbers.unique()) < numbers.numel()
        reach += stride * (size - 1)
    return False


def along(numbers: Tensor, *dims: int) -> Tensor:
    """Numbers along some dimensions, at the first place of all others."""
    return numbers[tuple(slice(None) if d in dims else 0 for d in range(numbers.dim()))]


def strided_numbers(
    shape: Sequence[int], strides: Sequence[int], offset: int
) -> Tensor:
    """offset + sum of strides[d] * i[d], for every place i of a shape."""
    numbers = torch.tensor(offset)
    for size, stride in zip(shape, strides, strict=True):
        numbers = numbers[..., None] + torch.arange(size) * stride
    return numbers


def places_in_memory(tensor: Tensor) -> Tensor:
    """The place in memory of every entry of a tensor."""
    return strided_numbers(tensor.shape, tensor.stride(), int(tensor.storage_offset()))
