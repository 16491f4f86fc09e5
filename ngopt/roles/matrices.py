"""The matrices that a parameter holds: which of its elements are rows and columns of a
linear map.

An edge block says what a weight connects. Matrices are coarser than blocks where a
layer reads several groups (one matrix, all of its columns), and finer where it makes
neurons that are used differently (heads, gates).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from ngopt.graph.groups_and_blocks import EdgeBlock, Index, View, contiguous_strides
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.roles.neuron_usage import neurons


@dataclass(frozen=True)
class NeuronSet:
    """Some neurons of a group, in order; all of them where `index` is None."""

    group: int
    index: Index = None


Ends = tuple[NeuronSet, ...]
"""The neurons at one side of a matrix, piece after piece; () where the graph does not
know them."""


@dataclass(frozen=True)
class MatrixBlock:
    """Matrices of equal shape in one parameter: `view` has the shape (k, rows,
    *columns).

    Rows are outputs, columns inputs times kernel positions; each of the k matrices is a
    linear map from prod(columns) to rows numbers. As a tensor:
    `p.flatten().as_strided(view.shape, view.strides, view.offset)`, of
    `torch.view_as_real(p)` if p is complex.

    rows, columns: for each of the k matrices the neurons that it leads to and that it
    reads, in order. Matrices with equal `columns` and kernels of one size read the same
    neurons; () for each where names say that they do, but not which.
    """

    view: View
    rows: tuple[Ends, ...] = ()
    columns: tuple[Ends, ...] = ()


@dataclass(frozen=True)
class Piece:
    """One matrix or a part of its columns: a view (rows, *columns) and the neurons at
    its ends.

    is_depthwise: whether each row reads a neuron of its own; such rows stay together.
    """

    view: View
    targets: Ends
    sources: Ends
    is_depthwise: bool = False


def matrices(
    graph: NeuralGraph,
    blocks: Sequence[EdgeBlock],
    usage: Sequence[np.ndarray] | None,
) -> tuple[MatrixBlock, ...]:
    """The matrices of one parameter from its edge blocks, not empty; all elements once.

    usage: for every group how its neurons are used; None if rows stay together whatever
    that is. Where blocks leave out elements, or there are none, the shape of the
    parameter decides.
    """
    view = blocks[0].view
    assert view is not None
    spec = graph.parameters[view.parameter]
    if not spec.numel:
        return (by_shape(view.parameter, spec.shape),)
    pieces: list[Piece] = []
    for block in _first_uses(blocks, spec.numel):
        for piece in _pieces(graph, block):
            pieces += _unstacked(graph, piece, spec.shape)
    parts = _joined_rows(_joined_columns(pieces, spec.shape))
    if usage is not None:
        parts = list(chain.from_iterable(_by_usage(piece, usage) for piece in parts))
    if sum(part.view.numel for part in parts) != spec.numel:
        return (by_shape(view.parameter, spec.shape),)
    return merged(parts)


def by_shape(parameter: int, shape: tuple[int, ...]) -> MatrixBlock:
    """A parameter of at least one dimension as one matrix whose rows are its first
    dimension."""
    strides = (0, *contiguous_strides(shape))
    return MatrixBlock(View(parameter, (1, *shape), strides))


def _first_uses(blocks: Sequence[EdgeBlock], numel: int) -> Iterator[EdgeBlock]:
    """The blocks in their order, without those of whose elements others before have
    one."""
    first = blocks[0].view
    if first is not None and first.numel == numel:
        yield blocks[0]
        return
    taken = np.zeros(numel, bool)
    for block in blocks:
        view = block.view
        assert view is not None
        places = np.lib.stride_tricks.as_strided(
            taken[view.offset :], view.shape, view.strides
        )
        if not places.any():
            places[...] = True
            yield block


def _pieces(graph: NeuralGraph, block: EdgeBlock) -> Iterator[Piece]:
    """The matrices of a block: one for each group of neurons, or for each gate."""
    view, (groups, n_target, n_source) = block.view, block.shape
    assert view is not None
    targets = NeuronSet(block.target, block.target_index)
    sources = NeuronSet(block.source, block.source_index)
    first = replace(view, shape=view.shape[1:], strides=view.strides[1:])
    gates = _gates(graph, block)
    step, row, *_ = view.strides
    if gates:
        for part in _parts_of_gates(first, gates):
            yield Piece(part, (targets,), (sources,))
    elif groups == 1:
        yield Piece(first, (targets,), (sources,))
    elif n_source == 1 and (n_target == 1 or step == n_target * row):
        shape = (groups * n_target, *first.shape[1:])
        strides = (step if n_target == 1 else row, *first.strides[1:])
        rows = replace(view, shape=shape, strides=strides)
        yield Piece(rows, (targets,), (sources,), is_depthwise=True)
    else:
        yield from _groups(graph, block)


def _unstacked(
    graph: NeuralGraph, piece: Piece, shape: tuple[int, ...]
) -> Iterator[Piece]:
    """The matrices of a stack (k, rows, columns) that read the same neurons, as experts
    do."""
    view = piece.view
    rows = replace(view, shape=view.shape[:1], strides=view.strides[:1])
    axes = _axes(rows, shape)
    first, last = (_place(n, shape)[0] for n in (view.offset, _last(rows)))
    count = last - first + 1
    if piece.is_depthwise or not {0} < axes or view.shape[0] % count:
        yield piece
        return
    (targets,) = piece.targets
    numbers = neurons(targets.index, graph.groups[targets.group].size)
    for k, own in enumerate(numbers.reshape(count, -1)):
        offset = view.offset + k * len(own) * view.strides[0]
        part = replace(view, shape=(len(own), *view.shape[1:]), offset=offset)
        ends = NeuronSet(targets.group, tuple(own.tolist()))
        yield Piece(part, (ends,), piece.sources)


def _parts_of_gates(view: View, gates: int) -> Iterator[View]:
    """Views (rows, columns) of each gate of (rows, columns, gates)."""
    first = replace(view, shape=view.shape[:-1], strides=view.strides[:-1])
    for k in range(gates):
        yield replace(first, offset=view.offset + k * view.strides[-1])


def _gates(graph: NeuralGraph, block: EdgeBlock) -> int:
    """How many gates a weight of a recurrent layer has; 0 for other weights."""
    if block.kind not in ("weight", "recurrent") or len(block.slot_shape) != 1:
        return 0
    incoming = graph.blocks_into(block.target)
    fed_back = {
        b.slot_shape for b in incoming if b.kind == "recurrent" and b.view is not None
    }
    return block.slots if block.slot_shape in fed_back else 0


def _groups(graph: NeuralGraph, block: EdgeBlock) -> Iterator[Piece]:
    """The matrices of a grouped convolution, and the like."""
    view, (groups, n_target, n_source) = block.view, block.shape
    assert view is not None
    targets = neurons(block.target_index, graph.groups[block.target].size).reshape(
        groups, n_target
    )
    sources = neurons(block.source_index, graph.groups[block.source].size).reshape(
        groups, n_source
    )
    for k in range(groups):
        part = replace(
            view,
            shape=view.shape[1:],
            strides=view.strides[1:],
            offset=view.offset + k * view.strides[0],
        )
        rows = NeuronSet(block.target, tuple(targets[k].tolist()))
        columns = NeuronSet(block.source, tuple(sources[k].tolist()))
        yield Piece(part, (rows,), (columns,))


def _joined_columns(pieces: Sequence[Piece], shape: tuple[int, ...]) -> list[Piece]:
    """Makes one matrix of pieces with the same rows, as of a layer that reads several
    groups."""
    same_rows: dict[tuple, list[Piece]] = defaultdict(list)
    for piece in pieces:
        row, _, *slot_strides = piece.view.strides
        rows, _, *slots = piece.view.shape
        same_rows[piece.targets, rows, row, *slots, *slot_strides].append(piece)
    found = []
    for members in same_rows.values():
        side_by_side: dict[tuple, list[Piece]] = defaultdict(list)
        axes = _column_axes(members, shape)
        for piece in members:
            place = _place(piece.view.offset, shape)
            fixed = tuple(n for d, n in enumerate(place) if d not in axes)
            side_by_side[fixed].append(piece)
        for parts in side_by_side.values():
            found += _joined(parts, 1)
    return found


def _joined_rows(pieces: Sequence[Piece]) -> list[Piece]:
    """Makes one matrix of the pieces of a depthwise convolution that reads several
    groups."""
    if not any(piece.is_depthwise for piece in pieces):
        return list(pieces)
    depthwise, rest = [], []
    for piece in pieces:
        if piece.is_depthwise or piece.view.shape[:2] == (1, 1):
            depthwise.append(piece)
        else:
            rest.append(piece)
    return rest + _joined(depthwise, 0)


def _joined(pieces: Sequence[Piece], axis: int) -> list[Piece]:
    """One piece of several that lie behind each other along an axis, if at even
    distances."""
    in_order = sorted(pieces, key=lambda piece: piece.view.offset)
    places = np.concatenate([_along(piece.view, axis) for piece in in_order])
    offsets = np.sort(places)
    step = _even_step(pieces, offsets, axis)
    if not step:
        return list(pieces)
    first = in_order[0]
    shape = list(first.view.shape)
    strides = list(first.view.strides)
    shape[axis], strides[axis] = len(offsets), step
    view = replace(first.view, shape=tuple(shape), strides=tuple(strides))
    is_depthwise = any(piece.is_depthwise for piece in pieces)
    ends = [piece.sources if axis else piece.targets for piece in in_order]
    is_mixed = not np.array_equal(places, offsets)
    joined = () if is_mixed else tuple(chain.from_iterable(ends))
    if axis:
        return [Piece(view, first.targets, joined, is_depthwise)]
    return [Piece(view, joined, (), is_depthwise)]


def _along(view: View, axis: int) -> np.ndarray:
    """Where in the parameter each place along an axis of a view begins."""
    return view.offset + view.strides[axis] * np.arange(view.shape[axis])


def _even_step(pieces: Sequence[Piece], offsets: np.ndarray, axis: int) -> int:
    """The distance between all places along an axis, sorted; 0 if pieces do not make
    one."""
    shapes = {_without(piece.view.shape, axis) for piece in pieces}
    strides = {_without(piece.view.strides, axis) for piece in pieces}
    steps = np.unique(np.diff(offsets))
    fits = len(pieces) > 1 and len(shapes | strides) <= 2 and len(steps) == 1
    return int(steps[0]) if fits else 0


def _without(sizes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*sizes[:axis], *sizes[axis + 1 :])


def _place(element: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.unravel_index(element, shape))


def _column_axes(pieces: Sequence[Piece], shape: tuple[int, ...]) -> set[int]:
    """The dimensions of a parameter along which columns of pieces (rows, *columns) lie."""
    axes: set[int] = set()
    for view in (piece.view for piece in pieces):
        axes |= _axes(
            replace(view, shape=view.shape[1:], strides=view.strides[1:]), shape
        )
    if axes or len(shape) != 2:
        return axes
    view = pieces[0].view
    rows = _axes(replace(view, shape=view.shape[:1], strides=view.strides[:1]), shape)
    return {0, 1} - rows if rows else {1}


def _last(view: View) -> int:
    """The last element of a view."""
    steps = zip(view.shape, view.strides, strict=True)
    return view.offset + sum((n - 1) * stride for n, stride in steps)


def _axes(view: View, shape: tuple[int, ...]) -> set[int]:
    """The dimensions of a parameter along which a view goes."""
    ends = zip(_place(view.offset, shape), _place(_last(view), shape), strict=True)
    return {d for d, (a, b) in enumerate(ends) if a != b}


def _by_usage(piece: Piece, usage: Sequence[np.ndarray]) -> Iterator[Piece]:
    """A matrix for all rows that are used alike, if they lie at even distances and are
    several."""
    if piece.is_depthwise:
        yield piece
        return
    (targets,) = piece.targets
    labels = usage[targets.group]
    numbers = neurons(targets.index, len(labels))
    used = labels[numbers]
    parts = [np.flatnonzero(used == label) for label in np.unique(used)]
    steps = [np.unique(np.diff(part)) for part in parts]
    if len(parts) == 1 or any(len(step) != 1 for step in steps):
        yield piece
        return
    row, *columns = piece.view.strides
    for part, step in zip(parts, steps, strict=True):
        view = replace(
            piece.view,
            shape=(len(part), *piece.view.shape[1:]),
            strides=(row * int(step[0]), *columns),
            offset=piece.view.offset + row * int(part[0]),
        )
        rows = NeuronSet(targets.group, tuple(numbers[part].tolist()))
        yield Piece(view, (rows,), piece.sources)


def merged(pieces: Iterable[Piece]) -> tuple[MatrixBlock, ...]:
    """One block for all matrices of the same shape and strides at even distances."""
    alike: dict[tuple, list[Piece]] = defaultdict(list)
    for piece in pieces:
        alike[piece.view.shape, piece.view.strides].append(piece)
    found = []
    for members in alike.values():
        members.sort(key=lambda piece: piece.view.offset)
        found += [_stacked(run) for run in _even_runs(members)]
    return tuple(found)


def _even_runs(pieces: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    """Stretches of matrices with the same distance between neighbours."""
    start = 0
    while start < len(pieces):
        end = start + 1
        while end < len(pieces):
            step = pieces[end].view.offset - pieces[end - 1].view.offset
            if step != pieces[start + 1].view.offset - pieces[start].view.offset:
                break
            end += 1
        yield pieces[start:end]
        start = end


def _stacked(pieces: Sequence[Piece]) -> MatrixBlock:
    first = pieces[0].view
    step = pieces[1].view.offset - first.offset if len(pieces) > 1 else 0
    view = replace(
        first, shape=(len(pieces), *first.shape), strides=(step, *first.strides)
    )
    rows = tuple(piece.targets for piece in pieces)
    return MatrixBlock(view, rows, tuple(piece.sources for piece in pieces))
