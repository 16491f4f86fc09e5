"""The matrices that a parameter holds: which of its elements are rows and columns of a linear map.

An edge block says what a weight connects. Matrices are coarser than blocks where a layer reads
several groups (one matrix, all of its columns), and finer where it makes neurons that are used
differently (heads, gates).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ngopt.graph.core import EdgeBlock, Index, NeuralGraph, View, contiguous_strides
from ngopt.graph.usage import neurons


@dataclass(frozen=True)
class NeuronSet:
    """Some neurons of a group, in order; all of them where `index` is None."""

    group: int
    index: Index = None


Ends = tuple[NeuronSet, ...]
"""The neurons at one side of a matrix, piece after piece; () where the graph does not know them."""


@dataclass(frozen=True)
class MatrixBlock:
    """Matrices of equal shape in one parameter: `view` has the shape (k, rows, *columns).

    Rows are outputs, columns inputs times kernel positions; each of the k matrices is a linear map
    from prod(columns) to rows numbers. As a tensor: `p.flatten().as_strided(view.shape,
    view.strides, view.offset)`, of `torch.view_as_real(p)` if p is complex.

    rows, columns: for each of the k matrices the neurons that it leads to and that it reads.
    Matrices with equal `columns` read the same neurons.
    """

    view: View
    rows: tuple[Ends, ...] = ()
    columns: tuple[Ends, ...] = ()


@dataclass(frozen=True)
class Piece:
    """One matrix or a part of its columns: a view (rows, *columns) and the neurons at its ends.

    is_depthwise: whether each row reads a neuron of its own; such rows stay together.
    """

    view: View
    targets: NeuronSet
    sources: Ends
    is_depthwise: bool = False


def matrices(
    graph: NeuralGraph, blocks: Sequence[EdgeBlock], usage: Sequence[np.ndarray] | None
) -> tuple[MatrixBlock, ...]:
    """The matrices of one parameter from its edge blocks, not empty; all elements once.

    usage: for every group how its neurons are used; None if rows stay together whatever that is.
    Where blocks leave out elements, the shape of the parameter decides.
    """
    view = blocks[0].view
    assert view is not None
    spec = graph.parameters[view.parameter]
    uses = list(_first_uses(blocks, spec.numel))
    pieces = [piece for block in uses for piece in _pieces(graph, block)]
    parts = _joined_columns(pieces, spec.shape)
    if usage is not None:
        parts = [part for piece in parts for part in _by_usage(piece, usage)]
    if sum(part.view.numel for part in parts) != spec.numel:
        return (by_shape(view.parameter, spec.shape),)
    return merged(parts)


def by_shape(parameter: int, shape: tuple[int, ...]) -> MatrixBlock:
    """A parameter of at least one dimension as one matrix whose rows are its first dimension."""
    strides = (0, *contiguous_strides(shape))
    return MatrixBlock(View(parameter, (1, *shape), strides))


def _first_uses(blocks: Sequence[EdgeBlock], numel: int) -> Iterator[EdgeBlock]:
    """The blocks in their order, without those of whose elements others before have one."""
    first = blocks[0].view
    if first is not None and first.numel == numel:
        yield blocks[0]
        return
    taken = np.zeros(numel, bool)
    for block in blocks:
        view = block.view
        assert view is not None
        places = np.lib.stride_tricks.as_strided(taken[view.offset :], view.shape, view.strides)
        if not places.any():
            places[...] = True
            yield block


def _pieces(graph: NeuralGraph, block: EdgeBlock) -> Iterator[Piece]:
    """The matrices of a block: one for each group of neurons, or for each gate."""
    view, (groups, n_target, n_source) = block.view, block.shape
    assert view is not None
    step, row, *columns = view.strides
    whole = Piece(view, NeuronSet(block.target, block.target_index), (_sources(block),))
    gates = _gates(graph, block)
    if gates > 1:
        gate = view.strides[-1]
        shape = view.shape[1:-1]
        for k in range(gates):
            part = replace(view, shape=shape, strides=view.strides[1:-1], offset=view.offset + k * gate)
            yield replace(whole, view=part)
    elif groups == 1:
        yield replace(whole, view=replace(view, shape=view.shape[1:], strides=(row, *columns)))
    elif n_source == 1 and (n_target == 1 or step == n_target * row):
        shape = (groups * n_target, *view.shape[2:])
        strides = (step if n_target == 1 else row, *columns)
        rows = replace(view, shape=shape, strides=strides)
        yield replace(whole, view=rows, is_depthwise=True)
    else:
        yield from _groups(graph, block)


def _sources(block: EdgeBlock) -> NeuronSet:
    return NeuronSet(block.source, block.source_index)


def _gates(graph: NeuralGraph, block: EdgeBlock) -> int:
    """How many gates a weight of a recurrent layer has; 1 for other weights."""
    if block.kind not in ("weight", "recurrent") or len(block.slot_shape) != 1:
        return 1
    fed_back = [
        other
        for other in graph.blocks_into(block.target)
        if other.kind == "recurrent" and other.view is not None
    ]
    return block.slots if any(o.slot_shape == block.slot_shape for o in fed_back) else 1


def _groups(graph: NeuralGraph, block: EdgeBlock) -> Iterator[Piece]:
    """The matrices of a grouped convolution, and the like."""
    view, (groups, n_target, n_source) = block.view, block.shape
    assert view is not None
    targets = neurons(block.target_index, graph.groups[block.target].size).reshape(groups, n_target)
    sources = neurons(block.source_index, graph.groups[block.source].size).reshape(groups, n_source)
    for k in range(groups):
        part = replace(
            view,
            shape=view.shape[1:],
            strides=view.strides[1:],
            offset=view.offset + k * view.strides[0],
        )
        rows = NeuronSet(block.target, tuple(targets[k].tolist()))
        yield Piece(part, rows, (NeuronSet(block.source, tuple(sources[k].tolist())),))


def _joined_columns(pieces: Sequence[Piece], shape: tuple[int, ...]) -> list[Piece]:
    """Makes one matrix of pieces with the same rows, as of a layer that reads several groups."""
    alike: dict[tuple, list[Piece]] = defaultdict(list)
    for piece in pieces:
        row, *columns = piece.view.strides
        rows, _, *slots = piece.view.shape
        read = _column_axes(piece.view, shape)
        place = _place(piece.view.offset, shape)
        fixed = tuple(n for d, n in enumerate(place) if d not in read)
        alike[piece.targets, rows, row, *slots, *columns[1:], read, fixed].append(piece)
    found = []
    for members in alike.values():
        one = _one_matrix(members) if len(members) > 1 else None
        found += members if one is None else [one]
    return found


def _place(element: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.unravel_index(element, shape))


def _column_axes(view: View, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions of a parameter along which the columns of a view (rows, *columns) lie."""
    columns = replace(view, shape=view.shape[1:], strides=view.strides[1:])
    rows = replace(view, shape=view.shape[:1], strides=view.strides[:1])
    along = _axes(columns, shape)
    is_one_column = not along and len(shape) == 2
    return (0,) if is_one_column and _axes(rows, shape) == (1,) else (1,) if is_one_column else along


def _axes(view: View, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions of a parameter along which a view goes."""
    steps = zip(view.shape, view.strides, strict=True)
    last = view.offset + sum((n - 1) * stride for n, stride in steps)
    ends = zip(_place(view.offset, shape), _place(last, shape), strict=True)
    return tuple(d for d, (a, b) in enumerate(ends) if a != b)


def _one_matrix(pieces: Sequence[Piece]) -> Piece | None:
    """Pieces with the same rows side by side; None if their columns lie at no even distances."""
    pieces = sorted(pieces, key=lambda piece: piece.view.offset)
    starts = []
    for piece in pieces:
        n, step = piece.view.shape[1], piece.view.strides[1]
        starts.append(piece.view.offset + step * np.arange(n))
    offsets = np.sort(np.concatenate(starts))
    steps = np.unique(np.diff(offsets))
    if len(steps) != 1 or steps[0] == 0:
        return None
    first = pieces[0]
    rows, _, *slots = first.view.shape
    row, _, *slot_strides = first.view.strides
    view = replace(
        first.view,
        shape=(rows, len(offsets), *slots),
        strides=(row, int(steps[0]), *slot_strides),
    )
    return replace(first, view=view, sources=tuple(s for p in pieces for s in p.sources))


def _by_usage(piece: Piece, usage: Sequence[np.ndarray]) -> Iterator[Piece]:
    """A matrix for all rows that are used alike, if they lie at even distances and are several."""
    labels = usage[piece.targets.group]
    numbers = neurons(piece.targets.index, len(labels))
    used = labels[numbers]
    parts = [np.flatnonzero(used == label) for label in np.unique(used)]
    steps = [np.unique(np.diff(part)) for part in parts]
    if piece.is_depthwise or len(parts) == 1 or any(len(step) != 1 for step in steps):
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
        targets = NeuronSet(piece.targets.group, tuple(numbers[part].tolist()))
        yield Piece(view, targets, piece.sources)


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
    view = replace(first, shape=(len(pieces), *first.shape), strides=(step, *first.strides))
    rows = tuple((piece.targets,) for piece in pieces)
    return MatrixBlock(view, rows, tuple(piece.sources for piece in pieces))
