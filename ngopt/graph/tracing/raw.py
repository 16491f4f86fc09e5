"""What a trace records, and how it becomes a `NeuralGraph`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ngopt.graph.core import Bias, EdgeBlock, Index, NeuralGraph, View
from ngopt.graph.topology import GraphBuilder
from ngopt.graph.tracing.repeats import cut, distinct_ends, distinct_nodes

if TYPE_CHECKING:
    from ngopt.graph.tracing.tracer import Tracer


@dataclass(frozen=True)
class RawBlock:
    """A block whose ends are still node numbers: sources (groups * n_source,), targets (groups * n_target,).

    use: which function is applied to what; weights with the same one see their sources in the same way.
    """

    view: View | None
    sources: Tensor
    targets: Tensor
    shape: tuple[int, int, int]
    slot_shape: tuple[int, ...]
    kind: str
    use: tuple


@dataclass(frozen=True)
class RawBias:
    view: View
    nodes: Tensor
    slot_shape: tuple[int, ...]
    kind: str


def finish(tracer: Tracer) -> NeuralGraph:
    """Groups without nodes left are dropped, node numbers become places in groups, gaps become components."""
    group_of = tracer.nodes.compact()[1]
    blocks = with_copies(tracer, [piece for raw in tracer.blocks for piece in split_ends(raw, group_of)])
    pieces = [piece for raw in blocks for piece in distinct_ends(raw)]
    sizes, group_of, place_of = tracer.nodes.compact()
    builder = GraphBuilder(tracer.parameters)
    number: dict[int, int] = {}
    used = _used_groups(pieces, tracer.biases, group_of)
    for old, size in enumerate(sizes):
        if size and old in used:
            number[old] = builder.add_group(tracer.nodes.names[old], size, tracer.nodes.kinds[old])

    def locate(nodes: Tensor) -> tuple[int, Index]:
        old = int(group_of[nodes[0]])
        assert (group_of[nodes] == old).all(), "an end of a block lies in one group"
        index = tuple(place_of[nodes].tolist())
        return number[old], None if index == tuple(range(sizes[old])) else index

    for raw in pieces:
        source, source_index = locate(raw.sources)
        target, target_index = locate(raw.targets)
        builder.blocks.append(
            EdgeBlock(raw.view, source, target, raw.shape, raw.slot_shape, raw.kind, source_index, target_index)
        )
    for raw in tracer.biases:
        for piece in _split_nodes(replace(raw, nodes=tracer.nodes.find(raw.nodes)), group_of):
            for bias in distinct_nodes(piece):
                group, index = locate(bias.nodes)
                builder.biases.append(Bias(bias.view, group, bias.slot_shape, bias.kind, index))
    for nodes, name in tracer.activations:
        for old in group_of[nodes].unique().tolist():
            if old in number and builder.groups[number[old]].activation is None:
                builder.groups[number[old]] = replace(builder.groups[number[old]], activation=name)

    def groups_of(nodes: Iterable[Tensor]) -> set[int]:
        return {number[g] for n in nodes for g in group_of[n[n >= 0]].unique().tolist() if g in number}

    ends = [
        nodes
        for raw in pieces
        if raw.view and raw.view.parameter in tracer.fixed
        for nodes in (raw.sources, raw.targets)
    ]
    ends += [raw.nodes for raw in tracer.biases if raw.view.parameter in tracer.fixed]
    outputs = groups_of([*tracer.outputs, *tracer.pinned, *ends])
    inputs = groups_of(tracer.inputs)
    inner = {block.target for block in builder.blocks} | groups_of(tracer.learned)
    # a position that leads nowhere is still one among others; a neuron that does so is not needed
    hidden = {i for i in inner if builder.groups[i].kind != "position"} - outputs - inputs
    return builder.build(inputs, outputs, hidden)


def _used_groups(blocks: Sequence[RawBlock], biases: Sequence[RawBias], group_of: Tensor) -> set[int]:
    ends = [nodes for block in blocks for nodes in (block.sources, block.targets)]
    ends += [bias.nodes for bias in biases]
    return set(torch.cat([torch.empty(0, dtype=torch.long), *(group_of[nodes] for nodes in ends)]).tolist())


def with_copies(tracer: Tracer, blocks: Sequence[RawBlock]) -> list[RawBlock]:
    """Gives the sources of a weight nodes of their own where another has the same ends but sees them otherwise.

    A x + B mean(x) has two weights from and to the same neurons, as A x + B sin(x) has. Exchanging
    them changes the function, and only nodes between x and B, the copies, say so.
    """
    found: list[RawBlock] = []
    before: dict[tuple, list[RawBlock]] = {}
    copies: dict[tuple, Tensor] = {}
    for block in blocks:
        sources, targets = tracer.nodes.find(block.sources), tracer.nodes.find(block.targets)
        block = replace(block, sources=sources, targets=targets)
        if block.view is not None:
            groups = (int(tracer.nodes.group_of(nodes[0])) for nodes in (sources, targets))
            others = before.setdefault((*groups, block.kind, block.slot_shape), [])
            if any(other.use != block.use and _share_an_edge(other, block) for other in others):
                key = (block.use, *sources.tolist())
                if key not in copies:
                    n = len(sources)
                    copies[key] = tracer.nodes.new(f"{block.use[0]}.copy", n, "copy")
                    found.append(RawBlock(None, sources, copies[key], (n, 1, 1), (), "copy", block.use))
                block = replace(block, sources=copies[key])
            else:
                others.append(block)
        found.append(block)
    return found


def _share_an_edge(a: RawBlock, b: RawBlock) -> bool:
    """Whether an edge of one has the ends of an edge of the other."""
    return bool(torch.isin(a.sources, b.sources).any() and torch.isin(a.targets, b.targets).any())


def _split_nodes(bias: RawBias, group_of: Tensor) -> Iterator[RawBias]:
    """Pieces of a bias whose nodes lie in one group each."""
    for part in _stretches(group_of[bias.nodes][:, None]):
        yield replace(bias, view=cut(bias.view, 0, part), nodes=bias.nodes[part])


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
