"""Pieces of parameters that meet a neuron several times: their repeats become slots.

Neurons may turn out to be one and the same after a parameter has met them, as features at positions
that a later weight shares. Rows of a weight or elements of a bias that meet one neuron are its slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ngopt.graph.core import View
from ngopt.graph.tracing.raw import RawBias, RawBlock
from ngopt.graph.tracing.values import Repeats, regular_repeats, unique_pairs


def distinct_nodes(bias: RawBias) -> Iterator[RawBias]:
    """The same in pieces that have no node twice, with slots where nodes repeat regularly."""
    found = regular_repeats(bias.nodes)
    if found is None:
        for part in _stretches(bias.nodes[:, None]):
            yield replace(bias, view=cut(bias.view, 0, part), nodes=bias.nodes[part])
    elif found.times == 1:
        yield bias
    else:
        view = _folded(bias.view, 0, found, at=1)
        yield replace(bias, view=view, nodes=found.of(bias.nodes), slot_shape=view.shape[1:])


def distinct_ends(block: RawBlock) -> Iterator[RawBlock]:
    """The same in pieces that have no node twice at an end, with slots where ends repeat regularly."""
    if _is_distinct(block):
        yield block
    elif block.view is None:
        yield from _each_edge_once(block)
    else:
        yield from _split(_regrouped(_with_slots(block, block.view)))


def _is_distinct(block: RawBlock) -> bool:
    return all(nodes.unique().numel() == len(nodes) for nodes in (block.sources, block.targets))


def _ends(block: RawBlock, axis: int) -> Tensor:
    """The nodes at every place of an axis (groups, targets, sources), (n, k); targets are told from sources."""
    g, t, s = block.shape
    sources, targets = 2 * block.sources.reshape(g, s), 2 * block.targets.reshape(g, t) + 1
    return (torch.cat([sources, targets], dim=1), targets.T, sources.T)[axis]


def _with_slots(block: RawBlock, view: View) -> RawBlock:
    """The same with slots for groups, rows or columns that repeat regularly."""
    for axis in range(3):
        found = regular_repeats(_ends(block, axis).unique(dim=0, return_inverse=True)[1])
        if found is not None and found.times > 1:
            view = _folded(view, axis, found, at=3)
            block = _chosen(block, axis, found.places(), view)
    kind = "flatten" if block.kind == "weight" and not block.slot_shape and view.shape[3:] else block.kind
    return replace(block, view=view, slot_shape=view.shape[3:], kind=kind)


def _regrouped(block: RawBlock) -> RawBlock:
    """Edges from one to one whose sources or targets repeat regularly, as one group for each of these."""
    view = block.view
    assert view is not None
    if block.shape[1:] != (1, 1):
        return block
    for repeating, others, axis in (("sources", "targets", 1), ("targets", "sources", 2)):
        found = regular_repeats(getattr(block, repeating))
        if found is not None and found.times > 1:
            order = (found.places()[:, None] + torch.arange(found.times) * found.time_step).flatten()
            view = _folded(view, 0, found, at=axis)
            view = replace(view, shape=_without(view.shape, axis + 1), strides=_without(view.strides, axis + 1))
            ends = {repeating: found.of(getattr(block, repeating)), others: getattr(block, others)[order]}
            return replace(block, view=view, shape=view.shape[:3], **ends)
    return block


def _without(numbers: tuple[int, ...], place: int) -> tuple[int, ...]:
    return (*numbers[:place], *numbers[place + 1 :])


def _split(block: RawBlock) -> Iterator[RawBlock]:
    """Pieces of a block whose repeats are in no order that slots could have."""
    for axis in range(3):
        parts = list(_stretches(_ends(block, axis)))
        if len(parts) > 1:
            assert block.view is not None
            for part in parts:
                places = torch.arange(block.shape[axis])[part]
                yield from distinct_ends(_chosen(block, axis, places, cut(block.view, axis, part)))
            return
    yield block


def _chosen(block: RawBlock, axis: int, places: Tensor, view: View) -> RawBlock:
    """The groups, rows or columns at some places, with the view of these."""
    g, t, s = block.shape
    sources, targets = block.sources.reshape(g, s), block.targets.reshape(g, t)
    if axis != 1:
        sources = sources[places] if axis == 0 else sources[:, places]
    if axis != 2:
        targets = targets[places] if axis == 0 else targets[:, places]
    return replace(block, view=view, shape=view.shape[:3], sources=sources.flatten(), targets=targets.flatten())


def _folded(view: View, axis: int, found: Repeats, at: int) -> View:
    """A view whose repeats along an axis have an axis of their own."""
    shape, strides = list(view.shape), list(view.strides)
    shape[axis], strides[axis] = found.count, view.strides[axis] * found.step
    shape.insert(at, found.times)
    strides.insert(at, view.strides[axis] * found.time_step)
    return replace(view, shape=tuple(shape), strides=tuple(strides))


def cut(view: View, axis: int, part: slice) -> View:
    """The part of a view that lies in a stretch of one axis."""
    shape = (*view.shape[:axis], part.stop - part.start, *view.shape[axis + 1 :])
    return replace(view, shape=shape, offset=view.offset + part.start * view.strides[axis])


def _stretches(ends: Tensor) -> Iterator[slice]:
    """Longest stretches of rows (n, k) of which no two have a node in common."""
    start, seen = 0, set()
    for place, row in enumerate(ends.tolist()):
        if not seen.isdisjoint(row):
            yield slice(start, place)
            start, seen = place, set()
        seen.update(row)
    yield slice(start, len(ends))


def _each_edge_once(block: RawBlock) -> Iterator[RawBlock]:
    """Edges of value 1, each of them once, in blocks of equally many for each source or each target."""
    g, t, s = block.shape
    sources, targets = block.sources.reshape(g, 1, s), block.targets.reshape(g, t, 1)
    pairs, _ = unique_pairs(sources.expand(g, t, s).flatten(), targets.expand(g, t, s).flatten())
    one = 1 if pairs[0].unique().numel() == pairs.shape[1] else 0  # the end that may have several edges
    nodes, owner, counts = pairs[one].unique(return_inverse=True, return_counts=True)
    alone = pairs[1 - one].unique().numel() == pairs.shape[1]
    for members in (counts == c for c in counts.unique()) if alone else torch.eye(len(nodes), dtype=torch.bool):
        which = members[owner]
        others = pairs[1 - one][which][owner[which].argsort(stable=True)]
        n = int(members.sum())
        shape = (n, 1, len(others) // n) if one else (n, len(others) // n, 1)
        ends = (others, nodes[members]) if one else (nodes[members], others)
        yield replace(block, sources=ends[0], targets=ends[1], shape=shape)
