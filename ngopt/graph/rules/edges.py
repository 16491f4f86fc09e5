"""What rules have in common: which columns of a weight belong to which nodes, and edges of value 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.graph.core import View
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Value, regular_repeats, without_repeats


class Segment(NamedTuple):
    """Columns start ... start + n * slots of a weight: the edges from n nodes.

    nodes: (n,). step, slot_step: how many columns further the next node and the next slot are.
    """

    nodes: Tensor
    start: int
    step: int
    slots: int
    slot_step: int


def segments(tracer: Tracer, labels: Tensor) -> list[Segment] | None:
    """Splits the nodes behind a weight's columns into groups, each node once in each segment.

    labels: (columns,). A flattened feature map has a node several times; those columns are slots.
    None where they are in no regular order.
    """
    groups = tracer.nodes.group_of(labels)
    found: list[Segment] = []
    for group in groups.unique().tolist():
        columns = (groups == group).nonzero().flatten()
        for run in _even_runs(columns):
            step = int(run[1] - run[0]) if len(run) > 1 else 1
            part = labels[run]
            repeats = regular_repeats(part)
            if repeats is None:
                return None
            found.append(
                Segment(repeats.of(part), int(run[0]), repeats.step * step, repeats.times, repeats.time_step * step)
            )
    return found


def _even_runs(columns: Tensor) -> list[Tensor]:
    """Stretches of numbers with the same step between neighbours."""
    runs = []
    while len(columns):
        steps = columns[1:] - columns[:-1]
        changes = (steps != steps[:1]).nonzero().flatten()
        length = int(changes[0]) + 1 if len(changes) else len(columns)
        runs.append(columns[:length])
        columns = columns[length:]
    return runs


def connect(tracer: Tracer, weight: Elements, sources: Tensor, targets: Tensor, kind: str | None = None) -> None:
    """Dense edges (n_target, columns); columns of the same source are slots, or uses where they are in no order.

    Their kind is "weight" or "flatten" where no other is given.
    """
    use = tracer.use
    for rows, columns, view in _regular_parts(weight):
        parts = segments(tracer, sources[columns])
        for part in parts or []:
            row, column = view.strides
            slot_shape = (part.slots,) if part.slots > 1 else ()
            shape = (1, view.shape[0], len(part.nodes))
            strides = (0, row, column * part.step, *((column * part.slot_step,) if slot_shape else ()))
            piece = View(weight.parameter, (*shape, *slot_shape), strides, view.offset + part.start * column)
            tracer.use = (*use, (columns.start or 0) + part.start)
            meaning = kind or ("flatten" if slot_shape else "weight")
            tracer.add_block(piece, part.nodes, targets[rows], shape, slot_shape, meaning)
    tracer.use = use
    accompany(tracer, weight, weight.also, sources, targets)


def accompany(tracer: Tracer, weight: Elements, factors: Iterable[Elements], sources: Tensor, targets: Tensor) -> None:
    """Other parameters, (n_target, n_source, ...) each, that are factors or summands of a weight.

    A matrix is edges of its own. What is the same for all sources, as the norms of weight normalisation,
    is a feature of the targets, or the other way round. Of anything else the graph shows nothing.
    """
    for factor in factors:
        axes = [d for d, n in enumerate(factor.shape) if n > 1 and factor.layout.stride(d) != 0]
        if axes == [0, 1] and len(factor.shape) == 2:
            connect(tracer, factor, sources, targets, "scale")
            continue
        ends = targets if axes == [0] else sources if axes == [1] else None
        if ends is None or len(ends) != factor.shape[axes[0]]:
            tracer.fixed.add(weight.parameter)
        else:
            index = tuple(slice(None) if d == axes[0] else 0 for d in range(len(factor.shape)))
            tracer.add_bias(factor.move(lambda f, i=index: f[i], (factor,), {}), ends, "scale")


def _regular_parts(weight: Elements) -> Iterator[tuple[slice, slice, View]]:
    """Rows, columns and view of the pieces of a matrix in which elements lie at even distances."""
    view = weight.view()
    if view is not None:
        yield slice(None), slice(None), view
        return
    numbers = weight.numbers
    row = 0
    for rows in _even_runs(numbers[:, 0]):
        column = 0
        for columns in _even_runs(numbers[0]):
            chosen = slice(row, row + len(rows)), slice(column, column + len(columns))
            piece = Elements(weight.parameter, numbers[chosen]).view()
            if piece is not None:
                yield *chosen, piece
            column += len(columns)
        row += len(rows)


def connect_cells(tracer: Tracer, view: View, sources: Tensor, targets: Tensor) -> None:
    """Edges (groups, n_target, n_source, *slots) of a convolution from channels that may belong to several layers."""
    groups, n_target, n_source = view.shape[:3]
    if groups > 1 and n_source > 1:
        if sources.unique().numel() == len(sources):
            tracer.add_block(view, sources, targets, (groups, n_target, n_source), view.shape[3:])
        return
    for part in segments(tracer, sources) or []:
        n = len(part.nodes)
        if groups > 1:
            for k in range(part.slots):  # a channel that comes in several groups has other targets in each
                places = part.start + k * part.slot_step + torch.arange(n) * part.step
                strides = (view.strides[0] * part.step, *view.strides[1:])
                offset = view.offset + int(places[0]) * view.strides[0]
                piece = View(view.parameter, (n, *view.shape[1:]), strides, offset)
                reached = targets.reshape(groups, n_target)[places].flatten()
                tracer.add_block(piece, part.nodes, reached, (n, n_target, 1), view.shape[3:])
        else:
            row, column, *kernel = view.strides[1:]
            slot_shape = (part.slots, *view.shape[3:]) if part.slots > 1 else view.shape[3:]
            slot_strides = (part.slot_step * column, *kernel) if part.slots > 1 else tuple(kernel)
            shape = (1, n_target, n)
            strides = (0, row, part.step * column, *slot_strides)
            piece = View(view.parameter, (*shape, *slot_shape), strides, view.offset + part.start * column)
            tracer.add_block(piece, part.nodes, targets, shape, slot_shape)


def join_places(tracer: Tracer, labels: Tensor, channel: int) -> None:
    """Neurons of a feature map (*batch, channels, *space) that differ from place to place become one for each channel.

    A linear layer that makes a map, or a pixel shuffle, has a neuron for every place of a channel. What works
    alike on all places tells these apart by nothing but where they are: they are slots.
    """
    (labels,) = without_repeats([labels], keep=[channel % labels.dim()])
    n = labels.shape[channel]
    maps = tracer.nodes.find(labels).movedim(channel, -1).flatten(channel % labels.dim(), -2)
    for places in maps.reshape(-1, *maps.shape[-2:]).unique(dim=0):
        rows = places.unique(dim=0)
        if (rows >= 0).all() and rows.unique().numel() == len(rows) * n > n:
            tracer.nodes.unify(rows[:1].expand_as(rows), rows)
            _join_partners(tracer)


def _join_partners(tracer: Tracer) -> None:
    """Joins what edges lead to one by one from neurons that were joined, and what they come from."""
    changed = True
    while changed:
        changed = False
        for block in tracer.blocks:
            ends = [tracer.nodes.find(nodes) for nodes in (block.sources, block.targets)]
            for here, there in (ends, ends[::-1]) if block.shape[1:] == (1, 1) else ():
                nodes, which = here.unique(return_inverse=True)
                first = torch.full_like(nodes, int(there.max())).scatter_reduce(0, which, there, "amin")[which]
                if not torch.equal(first, there):
                    tracer.nodes.unify(first, there)
                    changed = True


def add_bias(tracer: Tracer, bias: Value, targets: Tensor, kind: str = "bias") -> None:
    if isinstance(bias, Elements):
        tracer.add_bias(bias, targets, kind)


def add_scale(tracer: Tracer, view: View, sources: Tensor, targets: Tensor, kind: str) -> None:
    """Edges from one to one with the elements of a view (n, *slots)."""
    n, *slot_shape = view.shape
    stride, *rest = view.strides
    wide = View(view.parameter, (n, 1, 1, *slot_shape), (stride, 0, 0, *rest), view.offset)
    tracer.add_block(wide, sources, targets, (n, 1, 1), tuple(slot_shape), kind)


def diagonal(tracer: Tracer, sources: Tensor, targets: Tensor, kind: str) -> None:
    """Edges of value 1 from sources[i] to targets[i]; a source that occurs again goes to a block of its own."""
    for part in _without_repeats(sources):
        tracer.add_block(None, sources[part], targets[part], (len(part), 1, 1), kind=kind)


def fan_out(tracer: Tracer, sources: Tensor, targets: Tensor, n: int, kind: str) -> None:
    """Edges of value 1 from sources[i] to n targets each."""
    targets = targets.reshape(-1, n)
    for part in _without_repeats(sources):
        tracer.add_block(None, sources[part], targets[part].flatten(), (len(part), n, 1), kind=kind)


def _without_repeats(nodes: Tensor) -> list[Tensor]:
    """Positions, split so that no node comes twice in a part."""
    parts, rest = [], torch.arange(len(nodes))
    while len(rest):
        _, inverse = nodes[rest].unique(return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(rest)).scatter_reduce(
            0, inverse, torch.arange(len(rest)), "amin"
        )
        taken = first.sort().values
        parts.append(rest[taken])
        keep = torch.ones(len(rest), dtype=torch.bool)
        keep[taken] = False
        rest = rest[keep]
    return parts


def edges_between(tracer: Tracer, sources: Tensor, targets: Tensor, kind: str) -> None:
    """Edges of value 1 from sources[i] to targets[i], all targets different.

    One block for all sources that have equally many.
    """
    nodes, owner, counts = sources.unique(return_inverse=True, return_counts=True)
    for count in counts.unique().tolist():
        members = counts[owner] == count
        reached = targets[members][owner[members].argsort(stable=True)]
        fan_out(tracer, nodes[counts == count], reached, count, kind)
