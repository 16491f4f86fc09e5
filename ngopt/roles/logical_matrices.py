"""The matrices inside parameters, for any optimizer: `ngopt.matrices`."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ngopt.graph.build import build_graph
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.roles.from_graph import roles_of
from ngopt.roles.matrices import Ends, MatrixBlock
from ngopt.roles.neuron_usage import usage


class Axis(NamedTuple):
    """Places at even distances in the memory of a parameter."""

    length: int
    stride: int


Axes = tuple[Axis, ...]
"""Nested axes, outermost first; () for a single place."""


@dataclass(frozen=True)
class MatrixStack:
    """k matrices of equal shape inside one contiguous parameter.

    Element (i, row, column) is element `offset + stride . index` of the flat parameter,
    where index has one number for each axis of `batch`, `rows` and `columns`. Of a
    complex parameter, elements are those of `torch.view_as_real`.

    Attributes:
        batch: Axes over the k matrices.
        rows: Axes over outputs; of an embedding over its dimension. Several axes are
            several heads whose rows are not neighbours.
        columns: Axes over inputs and kernel positions; of an embedding over tokens.
    """

    offset: int
    batch: Axes
    rows: Axes
    columns: Axes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, rows, columns)"""
        k, rows, columns = map(_length, (self.batch, self.rows, self.columns))
        return k, rows, columns

    @property
    def is_transposed(self) -> bool:
        """Whether rows are nearer to each other in memory than columns."""
        strides = [min((x.stride for x in axes), default=0) for axes in self._sides]
        return 0 < strides[0] < strides[1]

    @property
    def _sides(self) -> tuple[Axes, Axes]:
        return self.rows, self.columns

    def read(self, parameter: Tensor) -> Tensor:
        """The matrices (k, rows, columns) of a tensor of the parameter's shape, such as
        its gradient. They share memory with it where strides allow."""
        return self._nested(parameter).reshape(self.shape)

    def write(self, parameter: Tensor, matrices: Tensor) -> None:
        """Copies matrices (k, rows, columns) into a tensor of the parameter's shape."""
        nested = self._nested(parameter)
        nested.copy_(matrices.reshape(nested.shape))

    def _nested(self, parameter: Tensor) -> Tensor:
        """A view with one dimension for each axis."""
        elements = (
            torch.view_as_real(parameter) if parameter.is_complex() else parameter
        )
        flat = elements.view(-1)
        axes = (*self.batch, *self.rows, *self.columns)
        lengths, strides = [x.length for x in axes], [x.stride for x in axes]
        return flat.as_strided(lengths, strides, flat.storage_offset() + self.offset)

    def to_json(self) -> dict[str, Any]:
        """As numbers and lists; an axis is [length, stride]."""
        names = "batch", "rows", "columns"
        axes = {name: [list(x) for x in getattr(self, name)] for name in names}
        shape = list(self.shape)
        return {
            "shape": shape,
            "offset": self.offset,
            **axes,
            "transposed": self.is_transposed,
        }


def matrices(
    model: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    example_input: Any = None,
    heads: int | None = None,
) -> dict[str, tuple[MatrixStack, ...]]:
    """Name of each parameter -> the matrices inside it, () for vectors.

    Every element of an embedding, an output or a matrix is in one of its matrices.
    Apart are: queries, keys and values; both factors of a gated unit; the gates of a
    recurrent layer; experts; groups of channels of a convolution; the different inputs
    of a layer that are one projection. Rows are outputs, columns inputs.

    Args:
        model, example_input: As for `build_graph`. Without a trace names decide, and
            heads stay together.
        heads: Number of attention heads in a matrix of queries, keys or values; None
            for all of them.

    Raises:
        ValueError: As `build_graph`, and if heads cannot be divided by `heads`.

    Examples:
        >>> for name, stacks in ngopt.matrices(model, example_input).items():
        ...     for stack in stacks:
        ...         print(name, stack.read(model.get_parameter(name)).shape)
    """
    if heads is not None and heads < 1:
        raise ValueError(f"matrices: heads: expected a number > 0 or None; got {heads}")
    return matrices_of_graph(build_graph(model, example_input), heads)


def matrices_of_graph(
    graph: NeuralGraph, heads: int | None = None
) -> dict[str, tuple[MatrixStack, ...]]:
    """See `matrices`."""
    by_head, by_use = usage(graph), usage(graph, heads_differ=False)
    stacks = {}
    for role in roles_of(graph):
        singles: dict[tuple, list[_Single]] = defaultdict(list)
        for number, block in enumerate(role.blocks):
            for single in _singles(block):
                use = _label(single.ends, by_use)
                alike = use if use else -1 - number
                singles[alike, single.rows, single.columns].append(single)
        parts: list[MatrixStack] = []
        for members in singles.values():
            members.sort(key=lambda single: single.offset)
            labels = [_label(single.ends, by_head) for single in members]
            size = 1
            if len(set(labels)) == len(members):  # each is another head
                size = min(heads or len(members), len(members))
            if len(members) % size:
                raise ValueError(
                    f"matrices: heads: expected a divisor of {len(members)}, the "
                    f"heads of '{role.name}'; got {heads}"
                )
            parts += _stacked(members, size)
        stacks[role.name] = tuple(sorted(parts, key=lambda stack: stack.offset))
    return stacks


class _Single(NamedTuple):
    """A matrix of one use and, in attention, of one head. ends: of its rows."""

    offset: int
    rows: Axes
    columns: Axes
    ends: Ends


def _singles(block: MatrixBlock) -> Iterator[_Single]:
    view = block.view
    k, *_ = view.shape
    _, rows, *columns = map(Axis, view.shape, view.strides)
    for i in range(k):
        ends = block.rows[i] if block.rows else ()
        offset = view.offset + i * view.strides[0]
        yield _Single(offset, _simple([rows]), _simple(columns), ends)


def _label(ends: Ends, labels: Sequence[np.ndarray]) -> int:
    """The use of a matrix's first neuron; 0 if it is not known."""
    if not ends:
        return 0
    group, index = ends[0]
    return int(labels[group][index[0] if index else 0])


def _stacked(singles: Sequence[_Single], size: int) -> Iterator[MatrixStack]:
    """Matrices of `size` heads each, in stacks of those that lie at even distances."""
    alike: dict[tuple[Axes, Axes], list[int]] = defaultdict(list)
    for start in range(0, len(singles), size):
        members = singles[start : start + size]
        first = members[0]
        heads = nested_axes([single.offset for single in members])
        if heads is None:
            for single in members:
                alike[single.rows, single.columns].append(single.offset)
        else:
            rows = _simple([*heads, *first.rows])
            alike[rows, first.columns].append(first.offset)
    for (rows, columns), offsets in alike.items():
        batch = nested_axes(offsets)
        if batch is None:
            for offset in offsets:
                yield MatrixStack(offset, (), rows, columns)
        else:
            yield MatrixStack(offsets[0], _simple(batch), rows, columns)


def nested_axes(offsets: Sequence[int]) -> Axes | None:
    """The axes of sorted places in memory; None if they do not lie in nested rows."""
    if len(offsets) == 1:
        return ()
    steps = np.diff(offsets)
    uneven = np.flatnonzero(steps != steps[0])
    length = int(uneven[0]) + 1 if len(uneven) else len(offsets)
    if len(offsets) % length:
        return None
    runs = np.array(offsets).reshape(-1, length)
    if (runs - runs[:, :1] != runs[0] - runs[0, 0]).any():
        return None
    outer = nested_axes(runs[:, 0].tolist())
    return None if outer is None else (*outer, Axis(length, int(steps[0])))


def _simple(axes: Sequence[Axis]) -> Axes:
    """Without axes of length 1, neighbours as one axis where that is possible."""
    merged: list[Axis] = []
    for axis in axes:
        if axis.length == 1:
            continue
        if merged and merged[-1].stride == axis.length * axis.stride:
            axis = Axis(merged.pop().length * axis.length, axis.stride)
        merged.append(axis)
    return tuple(merged)


def _length(axes: Axes) -> int:
    return prod(axis.length for axis in axes)
