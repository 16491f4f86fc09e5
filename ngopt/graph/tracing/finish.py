"""How what a trace recorded becomes a `NeuralGraph`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ngopt.graph.core import Bias, EdgeBlock, Index, NeuralGraph, View
from ngopt.graph.topology import GraphBuilder
from ngopt.graph.tracing.nodes import Nodes
from ngopt.graph.tracing.raw import RawBias, RawBlock
from ngopt.graph.tracing.repeats import cut, distinct_ends, distinct_nodes
from ngopt.graph.tracing.tracer import Tracer


def finish(tracer: Tracer) -> NeuralGraph:
    """Groups without nodes left are dropped, node numbers become places in groups, gaps become components."""
    group_of = tracer.nodes.compact()[1]
    blocks = with_copies(tracer, [piece for raw in tracer.blocks for piece in split_ends(raw, group_of)])
    blocks = [piece for raw in blocks for piece in distinct_ends(raw)]
    finder = _Finder(tracer.nodes)
    biases = [replace(raw, nodes=tracer.nodes.find(raw.nodes)) for raw in tracer.biases]
    biases = [piece for raw in biases for part in _split_nodes(raw, finder.group_of) for piece in distinct_nodes(part)]
    biases = _one_for_each_parameter(tracer, biases)
    builder = GraphBuilder(tracer.parameters)
    finder.add_groups(builder, [n for b in blocks for n in (b.sources, b.targets)] + [b.nodes for b in biases])
    for raw in blocks:
        source, source_index = finder.locate(raw.sources)
        target, target_index = finder.locate(raw.targets)
        builder.blocks.append(
            EdgeBlock(raw.view, source, target, raw.shape, raw.slot_shape, raw.kind, source_index, target_index)
        )
    for raw in biases:
        group, index = finder.locate(raw.nodes)
        builder.biases.append(Bias(raw.view, group, raw.slot_shape, raw.kind, index))
    for nodes, name in tracer.activations:
        for i in finder.groups_of([nodes]):
            if builder.groups[i].activation is None:
                builder.groups[i] = replace(builder.groups[i], activation=name)
    fixed = [n for b in blocks if _is_of(b, tracer.fixed) for n in (b.sources, b.targets)]
    fixed += [b.nodes for b in biases if _is_of(b, tracer.fixed)]
    inputs = finder.groups_of(tracer.inputs)
    outputs = finder.groups_of([*tracer.outputs, *tracer.pinned, *fixed])
    inner = {block.target for block in builder.blocks} | finder.groups_of(tracer.learned)
    # a position that leads nowhere is still one among others; a neuron that does so is not needed
    hidden = {i for i in inner if builder.groups[i].kind != "position"} - outputs - inputs
    return builder.build(inputs, outputs, hidden)


def _one_for_each_parameter(tracer: Tracer, biases: Sequence[RawBias]) -> list[RawBias]:
    """Pieces of one parameter that do the same to the same nodes, as rows of a table, are its slots there.

    Where they lie at no even distances the nodes are pinned: nothing says which piece comes first.
    """
    alike: dict[tuple, list[RawBias]] = {}
    for bias in biases:
        key = (bias.view.parameter, bias.kind, *bias.nodes.tolist(), bias.view.shape, bias.view.strides)
        alike.setdefault(key, []).append(bias)
    found = []
    for first, *others in alike.values():
        offsets = sorted({first.view.offset, *(other.view.offset for other in others)})
        steps = {b - a for a, b in pairwise(offsets)}
        view = _stacked(first.view, offsets) if len(steps) == 1 else None
        if view is not None and _has_all_once(view, tracer.parameters[view.parameter].numel):
            found.append(replace(first, view=view, slot_shape=view.shape[1:]))
        else:
            found += [first, *others]
            tracer.pin(*([first.nodes] if steps else []))
    return found


def _stacked(view: View, offsets: Sequence[int]) -> View:
    """A view (n, ...) and others like it at even distances, as (n, views, ...)."""
    (n, *shape), (stride, *strides) = view.shape, view.strides
    return replace(
        view,
        shape=(n, len(offsets), *shape),
        strides=(stride, offsets[1] - offsets[0], *strides),
        offset=offsets[0],
    )


def _has_all_once(view: View, numel: int) -> bool:
    """Whether no element of a parameter is in a view twice."""
    return torch.arange(numel).as_strided(view.shape, view.strides, view.offset).unique().numel() == view.numel


def _is_of(raw: RawBlock | RawBias, parameters: set[int]) -> bool:
    return raw.view is not None and raw.view.parameter in parameters


class _Finder:
    """Which group of a graph a node is in, and where."""

    def __init__(self, nodes: Nodes):
        self.names, self.kinds = nodes.names, nodes.kinds
        self.sizes, self.group_of, self.place_of = nodes.compact()
        self.number: dict[int, int] = {}

    def add_groups(self, builder: GraphBuilder, used: Sequence[Tensor]) -> None:
        """Adds the groups that any of the `used` nodes are in."""
        for old in self.group_of[torch.cat([torch.empty(0, dtype=torch.long), *used])].unique().tolist():
            self.number[old] = builder.add_group(self.names[old], self.sizes[old], self.kinds[old])

    def locate(self, nodes: Tensor) -> tuple[int, Index]:
        """The group of nodes and their places in it, None if these are all in their order."""
        old = int(self.group_of[nodes[0]])
        assert (self.group_of[nodes] == old).all(), "an end of a block lies in one group"
        index = tuple(self.place_of[nodes].tolist())
        return self.number[old], None if index == tuple(range(self.sizes[old])) else index

    def groups_of(self, labels: Iterable[Tensor]) -> set[int]:
        """The groups of all nodes among labels, as far as they are in the graph."""
        found = {old for nodes in labels for old in self.group_of[nodes[nodes >= 0]].unique().tolist()}
        return {self.number[old] for old in found if old in self.number}


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
