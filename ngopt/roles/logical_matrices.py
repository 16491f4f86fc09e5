"""The matrices inside parameters, for any optimizer: `ngopt.matrices`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ngopt.graph.build import build_graph
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.roles.from_graph import ParameterRole, roles_of
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
    """k matrices of equal shape inside one parameter.

    Element (i, row, column) is element `offset + stride . index` of the flat parameter,
    in its own order, where index has one number for each axis of `batch`, `rows` and
    `columns`. Of a complex parameter, elements are those of `torch.view_as_real`.

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
        batch, rows, columns = self.batch, self.rows, self.columns
        k, m, n = (prod(x.length for x in axes) for axes in (batch, rows, columns))
        return k, m, n

    @property
    def is_transposed(self) -> bool:
        """Whether rows are nearer to each other in memory than columns."""
        row, column = (
            min((axis.stride for axis in axes), default=0)
            for axes in (self.rows, self.columns)
        )
        return 0 < row < column

    def read(self, parameter: Tensor) -> Tensor:
        """The matrices (k, rows, columns) of a tensor of the parameter's shape, such as
        its gradient. They share memory with it where strides allow.

        Raises ValueError if the tensor has too few elements.
        """
        return self._nested(_elements(parameter).reshape(-1)).reshape(self.shape)

    @torch.no_grad()
    def write(self, parameter: Tensor, matrices: Tensor) -> None:
        """Copies matrices (k, rows, columns) into a tensor of the parameter's shape.

        Raises ValueError if a shape does not fit.
        """
        if matrices.shape != self.shape:
            raise ValueError(
                f"MatrixStack.write: expected matrices of shape {self.shape}; got "
                f"{tuple(matrices.shape)}"
            )
        elements = _elements(parameter)
        flat = elements.reshape(-1)  # a copy if it is not contiguous
        nested = self._nested(flat)
        nested.copy_(matrices.reshape(nested.shape))
        elements.copy_(flat.view(elements.shape))

    def _nested(self, flat: Tensor) -> Tensor:
        """A view of flat elements with one dimension for each axis."""
        axes = (*self.batch, *self.rows, *self.columns)
        last = self.offset + sum((x.length - 1) * x.stride for x in axes)
        if prod(self.shape) and last >= len(flat):
            raise ValueError(
                "MatrixStack: expected a tensor of the parameter's shape, with more "
                f"than {last} elements; got {len(flat)}"
            )
        step = flat.stride(0)
        strides = [x.stride * step for x in axes]
        start = flat.storage_offset() + self.offset * step
        return flat.as_strided([x.length for x in axes], strides, start)

    def to_json(self) -> dict[str, Any]:
        """As numbers and lists; an axis is [length, stride]."""
        return {
            "shape": list(self.shape),
            "offset": self.offset,
            "batch": list(map(list, self.batch)),
            "rows": list(map(list, self.rows)),
            "columns": list(map(list, self.columns)),
            "transposed": self.is_transposed,
        }


def _elements(parameter: Tensor) -> Tensor:
    """The real numbers of a parameter."""
    return torch.view_as_real(parameter) if parameter.is_complex() else parameter


def matrices(
    model: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    example_input: Any = None,
    heads: int | None = None,
) -> dict[str, tuple[MatrixStack, ...]]:
    """Name of each parameter -> the matrices inside it, () for vectors.

    Every element of an embedding, an output or a matrix is in one of its matrices.
    Separate matrices are: queries, keys and values; both factors of a gated unit; the
    gates of a recurrent layer; experts; groups of channels of a convolution; the
    different inputs of a layer that are one projection. Rows are outputs, columns
    inputs.

    Args:
        model, example_input: As for `build_graph`. Without a trace names decide, and
            heads stay together.
        heads: Number of attention heads in a matrix of queries, keys or values; all if
            there are fewer, or if it is None.

    Raises:
        ValueError: As `build_graph`, and if heads cannot be divided by `heads`.

    Examples:
        >>> for name, stacks in ngopt.matrices(model, example_input).items():
        ...     for stack in stacks:
        ...         print(name, stack.read(model.get_parameter(name)).shape)
    """
    graph = build_graph(model, example_input)
    return matrices_of_graph(graph, roles_of(graph), heads)


def matrices_of_graph(
    graph: NeuralGraph, roles: Sequence[ParameterRole], heads: int | None = None
) -> dict[str, tuple[MatrixStack, ...]]:
    """See `matrices`. roles: of the graph's parameters, see `roles_of`."""
    is_number = isinstance(heads, int) and not isinstance(heads, bool) and heads > 0
    if heads is not None and not is_number:
        raise ValueError(
            f"matrices: heads: expected a number > 0 or None; got {heads!r}"
        )
    by_head, by_use = usage(graph), usage(graph, heads_differ=False)
    return {role.name: _stacks(role, by_head, by_use, heads) for role in roles}


def _stacks(
    role: ParameterRole,
    by_head: Sequence[np.ndarray],
    by_use: Sequence[np.ndarray],
    heads: int | None,
) -> tuple[MatrixStack, ...]:
    """by_head, by_use: see `usage`."""
    parts: dict[tuple, dict[int, list[_Single]]] = {}
    for number, single in enumerate(_singles(role.blocks)):
        use = _label(single.ends, by_use)
        # nothing is known of use 0: each is a matrix of its own
        origin = (single.origin, use) if use else (-1, number)
        by_label = parts.setdefault((origin, single.rows, single.columns), {})
        by_label.setdefault(_label(single.ends, by_head), []).append(single)
    alike: dict[tuple[Axes, Axes], list[int]] = defaultdict(list)
    for (_, rows, columns), by_label in parts.items():
        members = list(by_label.values())
        size = min(heads or len(members), len(members))
        if len(members) % size:
            raise ValueError(
                f"matrices: heads: expected a divisor of {len(members)}, the heads of "
                f"'{role.name}'; got {heads}"
            )
        for start in range(0, len(members), size):
            together = chain.from_iterable(members[start : start + size])
            offsets = sorted(single.offset for single in together)
            axes = nested_axes(offsets)
            if axes is None:  # rows at uneven distances stay apart
                alike[rows, columns] += offsets
            else:
                alike[_simple([*axes, *rows]), columns].append(offsets[0])
    stacks = []
    for (rows, columns), offsets in alike.items():
        axes = nested_axes(sorted(offsets))
        if axes is None:
            stacks += [MatrixStack(offset, (), rows, columns) for offset in offsets]
        else:
            stacks.append(MatrixStack(min(offsets), _simple(axes), rows, columns))
    return tuple(sorted(stacks, key=attrgetter("offset")))


class _Single(NamedTuple):
    """Rows of one use and, in attention, of one head. ends: of the rows."""

    offset: int
    rows: Axes
    columns: Axes
    ends: Ends
    origin: int


def _singles(blocks: Sequence[MatrixBlock]) -> list[_Single]:
    """In the order of the parameter."""
    singles = []
    for block in blocks:
        view = block.view
        k, *_ = view.shape
        _, rows, *columns = map(Axis, view.shape, view.strides)
        for i in range(k):
            ends = block.rows[i] if block.rows else ()
            origin = block.origins[i] if block.origins else -1
            offset = view.offset + i * view.strides[0]
            axes = _simple([rows]), _simple(columns)
            singles.append(_Single(offset, *axes, ends, origin))
    return sorted(singles, key=attrgetter("offset"))


def _label(ends: Ends, labels: Sequence[np.ndarray]) -> int:
    """The use of a matrix's first neuron; 0 if it is not known."""
    if not ends:
        return 0
    group, index = ends[0]
    return int(labels[group][index[0] if index else 0])


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
