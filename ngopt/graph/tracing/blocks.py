"""Edges and features of nodes, as rules add them, and the blocks that they consist of,
which are found when no more nodes are unified.

Labels decide the meaning of each axis. Only the sources change along an axis of
columns, only the targets along one of rows, both along one of groups, and neither along
one of slots. An axis along which nodes repeat regularly becomes two axes: a flattened
feature map has channels and places. Blocks end where the group of nodes changes, or
where nodes repeat irregularly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import View, even_runs
from ngopt.graph.tracing.nodes import Nodes
from ngopt.graph.tracing.values import (
    Elements,
    Repeats,
    along,
    compact,
    has_duplicates,
    not_none,
    regular_repeats,
    row_numbers,
    same_along,
    strided_numbers,
    unique_pairs,
)

TARGETS, SOURCES = 0, 1  # indices of EdgePiece.ends; features have targets alone
ENDS = ((TARGETS, SOURCES), (TARGETS,), (SOURCES,))
"""The ends that change along an axis of groups, of rows, and of columns."""


@dataclass(frozen=True)
class Edges:
    """Edges whose values are elements of a parameter, or features of nodes.

    sources, targets: labels of nodes that broadcast to one shape (*axes). Without
    sources, elements are features of the targets.
    elements: (*axes, *slots); None for edges of value 1.
    path: the operands and options of the function. Edges of the same path have the same
    activations of their sources.
    """

    elements: Elements | None
    sources: Tensor | None
    targets: Tensor
    kind: str
    path: tuple


@dataclass(frozen=True)
class Block:
    """A regular piece of `Edges`: an `EdgeBlock` or `Bias` of node numbers.

    No node occurs twice in an end, and each end is in one group.
    sources: (groups * n_source,). targets: (groups * n_target,). view: (*shape,
    *slot_shape), where shape is (groups, n_target, n_source); or (n, *slot_shape) for
    features of n targets.
    """

    view: View | None
    sources: Tensor | None
    targets: Tensor
    shape: tuple[int, ...]
    slot_shape: tuple[int, ...]
    kind: str
    path: tuple


def blocks_of(edges: Edges, nodes: Nodes) -> Iterator[Block]:
    """The blocks that edges consist of."""
    if edges.elements is None:
        yield from _unit_edge_blocks(edges, nodes)
        return
    for regular in _regular_pieces(edges, edges.elements, nodes):
        for piece in _within_groups(regular, nodes):
            for distinct in _distinct_parts(piece):
                yield from _arranged(distinct)


def _unit_edge_blocks(edges: Edges, nodes: Nodes) -> Iterator[Block]:
    """Edges of value 1, each once: from one source to several targets, or from several
    sources to one target."""
    assert edges.sources is not None, "features of nodes are elements"
    ends = nodes.find(edges.sources), nodes.find(edges.targets)
    sources, targets = torch.broadcast_tensors(*ends)
    pairs, _ = unique_pairs(sources.flatten(), targets.flatten())
    which = row_numbers(nodes.group_of(pairs).T)
    for number in which.unique():
        part = pairs[:, which == number]
        # centers at the end of fewer nodes, with equally many edges in a block
        from_sources = len(part[0].unique()) <= len(part[1].unique())
        centers, others = part if from_sources else part.flip(0)
        for star in _stars_around(centers, others):
            sources, targets = star if from_sources else reversed(star)
            # the number of centers, all at one end: one of the quotients is 1
            n = min(len(sources), len(targets))
            shape = (n, len(targets) // n, len(sources) // n)
            yield Block(None, sources, targets, shape, (), edges.kind, edges.path)


def _stars_around(centers: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Different centers, and the equally many others of each, one after the other."""
    nodes, owner, degrees = centers.unique(return_inverse=True, return_counts=True)
    if has_duplicates(others):  # shared ones: each center has a block of its own
        parts = torch.eye(len(nodes), dtype=torch.bool)
    else:
        # (parts, centers): centers of a block have equally many edges
        parts = degrees == degrees.unique()[:, None]
    for part in parts:
        members = part[owner]
        # stable: the others of a center stay in their order
        order = owner[members].argsort(stable=True)
        yield nodes[part], others[members][order]


@dataclass(frozen=True)
class EdgePiece:
    """Edges whose elements are strided.

    view: (*axes, *slots). ends: the targets and the sources, if any, (*axes), of length
    1 along axes that do not change them.
    """

    view: View
    ends: tuple[Tensor, ...]
    kind: str
    path: tuple

    @property
    def axes(self) -> range:
        return range(self.ends[0].dim())

    def changing(self, axis: int) -> list[int]:
        """The ends that an axis changes, `TARGETS` or `SOURCES`."""
        return [k for k, end in enumerate(self.ends) if end.shape[axis] > 1]

    def changing_just(self, *ends: int) -> list[int]:
        """The axes of more than one place that change these ends and no other."""
        long_axes = [axis for axis in self.axes if self.view.shape[axis] > 1]
        return [axis for axis in long_axes if self.changing(axis) == [*ends]]

    def rows(self, axis: int, ends: Sequence[int]) -> Tensor:
        """The nodes (n, k) at every place of an axis; sources differ from targets."""
        rows = []
        for k in ends:
            end = self.ends[k].movedim(axis, 0)
            rows.append(2 * end.reshape(len(end), -1) + k)
        return torch.cat(rows, dim=1)

    def cut(self, axis: int, places: range) -> "EdgePiece":
        """The piece at some places of an axis."""
        view = self.view
        stride = view.strides[axis]
        shape = _replaced(view.shape, axis, len(places))
        strides = _replaced(view.strides, axis, stride * places.step)
        offset = view.offset + stride * places.start
        view = replace(view, shape=shape, strides=strides, offset=offset)
        index = torch.tensor(places)
        ends = list(self.ends)
        changing = self.changing(axis)
        for k in changing:
            # a single place, or equal ones, no longer change this end
            ends[k] = compact(ends[k].index_select(axis, index))
        path = self.path
        if SOURCES in changing:
            # pieces that share neurons are different uses of these
            path = (*path, places.start)
        return EdgePiece(view, tuple(ends), self.kind, path)

    def split(self, axis: int, repeats: Repeats) -> "EdgePiece":
        """The same with two axes for one: the nodes, and their occurrences."""
        view = self.view
        steps = [view.strides[axis] * places for places in repeats.strides]
        shape = _replaced(view.shape, axis, *repeats.shape)
        strides = _replaced(view.strides, axis, *steps)
        view = replace(view, shape=shape, strides=strides)
        index = strided_numbers(repeats.shape, repeats.strides, 0).flatten()
        ends = [end.unsqueeze(axis) for end in self.ends]
        for k in self.changing(axis):
            ordered = self.ends[k].index_select(axis, index)
            # an end that repeats gets length 1 along the occurrences
            ends[k] = compact(ordered.unflatten(axis, repeats.shape))
        return replace(self, view=view, ends=tuple(ends))


def _replaced(numbers: tuple[int, ...], place: int, *new: int) -> tuple[int, ...]:
    """Numbers with others in the place of one."""
    return (*numbers[:place], *new, *numbers[place + 1 :])


def _regular_pieces(
    edges: Edges, elements: Elements, nodes: Nodes
) -> Iterator[EdgePiece]:
    """The edges in strided pieces; elements of no piece are left out."""
    given = not_none(edges.targets, edges.sources)
    axes = max(end.dim() for end in given)
    # the present nodes, with equally many axes
    present = (nodes.find(end)[(None,) * (axes - end.dim())] for end in given)
    ends = tuple(map(compact, present))
    view = elements.view()
    if view is not None:
        yield EdgePiece(view, ends, edges.kind, edges.path)
        return
    numbers = elements.numbers
    # (b, elements, features), as View.read takes it
    flat = numbers.flatten()[None, :, None]
    # elements that are not strided have no view; their places in `numbers` have one
    places = View.whole(elements.parameter, tuple(numbers.shape))
    uneven = EdgePiece(places, ends, edges.kind, edges.path)
    for piece in _strided_pieces(uneven, numbers, 0):
        numbers_of_piece = piece.view.read(flat)[0, ..., 0]
        view = Elements(elements.parameter, numbers_of_piece).view()
        if view is not None:
            yield replace(piece, view=view)


def _strided_pieces(
    piece: EdgePiece, numbers: Tensor, axis: int
) -> Iterator[EdgePiece]:
    """Pieces whose first numbers along each axis, from this one on, are strided."""
    if axis not in piece.axes:
        yield piece
        return
    # of all numbers, not the piece's: other cuts do not change places along this axis
    runs = even_runs(along(numbers, axis))
    start = 0
    for run in runs:
        places = range(start, start + len(run))
        part = piece.cut(axis, places) if len(runs) > 1 else piece
        yield from _strided_pieces(part, numbers, axis + 1)
        start = places.stop


def _within_groups(
    piece: EdgePiece, nodes: Nodes, first: int = 0
) -> Iterator[EdgePiece]:
    """Pieces whose ends are in one group each; `first` is the first axis to cut."""
    # groups in the place of nodes, so that `rows` returns groups
    groups = replace(piece, ends=tuple(map(nodes.group_of, piece.ends)))
    for axis in piece.axes[first:]:
        changing = piece.changing(axis)
        if all(same_along(groups.ends[k], axis) for k in changing):
            continue
        which = row_numbers(groups.rows(axis, changing))
        for number in which.unique():
            for run in even_runs((which == number).nonzero().flatten()):
                places = run.tolist()
                step = places[1] - places[0] if len(places) > 1 else 1
                cut = piece.cut(axis, range(places[0], places[-1] + 1, step))
                yield from _within_groups(cut, nodes, axis + 1)
        return
    yield piece


def _distinct_parts(piece: EdgePiece) -> Iterator[EdgePiece]:
    """Pieces without a node twice in an end: regular repeats get axes of their own."""
    if _is_distinct(piece):
        yield piece
        return
    for ends in ENDS:  # repeats of both ends, then of one of them
        # from the last axis on: a split moves the axes behind it
        for axis in reversed(piece.axes):
            changing = [k for k in piece.changing(axis) if k in ends]
            if changing:
                repeats = regular_repeats(row_numbers(piece.rows(axis, changing)))
                if repeats is not None and repeats.shape[1] > 1:
                    piece = piece.split(axis, repeats)
    if _is_distinct(piece):
        yield piece
        return
    for axis in piece.axes:
        changing = piece.changing(axis)
        if not changing:
            continue
        # a node that repeats is at two places of some axis, so there is a cut
        stretches = list(_stretches(piece.rows(axis, changing)))
        if len(stretches) > 1:
            for places in stretches:
                yield from _distinct_parts(piece.cut(axis, places))
            return


def _is_distinct(piece: EdgePiece) -> bool:
    return not any(map(has_duplicates, piece.ends))


def _stretches(rows: Tensor) -> Iterator[range]:
    """Longest stretches of rows (n, k) that share no node."""
    start = 0
    seen = set()
    for place, row in enumerate(rows.tolist()):
        if not seen.isdisjoint(row):
            yield range(start, place)
            start = place
            seen = set()
        seen.update(row)
    yield range(start, len(rows))


def _arranged(piece: EdgePiece) -> Iterator[Block]:
    """A piece as blocks: axes in their order, those of one meaning merged."""
    view = piece.view
    axes_of_ends = [piece.changing_just(*ends) for ends in ENDS]
    for axes in axes_of_ends:
        # elements along several axes are strided as along one if, as in view(), each
        # outer stride is the length of the inner axis
        if any(
            view.strides[outer] != view.shape[inner] * view.strides[inner]
            for outer, inner in pairwise(axes)
        ):
            # one place at a time: an axis of length 1 is left out, the rest may merge
            for place in range(view.shape[axes[0]]):
                yield from _arranged(piece.cut(axes[0], range(place, place + 1)))
            return
    groups, rows, columns = axes_of_ends
    repeats = piece.changing_just()
    kernel = range(len(piece.axes), len(view.shape))
    targets = _flat(piece.ends[TARGETS], groups + rows)
    sources = None
    order = [rows]  # of features
    if len(piece.ends) > 1:
        sources = _flat(piece.ends[SOURCES], groups + columns)
        order = [groups, rows, columns]
    n = len(order)
    order += [[axis] for axis in (*reversed(repeats), *kernel)]
    sizes = tuple(prod(view.shape[axis] for axis in axes) for axes in order)
    strides = tuple(view.strides[axes[-1]] if axes else 0 for axes in order)
    is_flattened = piece.kind == "weight" and repeats and not kernel
    yield Block(
        replace(view, shape=sizes, strides=strides),
        sources,
        targets,
        shape=sizes[:n],
        slot_shape=sizes[n:],
        kind="flatten" if is_flattened else piece.kind,
        path=piece.path,
    )


def _flat(end: Tensor, axes: list[int]) -> Tensor:
    """The nodes at an end in the order of the axes that change them."""
    return end.movedim(axes, list(range(len(axes)))).flatten()
