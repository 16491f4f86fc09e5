"""Finds the blocks among edges, once it is known which nodes are the same.

Labels say how edges lie: an axis along which only the sources change is one of columns, only the
targets, one of rows, both, one of groups, and neither, one of slots. Where nodes repeat along an
axis in a regular way it is two axes, as that of a flattened feature map is channels and places.
Where the group of nodes changes, or nodes repeat in no regular way, blocks end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ngopt.graph.core import View
from ngopt.graph.tracing.edges import Block, Edges
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.nodes import Nodes
from ngopt.graph.tracing.values import (
    Repeats,
    compact,
    regular_repeats,
    repeats_any,
    same_along,
    unique_pairs,
)


def blocks_of(edges: Edges, nodes: Nodes) -> Iterator[Block]:
    """The blocks that edges consist of."""
    if edges.elements is None:
        yield from _stars(edges, nodes)
        return
    for piece in _regular_pieces(edges, edges.elements, nodes):
        for part in _within_groups(piece, nodes):
            for distinct in _without_repeats(part):
                yield from _arranged(distinct)


@dataclass(frozen=True)
class Piece:
    """Edges whose elements lie at even distances.

    view: (*axes, *slots). ends: the targets and, where there are, the sources, (*axes), of length 1
    along axes that do not change them.
    """

    view: View
    ends: tuple[Tensor, ...]
    kind: str
    path: tuple

    @property
    def axes(self) -> range:
        return range(self.ends[0].dim())

    def changing(self, axis: int) -> list[int]:
        """The ends that an axis changes: 0 for targets, 1 for sources."""
        return [k for k, end in enumerate(self.ends) if end.shape[axis] > 1]

    def rows(self, axis: int, ends: Sequence[int]) -> Tensor:
        """The nodes at every place of an axis, (n, k); sources are other numbers than targets."""
        rows = []
        for k in ends:
            end = 2 * self.ends[k].movedim(axis, 0) + k
            rows.append(end.reshape(len(end), -1))
        return torch.cat(rows, dim=1)

    def cut(self, axis: int, places: range) -> Piece:
        """The piece at some places of an axis."""
        view, stride = self.view, self.view.strides[axis]
        shape = _replaced(view.shape, axis, len(places))
        strides = _replaced(view.strides, axis, stride * places.step)
        offset = view.offset + stride * places.start
        ends = list(self.ends)
        changing = self.changing(axis)
        for k in changing:
            ends[k] = compact(ends[k].index_select(axis, torch.tensor(places)))
        path = (*self.path, places.start) if 1 in changing else self.path
        view = View(view.parameter, shape, strides, offset)
        return Piece(view, tuple(ends), self.kind, path)

    def split(self, axis: int, found: Repeats) -> Piece:
        """The same with two axes for one: that of the nodes, and that of the times they come."""
        view, stride = self.view, self.view.strides[axis]
        shape = _replaced(view.shape, axis, found.count, found.times)
        strides = _replaced(view.strides, axis, found.step * stride, found.time_step * stride)
        ends = [end.unsqueeze(axis) for end in self.ends]
        places = found.places()
        for k in self.changing(axis):
            wide = self.ends[k].index_select(axis, places.flatten())
            ends[k] = compact(wide.unflatten(axis, places.shape))
        view = View(view.parameter, shape, strides, view.offset)
        return Piece(view, tuple(ends), self.kind, self.path)


def _replaced(numbers: tuple[int, ...], place: int, *new: int) -> tuple[int, ...]:
    """Numbers with others at the place of one."""
    return (*numbers[:place], *new, *numbers[place + 1 :])


def _regular_pieces(edges: Edges, elements: Elements, nodes: Nodes) -> Iterator[Piece]:
    """The edges in pieces whose elements lie at even distances; others have no place."""
    ends = [edges.targets] if edges.sources is None else [edges.targets, edges.sources]
    axes = max(end.dim() for end in ends)
    found = []
    for end in ends:
        missing = (None,) * (axes - end.dim())
        found.append(compact(nodes.find(end)[missing]))
    view = elements.view()
    if view is not None:
        yield Piece(view, tuple(found), edges.kind, edges.path)
        return
    numbers = elements.numbers
    strides = torch.empty(numbers.shape, device="meta").stride()
    places = View(0, tuple(numbers.shape), strides)
    whole = Piece(places, tuple(found), edges.kind, edges.path)
    for piece in _at_even_distances(whole, numbers, 0):
        flat = numbers.flatten()[None, :, None]
        own = piece.view.read(flat)[0, ..., 0]
        view = Elements(elements.parameter, own).view()
        if view is not None:
            yield replace(piece, view=view)


def _at_even_distances(piece: Piece, numbers: Tensor, axis: int) -> Iterator[Piece]:
    """Pieces in which the first numbers along each axis, from this one on, are evenly spaced."""
    if axis not in piece.axes:
        yield piece
        return
    line = numbers.movedim(axis, 0).reshape(numbers.shape[axis], -1)[:, 0]
    start = 0
    for run in even_runs(line):
        places = range(start, start + len(run))
        start += len(run)
        part = piece if len(run) == len(line) else piece.cut(axis, places)
        yield from _at_even_distances(part, numbers, axis + 1)


def even_runs(numbers: Tensor) -> list[Tensor]:
    """Stretches of numbers with the same step between neighbours."""
    runs = []
    while len(numbers):
        steps = numbers[1:] - numbers[:-1]
        changes = (steps != steps[:1]).nonzero().flatten()
        length = int(changes[0]) + 1 if len(changes) else len(numbers)
        runs.append(numbers[:length])
        numbers = numbers[length:]
    return runs


def _within_groups(piece: Piece, nodes: Nodes, first: int = 0) -> Iterator[Piece]:
    """Pieces whose ends lie in one group each; along axes before the first they do already."""
    groups = replace(piece, ends=tuple(nodes.group_of(end) for end in piece.ends))
    for axis in piece.axes[first:]:
        changing = piece.changing(axis)
        if all(same_along(groups.ends[k], axis) for k in changing):
            continue
        rows = groups.rows(axis, changing)
        signatures, which = rows.unique(dim=0, return_inverse=True)
        for number in range(len(signatures)):
            for run in even_runs((which == number).nonzero().flatten()):
                yield from _within_groups(piece.cut(axis, _as_range(run)), nodes, axis + 1)
        return
    yield piece


def _as_range(run: Tensor) -> range:
    """Numbers at an even distance."""
    step = int(run[1] - run[0]) if len(run) > 1 else 1
    return range(int(run[0]), int(run[-1]) + 1, step)


def _without_repeats(piece: Piece) -> Iterator[Piece]:
    """Pieces that have no node twice at an end: what repeats regularly is on axes of its own."""
    if _is_distinct(piece):
        yield piece
        return
    for ends in ([0, 1], [0], [1]):  # what repeats at both ends, then what does at one of them
        piece = _repeats_split(piece, ends)
    if _is_distinct(piece):
        yield piece
        return
    for axis in piece.axes:
        changing = piece.changing(axis)
        parts = list(_stretches(piece.rows(axis, changing))) if changing else []
        if len(parts) > 1:
            for part in parts:
                yield from _without_repeats(piece.cut(axis, part))
            return


def _is_distinct(piece: Piece) -> bool:
    return not any(repeats_any(end) for end in piece.ends)


def _repeats_split(piece: Piece, ends: Sequence[int]) -> Piece:
    """A piece with two axes for each along which those of the ends that it changes repeat."""
    for axis in reversed(piece.axes):
        changing = [k for k in piece.changing(axis) if k in ends]
        if changing:
            rows = piece.rows(axis, changing)
            found = regular_repeats(rows.unique(dim=0, return_inverse=True)[1])
            if found is not None and found.times > 1:
                piece = piece.split(axis, found)
    return piece


def _stretches(rows: Tensor) -> Iterator[range]:
    """Longest stretches of rows (n, k) of which no two have a node in common."""
    start, seen = 0, set()
    for place, row in enumerate(rows.tolist()):
        if not seen.isdisjoint(row):
            yield range(start, place)
            start, seen = place, set()
        seen.update(row)
    yield range(start, len(rows))


def _arranged(piece: Piece) -> Iterator[Block]:
    """A piece with its axes in the order of a block, those of one meaning merged."""
    view = piece.view
    meanings: dict[tuple[int, ...], list[int]] = {(0, 1): [], (0,): [], (1,): [], (): []}
    for axis in piece.axes:
        if view.shape[axis] > 1:
            meanings[tuple(piece.changing(axis))].append(axis)
    groups, rows, columns, repeats = meanings.values()
    lead = []
    for axes in (groups, rows, columns):
        merged = _merged(view, axes)
        if merged is None:  # one block for each place of the outer axis
            for place in range(view.shape[axes[0]]):
                yield from _arranged(piece.cut(axes[0], range(place, place + 1)))
            return
        lead.append(merged)
    targets, *sources = piece.ends
    if not sources:  # features of nodes, whose only axis is that of rows
        lead = lead[1:2]
    kernel = range(len(piece.axes), len(view.shape))
    slots = [(view.shape[axis], view.strides[axis]) for axis in (*reversed(repeats), *kernel)]
    shape = tuple(size for size, _ in lead)
    slot_shape = tuple(size for size, _ in slots)
    strides = tuple(stride for _, stride in (*lead, *slots))
    is_flattened = piece.kind == "weight" and repeats and not kernel
    yield Block(
        View(view.parameter, (*shape, *slot_shape), strides, view.offset),
        _flat(sources[0], groups, columns) if sources else None,
        _flat(targets, groups, rows),
        shape,
        slot_shape,
        "flatten" if is_flattened else piece.kind,
        piece.path,
    )


def _merged(view: View, axes: Sequence[int]) -> tuple[int, int] | None:
    """Size and stride of several axes as one, None if their elements lie at no even distance."""
    size, stride = 1, 0
    for axis in reversed(axes):
        if size > 1 and view.strides[axis] != size * stride:
            return None
        stride = stride if size > 1 else view.strides[axis]
        size *= view.shape[axis]
    return size, stride


def _flat(end: Tensor, first: list[int], second: list[int]) -> Tensor:
    """The nodes at an end in the order of the axes that change them."""
    others = [axis for axis in range(end.dim()) if axis not in first and axis not in second]
    return end.permute(*first, *second, *others).flatten()


def _stars(edges: Edges, nodes: Nodes) -> Iterator[Block]:
    """Edges of value 1, each once: from one source to several targets, or the other way round."""
    assert edges.sources is not None, "features of nodes are elements"
    ends = torch.broadcast_tensors(nodes.find(edges.sources), nodes.find(edges.targets))
    pairs, _ = unique_pairs(*(end.flatten() for end in ends))
    signatures, which = nodes.group_of(pairs).unique(dim=1, return_inverse=True)
    for number in range(signatures.shape[1]):
        for sources, targets, shape in _stars_of_two_groups(pairs[:, which == number]):
            yield Block(None, sources, targets, shape, (), edges.kind, edges.path)


def _stars_of_two_groups(pairs: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[int, int, int]]]:
    """Sources, targets and shape of blocks in which the centers have equally many edges."""
    if not any(repeats_any(end) for end in pairs):
        yield pairs[0], pairs[1], (pairs.shape[1], 1, 1)
        return
    counts = [end.unique().numel() for end in pairs]
    centers = 1 if counts[0] > counts[1] else 0
    nodes, owner, degrees = pairs[centers].unique(return_inverse=True, return_counts=True)
    if counts[1 - centers] == pairs.shape[1]:
        parts = [degrees == degree for degree in degrees.unique()]
    else:  # others are shared: each center has a block of its own
        parts = list(torch.eye(len(nodes), dtype=torch.bool))
    for part in parts:
        members = part[owner]
        others = pairs[1 - centers][members][owner[members].argsort(stable=True)]
        n = int(part.sum())
        if centers:
            yield others, nodes[part], (n, 1, len(others) // n)
        else:
            yield nodes[part], others, (n, len(others) // n, 1)
