"""The matrices of a parameter: its elements as rows and columns of linear maps.

Edge blocks contain what a weight connects. A matrix is several blocks if a layer reads
several groups (one matrix, all of its columns), and a part of a block if the layer's
neurons are used differently (heads, gates).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import torch

from ngopt.graph.groups_and_blocks import EdgeBlock, NeuronSet, View, even_runs
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.roles.neuron_usage import is_gated, neurons

Ends = tuple[NeuronSet, ...]
"""The neurons at one side of a matrix, piece after piece; () if the graph has none."""


@dataclass(frozen=True)
class MatrixBlock:
    """Matrices of equal shape in one parameter.

    Attributes:
        view: of the shape (k, rows, *columns). Rows are outputs, columns inputs times
            kernel positions; each of the k matrices is a linear map from prod(columns)
            to rows numbers. As a tensor:
            `p.flatten().as_strided(view.shape, view.strides, view.offset)`, of
            `torch.view_as_real(p)` if p is complex.
        rows, columns: for each of the k matrices, the neurons that it leads to and that
            it reads, in order. Matrices with equal `columns` and kernels of one size
            read the same neurons. () for each matrix if that is known from names alone.
        origins: for each of the k matrices, a number: those with the same one are rows
            of one matrix, which are used differently or by different heads.
    """

    view: View
    rows: tuple[Ends, ...] = ()
    columns: tuple[Ends, ...] = ()
    origins: tuple[int, ...] = ()


@dataclass(frozen=True)
class MatrixPiece:
    """One matrix or a part of its columns.

    view: (rows, *columns). is_depthwise: whether each row reads another neuron; such
    rows stay together. origin: see `MatrixBlock`.
    """

    view: View
    targets: Ends
    sources: Ends
    is_depthwise: bool = False
    origin: int = 0


OFFSET = attrgetter("view.offset")
"""Of a piece, its first element in the parameter."""


def matrices(
    graph: NeuralGraph, blocks: Sequence[EdgeBlock], usage: Sequence[np.ndarray] | None
) -> tuple[MatrixBlock, ...]:
    """The matrices of one parameter from its edge blocks, of which there is one at
    least; each element is in one matrix.

    If blocks do not contain all elements, the shape of the parameter decides.

    usage: labels of the use of each group's neurons, see `usage`; None: rows with
    different uses stay together.
    """
    number = blocks[0].elements.parameter
    spec = graph.parameters[number]
    if not spec.numel:
        return (by_shape(number, spec.shape),)
    pieces: list[MatrixPiece] = []
    for block in _first_uses(blocks, spec.numel):
        for piece in _pieces(graph, block):
            pieces += _unstacked(graph, piece, spec.shape)
    pieces = _joined_rows(_joined_columns(pieces, spec.shape))
    parts = []
    numel = 0
    for origin, piece in enumerate(pieces):
        piece = replace(piece, origin=origin)
        parts += [piece] if usage is None else _by_usage(piece, usage)
        numel += piece.view.numel
    if numel != spec.numel:
        return (by_shape(number, spec.shape),)
    return _merged(parts)


def by_shape(parameter: int, shape: tuple[int, ...]) -> MatrixBlock:
    """A parameter as one matrix whose rows are its first dimension."""
    return MatrixBlock(View.whole(parameter, (1, *shape)))


def _first_uses(blocks: Sequence[EdgeBlock], numel: int) -> Iterator[EdgeBlock]:
    """The blocks without those that share elements with previous ones."""
    if blocks[0].elements.numel == numel:
        yield blocks[0]
        return
    taken = np.zeros(numel, bool)
    for block in blocks:
        view = block.elements
        after = taken[view.offset :]
        are_taken = np.lib.stride_tricks.as_strided(after, view.shape, view.strides)
        if not are_taken.any():
            are_taken[...] = True
            yield block


def _pieces(graph: NeuralGraph, block: EdgeBlock) -> Iterator[MatrixPiece]:
    """The matrices of a block: one for each group of neurons, or for each gate."""
    view, (groups, n_target, n_source) = block.elements, block.shape
    targets = NeuronSet(block.target, block.target_index)
    sources = NeuronSet(block.source, block.source_index)
    first = _along(view, slice(1, None))
    step, row, *_ = view.strides
    has_gates = block.kind in ("weight", "recurrent") and len(block.slot_shape) == 1
    if has_gates and is_gated(graph, block.target, block.slot_shape):
        gate_stride = first.strides[-1]
        for k in range(block.slots):
            gate = _along(first, slice(-1), k * gate_stride)
            yield MatrixPiece(gate, (targets,), (sources,))
    elif groups == 1:
        yield MatrixPiece(first, (targets,), (sources,))
    elif n_source == 1 and (n_target == 1 or step == n_target * row):
        shape = (groups * n_target, *first.shape[1:])
        strides = (step if n_target == 1 else row, *first.strides[1:])
        rows = replace(view, shape=shape, strides=strides)
        yield MatrixPiece(rows, (targets,), (sources,), is_depthwise=True)
    else:
        # a grouped convolution: the neurons of each of its matrices, in rows
        rows = neurons(block.target_index, graph.groups[block.target].size)
        columns = neurons(block.source_index, graph.groups[block.source].size)
        rows, columns = rows.reshape(groups, -1), columns.reshape(groups, -1)
        for k in range(groups):
            part = _along(view, slice(1, None), k * step)
            ends = _ends(block.target, rows[k]), _ends(block.source, columns[k])
            yield MatrixPiece(part, *ends)


def _along(view: View, axes: slice, start: int = 0) -> View:
    """A view along some of the axes; start: distance from the first element."""
    shape, strides = view.shape[axes], view.strides[axes]
    return replace(view, shape=shape, strides=strides, offset=view.offset + start)


def _unstacked(
    graph: NeuralGraph, piece: MatrixPiece, shape: tuple[int, ...]
) -> Iterator[MatrixPiece]:
    """The matrices of a stack (k, rows, columns) of experts with the same inputs."""
    view = piece.view
    rows = _along(view, slice(1))
    first, *_ = _place(view.offset, shape)
    last, *_ = _place(rows.last, shape)
    count = last - first + 1
    is_stack = _axes(rows, shape) > {0} and view.shape[0] % count == 0
    if piece.is_depthwise or not is_stack:
        yield piece
        return
    (targets,) = piece.targets
    numbers = neurons(targets.index, graph.groups[targets.group].size)
    for k, expert_neurons in enumerate(numbers.reshape(count, -1)):
        offset = view.offset + k * len(expert_neurons) * view.strides[0]
        expert_shape = (len(expert_neurons), *view.shape[1:])
        expert = replace(view, shape=expert_shape, offset=offset)
        yield MatrixPiece(expert, _ends(targets.group, expert_neurons), piece.sources)


def _ends(group: int, numbers: np.ndarray) -> Ends:
    return (NeuronSet(group, tuple(numbers.tolist())),)


def _joined_columns(
    pieces: Sequence[MatrixPiece], shape: tuple[int, ...]
) -> list[MatrixPiece]:
    """Joins pieces with the same rows, of a layer that reads several groups."""
    same_rows: dict[tuple, list[MatrixPiece]] = defaultdict(list)
    for piece in pieces:
        row, _, *slot_strides = piece.view.strides
        rows, _, *slots = piece.view.shape
        same_rows[piece.targets, rows, row, *slots, *slot_strides].append(piece)
    joined = []
    for members in same_rows.values():
        side_by_side: dict[tuple, list[MatrixPiece]] = defaultdict(list)
        axes = _column_axes(members, shape)
        for piece in members:
            place = _place(piece.view.offset, shape)
            fixed = tuple(n for d, n in enumerate(place) if d not in axes)
            side_by_side[fixed].append(piece)
        for parts in side_by_side.values():
            joined += _joined(parts, 1)
    return joined


def _joined_rows(pieces: Sequence[MatrixPiece]) -> list[MatrixPiece]:
    """Joins the pieces of a depthwise convolution that reads several groups."""
    if not any(piece.is_depthwise for piece in pieces):
        return list(pieces)
    depthwise, rest = [], []
    for piece in pieces:
        is_one = piece.is_depthwise or piece.view.shape[:2] == (1, 1)
        (depthwise if is_one else rest).append(piece)
    return rest + _joined(depthwise, 0)


def _joined(pieces: Sequence[MatrixPiece], axis: int) -> list[MatrixPiece]:
    """Joins pieces at even distances along an axis: columns, 1, or rows, 0."""
    in_order = sorted(pieces, key=OFFSET)
    first = in_order[0]
    offsets: list[int] = []
    ends: list[NeuronSet] = []
    others = set()  # shapes and strides of the other axes
    for piece in in_order:
        view = piece.view
        shape, strides = list(view.shape), list(view.strides)
        offsets += (view.offset + strides[axis] * np.arange(shape[axis])).tolist()
        ends += piece.sources if axis else piece.targets
        del shape[axis], strides[axis]
        others.add((*shape, *strides))
    steps = np.unique(np.diff(np.sort(offsets)))
    if len(pieces) == 1 or not len(others) == len(steps) == 1:
        return list(pieces)
    is_depthwise = any(piece.is_depthwise for piece in pieces)
    shape, strides = list(first.view.shape), list(first.view.strides)
    shape[axis], strides[axis] = len(offsets), int(steps[0])
    view = replace(first.view, shape=tuple(shape), strides=tuple(strides))
    joined = tuple(ends) if offsets == sorted(offsets) else ()
    if axis:
        return [MatrixPiece(view, first.targets, joined, is_depthwise)]
    return [MatrixPiece(view, joined, (), is_depthwise)]


def _place(element: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, np.unravel_index(element, shape)))


def _column_axes(pieces: Sequence[MatrixPiece], shape: tuple[int, ...]) -> set[int]:
    """Dimensions of a parameter along which columns of pieces (rows, *columns) lie."""
    axes: set[int] = set()
    for piece in pieces:
        axes |= _axes(_along(piece.view, slice(1, None)), shape)
    if axes or len(shape) != 2:
        return axes
    rows = _axes(_along(pieces[0].view, slice(1)), shape)
    return {0, 1} - rows if rows else {1}


def _axes(view: View, shape: tuple[int, ...]) -> set[int]:
    """The dimensions of a parameter along which a view extends."""
    first, last = _place(view.offset, shape), _place(view.last, shape)
    return {d for d in range(len(shape)) if first[d] != last[d]}


def _by_usage(piece: MatrixPiece, usage: Sequence[np.ndarray]) -> Iterator[MatrixPiece]:
    """A matrix for all rows with the same use; several, of neighbours, if these rows
    do not lie at even distances."""
    if piece.is_depthwise:
        yield piece
        return
    (targets,) = piece.targets
    labels = usage[targets.group]
    numbers = neurons(targets.index, len(labels))
    used = labels[numbers]
    parts, steps = [], []
    for label in np.unique(used):
        rows = np.flatnonzero(used == label)
        runs = [rows]
        if len(np.unique(np.diff(rows))) > 1:
            runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        parts += runs
        steps += [np.unique(np.diff(run)) for run in runs]
    if len(parts) == 1 or any(len(step) != 1 for step in steps):
        yield piece
        return
    row, *columns = piece.view.strides
    for rows, step in zip(parts, steps, strict=True):
        shape = (len(rows), *piece.view.shape[1:])
        strides = (row * int(step[0]), *columns)
        offset = piece.view.offset + row * int(rows[0])
        view = replace(piece.view, shape=shape, strides=strides, offset=offset)
        yield replace(piece, view=view, targets=_ends(targets.group, numbers[rows]))


def _merged(pieces: Iterable[MatrixPiece]) -> tuple[MatrixBlock, ...]:
    """One block for all matrices of the same shape and strides at even distances."""
    alike: dict[tuple, list[MatrixPiece]] = defaultdict(list)
    for piece in pieces:
        alike[piece.view.shape, piece.view.strides].append(piece)
    blocks = []
    for members in alike.values():
        members.sort(key=OFFSET)
        offsets = torch.tensor(list(map(OFFSET, members)), device="cpu")
        start = 0
        for run in even_runs(offsets):
            stack = members[start : start + len(run)]
            start += len(run)
            first = stack[0].view
            step = int(run[1] - run[0]) if len(run) > 1 else 0
            shape, strides = (len(stack), *first.shape), (step, *first.strides)
            view = replace(first, shape=shape, strides=strides)
            rows = tuple(piece.targets for piece in stack)
            columns = tuple(piece.sources for piece in stack)
            origins = tuple(piece.origin for piece in stack)
            blocks.append(MatrixBlock(view, rows, columns, origins))
    return tuple(blocks)
