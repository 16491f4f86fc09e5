"""What a trace records, and how it becomes a `NeuralGraph`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ngopt.graph.core import Bias, EdgeBlock, Index, NeuralGraph, View
from ngopt.graph.topology import GraphBuilder

if TYPE_CHECKING:
    from ngopt.graph.tracing.tracer import Tracer


@dataclass(frozen=True)
class RawBlock:
    """A block whose ends are still node numbers: sources (groups * n_source,), targets (groups * n_target,)."""

    view: View | None
    sources: Tensor
    targets: Tensor
    shape: tuple[int, int, int]
    slot_shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class RawBias:
    view: View
    nodes: Tensor
    slot_shape: tuple[int, ...]
    kind: str


def finish(tracer: Tracer) -> NeuralGraph:
    """Groups without nodes left are dropped, node numbers become places in groups, gaps become components."""
    sizes, group_of, place_of = tracer.nodes.compact()
    builder = GraphBuilder(tracer.parameters)
    number: dict[int, int] = {}
    used = _used_groups(tracer, group_of)
    for old, size in enumerate(sizes):
        if size and old in used:
            number[old] = builder.add_group(tracer.nodes.names[old], size, tracer.nodes.kinds[old])

    def locate(nodes: Tensor) -> tuple[int, Index]:
        old = int(group_of[nodes[0]])
        assert (group_of[nodes] == old).all(), "an end of a block lies in one group"
        index = tuple(place_of[nodes].tolist())
        return number[old], None if index == tuple(range(sizes[old])) else index

    for raw in tracer.blocks:
        for piece in split_ends(raw, group_of):
            source, source_index = locate(piece.sources)
            target, target_index = locate(piece.targets)
            builder.blocks.append(
                EdgeBlock(
                    piece.view, source, target, piece.shape, piece.slot_shape, piece.kind, source_index, target_index
                )
            )
    for raw in tracer.biases:
        start = 0
        for length in runs(group_of[raw.nodes]):
            part = slice(start, start + length)
            group, index = locate(raw.nodes[part])
            view = replace(
                raw.view,
                shape=(length, *raw.view.shape[1:]),
                offset=raw.view.offset + start * raw.view.strides[0],
            )
            builder.biases.append(Bias(view, group, raw.slot_shape, raw.kind, index))
            start += length
    for nodes, name in tracer.activations:
        for old in group_of[nodes].unique().tolist():
            if old in number and builder.groups[number[old]].activation is None:
                builder.groups[number[old]] = replace(builder.groups[number[old]], activation=name)
    return builder.build(
        inputs={number[g] for n in tracer.inputs for g in group_of[n].unique().tolist() if g in number},
        outputs={number[g] for n in tracer.outputs for g in group_of[n[n >= 0]].unique().tolist() if g in number},
    )


def _used_groups(tracer: Tracer, group_of: Tensor) -> set[int]:
    ends = [nodes for block in tracer.blocks for nodes in (block.sources, block.targets)]
    ends += [bias.nodes for bias in tracer.biases]
    return set(torch.cat([torch.empty(0, dtype=torch.long), *(group_of[nodes] for nodes in ends)]).tolist())


def runs(groups: Tensor) -> list[int]:
    """Lengths of the stretches of equal entries."""
    return torch.unique_consecutive(groups, return_counts=True)[1].tolist()


def split_ends(block: RawBlock, group_of: Tensor) -> Iterator[RawBlock]:
    """Pieces of a block whose ends lie in one group each."""
    if all((group_of[nodes] == group_of[nodes[0]]).all() for nodes in (block.sources, block.targets)):
        yield block
        return
    g, t, s = block.shape
    sources, targets = block.sources.reshape(g, s), block.targets.reshape(g, t)
    for groups in _stretches(torch.cat([group_of[sources], group_of[targets]], dim=1)):
        for rows in _stretches(group_of[targets[groups]].T):
            for columns in _stretches(group_of[sources[groups]].T):
                view = block.view
                parts = [groups, rows, columns]
                shape = tuple(len(range(*p.indices(n))) for p, n in zip(parts, block.shape, strict=True))
                if view is not None:
                    offset = view.offset + sum(p.start * k for p, k in zip(parts, view.strides, strict=False))
                    view = replace(view, shape=(*shape, *view.shape[3:]), offset=offset)
                yield replace(
                    block,
                    view=view,
                    sources=sources[groups, columns].flatten(),
                    targets=targets[groups, rows].flatten(),
                    shape=shape,  # type: ignore[arg-type]
                )


def _stretches(rows: Tensor) -> Iterator[slice]:
    """Maximal stretches of equal rows (n, k)."""
    if len(rows) == 0:
        return
    change = (rows[1:] != rows[:-1]).any(1).nonzero().flatten() + 1
    bounds = [0, *change.tolist(), len(rows)]
    for a, b in pairwise(bounds):
        yield slice(a, b)
