"""Finds the blocks among edges, once it is known which nodes are the same.

Labels say how edges lie: an axis along which only the sources change is one of columns,
only the targets, one of rows, both, one of groups, and neither, one of slots. Where
nodes repeat along an axis in a regular way it is two axes, as that of a flattened
feature map is channels and places. Where the group of nodes changes, or nodes repeat in
no regular way, blocks end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from ngopt.graph.core import View
from ngopt.graph.topology import whole
from ngopt.graph.tracing.edges import Block, Edges
from ngopt.graph.tracing.nodes import Nodes
from ngopt.graph.tracing.unit_edges import unit_edge_blocks
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
)

TARGETS, SOURCES = 0, 1  # places in Piece.ends, where features have targets alone
ENDS = ((TARGETS, SOURCES), (TARGETS,), (SOURCES,))
"""The ends that an axis of groups changes, one of rows, and one of columns."""


def blocks_of(edges: Edges, nodes: Nodes) -> Iterator[Block]:
    """The blocks that edges consist of."""
    if edges.elements is None:
        yield from unit_edge_blocks(edges, nodes)
        return
    for piece in _regular_pieces(edges, edges.elements, nodes):
        for part in _within_groups(piece, nodes):
            for distinct in _distinct_parts(part):
                yield from _arranged(distinct)


@dataclass(frozen=True)
class Piece:
    """Edges whose elements lie at even distances.

    view: (*axes, *slots). ends: the targets and, where there are, the sources, (*axes),
    of length 1 along axes that do not change them.
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
        found = []
        for axis in self.axes:
            if self.view.shape[axis] > 1 and self.changing(axis) == [*ends]:
                found.append(axis)
        return found

    def rows(self, axis: int, ends: Sequence[int]) -> Tensor:
        """The nodes at every place of an axis, (n, k); sources are other numbers than
        targets."""
        rows = []
        for k in ends:
            own = self.ends[k].movedim(axis, 0)
            numbers = own.reshape(len(own), -1)
            rows.append(2 * numbers + k)
        return torch.cat(rows, dim=1)

    def cut(self, axis: int, places: range) -> Piece:
        """The piece at some places of an axis."""
        view = self.view
        stride = view.strides[axis]
        view = replace(
            view,
            shape=_replaced(view.shape, axis, len(places)),
            strides=_replaced(view.strides, axis, stride * places.step),
            offset=view.offset + stride * places.start,
        )
        index = torch.tensor(places)
        ends = list(self.ends)
        changing = self.changing(axis)
        for k in changing:
            left = ends[k].index_select(axis, index)
            # of one place, or of equal ones, the axis changes this end no more
            ends[k] = compact(left)
        path = self.path
        if SOURCES in changing:
            # pieces that share neurons, as in mirrored, see them in different ways
            path = (*path, places.start)
        return Piece(view, tuple(ends), self.kind, path)

    def split(self, axis: int, found: Repeats) -> Piece:
        """The same with two axes for one: that of the nodes, and that of the times they
        come."""
        view = self.view
        stride = view.strides[axis]
        steps = (found.step * stride, found.time_step * stride)
        view = replace(
            view,
            shape=_replaced(view.shape, axis, found.count, found.times),
            strides=_replaced(view.strides, axis, *steps),
        )
        places = found.places()
        index = places.flatten()
        ends = [end.unsqueeze(axis) for end in self.ends]
        for k in self.changing(axis):
            ordered = self.ends[k].index_select(axis, index)
            wide = ordered.unflatten(axis, places.shape)
            # where an end repeats, it has length 1 along the times: that axis does not
            # change it
            ends[k] = compact(wide)
        return replace(self, view=view, ends=tuple(ends))


def _replaced(numbers: tuple[int, ...], place: int, *new: int) -> tuple[int, ...]:
    """Numbers with others at the place of one."""
    return (*numbers[:place], *new, *numbers[place + 1 :])


def _regular_pieces(edges: Edges, elements: Elements, nodes: Nodes) -> Iterator[Piece]:
    """The edges in pieces whose elements lie at even distances; others have no place."""
    ends = _compact_ends(edges, nodes)
    view = elements.view()
    if view is not None:
        yield Piece(view, ends, edges.kind, edges.path)
        return
    numbers = elements.numbers
    # (b, elements, features), as View.read takes it
    flat = numbers.flatten()[None, :, None]
    shape = tuple(numbers.shape)
    # elements at no even distances have no view; their places in `numbers` do, and can
    # be cut
    places = whole(elements.parameter, shape)
    uneven = Piece(places, ends, edges.kind, edges.path)
    for piece in _at_even_distances(uneven, numbers, 0):
        own = piece.view.read(flat)[0, ..., 0]
        part = Elements(elements.parameter, own)
        view = part.view()
        if view is not None:
            yield replace(piece, view=view)


def _compact_ends(edges: Edges, nodes: Nodes) -> tuple[Tensor, ...]:
    """The nodes that now are at the ends, with as many axes each; see `Piece`."""
    ends = not_none(edges.targets, edges.sources)
    axes = max(end.dim() for end in ends)
    found = []
    for end in ends:
        missing = (None,) * (axes - end.dim())
        numbers = nodes.find(end)[missing]
        found.append(compact(numbers))
    return tuple(found)


def _at_even_distances(piece: Piece, numbers: Tensor, axis: int) -> Iterator[Piece]:
    """Pieces in which the first numbers along each axis, from this one on, are evenly
    spaced."""
    if axis not in piece.axes:
        yield piece
        return
    # of all numbers, not the piece's: cuts along other axes leave places along this one
    # as they are
    line = along(numbers, axis)
    runs = even_runs(line)
    start = 0
    for run in runs:
        stop = start + len(run)
        part = piece
        if len(runs) > 1:
            places = range(start, stop)
            part = piece.cut(axis, places)
        yield from _at_even_distances(part, numbers, axis + 1)
        start = stop


def even_runs(numbers: Tensor) -> list[Tensor]:
    """Stretches of numbers with the same step between neighbours."""
    runs = []
    while len(numbers):
        steps = numbers.diff()
        # steps[i] lies behind numbers[i], so that a run ends at the first i of another
        # step
        changes = (steps != steps[:1]).nonzero()
        length = len(numbers)
        if len(changes):
            length = int(changes[0]) + 1
        runs.append(numbers[:length])
        numbers = numbers[length:]
    return runs


def _within_groups(piece: Piece, nodes: Nodes, first: int = 0) -> Iterator[Piece]:
    """Pieces whose ends lie in one group each; along axes before the first they do
    already."""
    # groups in the place of nodes, so that `rows` tells which places have the same
    ends = tuple(nodes.group_of(end) for end in piece.ends)
    groups = replace(piece, ends=ends)
    for axis in piece.axes[first:]:
        changing = piece.changing(axis)
        if all(same_along(groups.ends[k], axis) for k in changing):
            continue
        rows = groups.rows(axis, changing)
        for places in _places_of_equals(rows):
            part = piece.cut(axis, places)
            yield from _within_groups(part, nodes, axis + 1)
        return
    yield piece


def _places_of_equals(rows: Tensor) -> Iterator[range]:
    """Places at even distances of rows (n, k) that are the same."""
    which = row_numbers(rows)
    for number in which.unique():
        places = (which == number).nonzero()
        for run in even_runs(places.flatten()):
            yield _as_range(run)


def _as_range(run: Tensor) -> range:
    """Numbers at an even distance."""
    first, *others = run.tolist()
    if not others:
        return range(first, first + 1)
    step = others[0] - first
    return range(first, others[-1] + 1, step)


def _distinct_parts(piece: Piece) -> Iterator[Piece]:
    """Pieces that have no node twice at an end: what repeats regularly is on axes of
    its own."""
    if _is_distinct(piece):
        yield piece
        return
    for ends in ENDS:  # what repeats at both ends, then what does at one of them
        piece = _repeats_split(piece, ends)
    if _is_distinct(piece):
        yield piece
        return
    for axis in piece.axes:
        changing = piece.changing(axis)
        if not changing:
            continue
        rows = piece.rows(axis, changing)
        # a node that repeats is at two places of some axis, so that there one cut at
        # least is found
        stretches = list(_stretches(rows))
        if len(stretches) > 1:
            for places in stretches:
                part = piece.cut(axis, places)
                yield from _distinct_parts(part)
            return


def _is_distinct(piece: Piece) -> bool:
    return not any(has_duplicates(end) for end in piece.ends)


def _repeats_split(piece: Piece, ends: Sequence[int]) -> Piece:
    """A piece with two axes for each along which those of the ends that it changes
    repeat."""
    # from the last on: a split moves the axes behind it
    for axis in reversed(piece.axes):
        changing = [k for k in piece.changing(axis) if k in ends]
        if not changing:
            continue
        rows = piece.rows(axis, changing)
        which = row_numbers(rows)
        found = regular_repeats(which)
        if found is not None and found.times > 1:
            piece = piece.split(axis, found)
    return piece


def _stretches(rows: Tensor) -> Iterator[range]:
    """Longest stretches of rows (n, k) of which no two have a node in common."""
    start = 0
    seen = set()
    for place, row in enumerate(rows.tolist()):
        if not seen.isdisjoint(row):
            yield range(start, place)
            start = place
            seen = set()
        seen.update(row)
    yield range(start, len(rows))


def _arranged(piece: Piece) -> Iterator[Block]:
    """A piece with its axes in the order of a block, those of one meaning merged."""
    for ends in ENDS:
        axes = piece.changing_just(*ends)
        if not _can_merge(piece.view, axes):
            # one place at a time: an axis of length 1 is left out, and those within may
            # merge
            outer = axes[0]
            for place in range(piece.view.shape[outer]):
                only = range(place, place + 1)
                part = piece.cut(outer, only)
                yield from _arranged(part)
            return
    yield _block(piece)


def _can_merge(view: View, axes: Sequence[int]) -> bool:
    """Whether elements along several axes lie at even distances."""
    for outer, inner in pairwise(axes):
        length = view.shape[inner] * view.strides[inner]
        # as where view() flattens: one step outside passes all of the inside
        if view.strides[outer] != length:
            return False
    return True


def _block(piece: Piece) -> Block:
    """A piece whose axes of one meaning can be merged, as a block."""
    view = piece.view
    groups, rows, columns = (piece.changing_just(*ends) for ends in ENDS)
    repeats = piece.changing_just()
    kernel = range(len(piece.axes), len(view.shape))
    targets, *others = piece.ends
    sources = None
    order = [rows]  # that of features of nodes
    if others:
        sources = _flat(others[0], groups, columns)
        order = [groups, rows, columns]
    n = len(order)
    slots = [*reversed(repeats), *kernel]
    order += [[axis] for axis in slots]
    merged = [_merged(view, axes) for axes in order]
    sizes, strides = zip(*merged, strict=True)
    is_flattened = piece.kind == "weight" and repeats and not kernel
    return Block(
        replace(view, shape=sizes, strides=strides),
        sources,
        _flat(targets, groups, rows),
        shape=sizes[:n],
        slot_shape=sizes[n:],
        kind="flatten" if is_flattened else piece.kind,
        path=piece.path,
    )


def _merged(view: View, axes: Sequence[int]) -> tuple[int, int]:
    """Size and stride of several axes as one."""
    if not axes:
        return 1, 0
    innermost = axes[-1]
    size = prod(view.shape[axis] for axis in axes)
    return size, view.strides[innermost]


def _flat(end: Tensor, first: list[int], second: list[int]) -> Tensor:
    """The nodes at an end in the order of the axes that change them."""
    axes = [*first, *second]
    front = list(range(len(axes)))
    return end.movedim(axes, front).flatten()
